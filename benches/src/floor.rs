//! The floor: the least that a server can do and still answer, as a measure of what the machine
//! allows.
//!
//! A process per connection, forked; one thread; one receive takes all requests that have come, one
//! send carries all their replies. It checks nothing that a client of this benchmark does not do
//! wrong: not a server for the world.

mod serve;

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nbdkit_sandbox::process::fork;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};

use crate::client::{Address, Stream};
use crate::failure::Failure;

/// What the floor serves.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A file, by pread and pwrite.
    File(PathBuf),
    /// Zeroes, so many bytes.
    Null(u64),
}

/// Accepts clients for ever.
pub(crate) fn run(address: &Address, content: &Content) -> Result<(), Failure> {
    let (size, file) = match content {
        Content::Null(size) => (*size, None),
        Content::File(path) => {
            let file = File::options().read(true).write(true).open(path);
            let file = file.map_err(|error| Failure::io("open", path.display(), &error))?;
            (file.metadata()?.len(), Some(file))
        }
    };
    let listener = Listener::bind(address)?;
    loop {
        let stream = listener.accept()?;
        match fork()? {
            Some(_) => {
                // Ended children are waited for, so that their CPU time counts as this process's.
                while waitpid(None, Some(WaitPidFlag::WNOHANG))
                    .is_ok_and(|status| status.pid().is_some())
                {}
            }
            None => {
                drop(listener);
                // The client is gone or broken; either way this process has done its work.
                let _ = serve::serve(stream, size, file.as_ref());
                std::process::exit(0);
            }
        }
    }
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn bind(address: &Address) -> Result<Listener, Failure> {
        let bound = match address {
            Address::Unix(path) => UnixListener::bind(path).map(Listener::Unix),
            Address::Tcp(address) => TcpListener::bind(address).map(Listener::Tcp),
        };
        bound.map_err(|error| Failure::io("bind", address, &error))
    }

    fn accept(&self) -> Result<Stream, Failure> {
        Ok(match self {
            Listener::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// Ends with the benchmark that started it, whatever becomes of that.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(Some(Signal::SIGTERM))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::client::{Client, Wishes};
    use crate::load::{Access, Load};
    use crate::pattern::Pattern;
    use crate::replies::Check;

    const SIZE: u64 = 1 << 20;
    const READS: Access =
        Access { write: false, block: 4096, depth: 16, random: true, batched: true };

    /// The generator against the floor on a file of the pattern, in which one byte is changed if
    /// `spoilt`.
    fn with_file(
        spoilt: bool,
        structured: bool,
        access: Access,
        test: impl FnOnce(&mut Load) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let file = File::from(nix::sys::memfd::memfd_create(
            c"bench",
            nix::sys::memfd::MFdFlags::empty(),
        )?);
        let mut content = vec![0; usize::try_from(SIZE).unwrap()];
        Pattern::Hashed.fill(0, &mut content);
        if spoilt {
            // In the middle of a block, where only a full comparison looks.
            content[4096 * 9 + 1234] ^= 0x10;
        }
        file.write_all_at(&content, 0)?;
        let (ours, theirs) = UnixStream::pair()?;
        std::thread::scope(|scope| {
            scope.spawn(|| serve::serve(Stream::Unix(theirs), SIZE, Some(&file)));
            let wishes = Wishes { export: String::new(), structured, block_status: false };
            let client = Client::handshake(Stream::Unix(ours), &wishes)?;
            // The client is dropped with the load, which ends the thread.
            let mut load = Load::new(client, access, 1)?;
            test(&mut load)
        })
    }

    #[test]
    fn the_generator_reads_the_whole_pattern_from_the_floor() {
        for structured in [false, true] {
            for batched in [false, true] {
                let access = Access { batched, random: false, ..READS };
                with_file(false, structured, access, |load| {
                    load.verify(Pattern::Hashed, SIZE)?;
                    let time = Duration::from_millis(20);
                    let tally = load.run(time, Check::Ends(Pattern::Hashed))?;
                    // Those that were sent at first are answered, however slow the machine is.
                    assert!(tally.operations >= 16 && tally.elapsed > Duration::ZERO);
                    Ok(())
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn one_wrong_byte_in_the_file_fails_the_verification() {
        let access = Access { random: false, ..READS };
        let result = with_file(true, true, access, |load| load.verify(Pattern::Hashed, SIZE));
        assert!(matches!(result, Err(Failure::Wrong(_))), "{result:?}");
    }

    #[test]
    fn what_was_written_is_read_back_and_is_no_longer_the_pattern() {
        for block in [4096, 256 * 1024] {
            let access = Access { write: true, block, depth: 4, ..READS };
            with_file(false, true, access, |load| {
                load.run(Duration::from_millis(20), Check::Ends(Pattern::Hashed))?;
                load.verify_written()
            })
            .unwrap();
        }
    }
}
