//! Processors of their own for server and clients.
//!
//! Where both share two processors, the kernel puts some of a server's processes beside the client,
//! which get more or less of the time than the others. What a server itself gives to each of its
//! clients shows only without that.
#![forbid(unsafe_code)]

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::failure::Failure;

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// While this lives, this thread and what it starts stay on some of the processors.
#[derive(Debug)]
pub(crate) struct Apart {
    before: CpuSet,
    client: CpuSet,
}

impl Apart {
    /// Leaves one processor free; what is started from now on, the server, does without it.
    ///
    /// # Errors
    /// There is only one processor.
    pub(crate) fn for_server() -> Result<Apart, Failure> {
        let before = sched_getaffinity(THIS)?;
        let usable = (0..CpuSet::count()).filter(|&it| before.is_set(it).unwrap_or(false));
        let usable: Vec<usize> = usable.collect();
        let Some((&last, others @ [_, ..])) = usable.split_last() else {
            return Err(Failure::Unavailable("only one processor".to_owned()));
        };
        sched_setaffinity(THIS, &set_of(others)?)?;
        Ok(Apart { before, client: set_of(&[last])? })
    }

    /// Moves this thread, the clients', to the processor that was left free.
    pub(crate) fn move_client(&self) -> Result<(), Failure> {
        Ok(sched_setaffinity(THIS, &self.client)?)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = sched_setaffinity(THIS, &self.before);
    }
}

fn set_of(processors: &[usize]) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    processors.iter().try_for_each(|&it| set.set(it))?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the thread that the test has to itself.
    #[test]
    fn server_and_client_share_no_processor_and_the_thread_gets_its_own_back() {
        let before = sched_getaffinity(THIS).unwrap();
        let apart = match Apart::for_server() {
            Ok(apart) => apart,
            Err(Failure::Unavailable(_)) => return,
            Err(failure) => panic!("{failure}"),
        };
        let of_server = sched_getaffinity(THIS).unwrap();
        apart.move_client().unwrap();
        let of_client = sched_getaffinity(THIS).unwrap();
        for processor in 0..CpuSet::count() {
            let is_in = |set: &CpuSet| set.is_set(processor).unwrap();
            assert!(!(is_in(&of_server) && is_in(&of_client)));
            assert_eq!(is_in(&of_server) || is_in(&of_client), is_in(&before));
        }
        drop(apart);
        assert_eq!(sched_getaffinity(THIS).unwrap(), before);
    }
}
