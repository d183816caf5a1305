//! `allocator=malloc[,mlock=BOOL]`: a memfd of which every page is allocated before the first
//! client comes, so that writing cannot fail for lack of memory later.
//!
//! With `mlock=true` the template maps the whole memfd and locks the mapping. Locks are not
//! inherited by fork(2), but they need not be: a page stays in memory as long as one mapping of it
//! is locked, and the template outlives all workers. Locking needs CAP_IPC_LOCK or a sufficient
//! RLIMIT_MEMLOCK when the server starts, and nothing afterwards.

use std::os::fd::{AsFd, BorrowedFd};

use nbdkit_api::shared::{SharedFile, SharedWords};
use nbdkit_api::{Errno, Error, ExtentKind, Extents, Isolation, Result, Value};

use super::{Allocator, Kind};

mod lock;

/// Preferred block size, bytes: no page to be filled up, so the smallest that NBD allows.
const PREFERRED: u32 = 512;

/// Piece in which zeroes are written, bytes.
const ZERO_PIECE: usize = 256 << 10;
static ZEROES: [u8; ZERO_PIECE] = [0; ZERO_PIECE];

/// Parses what stands behind `malloc,`.
pub(super) fn parse(parameters: &[&str]) -> Result<Kind> {
    let mut mlock = false;
    for parameter in parameters {
        match parameter.split_once('=') {
            Some(("mlock", value)) => mlock = Value::new(value).boolean()?,
            Some((key, _)) => {
                return Err(Error::msg(format!("allocator=malloc: unknown parameter {key}")));
            }
            None => {
                return Err(Error::msg(format!("allocator=malloc: unknown parameter {parameter}")));
            }
        }
    }
    Ok(Kind::Malloc { mlock })
}

/// A disk in a memfd, all of which is allocated at the start.
#[derive(Debug)]
pub(super) struct Malloc {
    file: SharedFile,
    mlock: bool,
    /// Keeps the pages locked while the template lives.
    locked: Option<SharedWords>,
}

impl Malloc {
    pub(super) fn new(name: &str, mlock: bool) -> Result<Malloc> {
        Ok(Malloc { file: SharedFile::in_memory(name, 0)?, mlock, locked: None })
    }
}

impl Allocator for Malloc {
    fn set_size(&mut self, size: u64) -> Result<()> {
        self.file.set_len(size)?;
        if size == 0 {
            return Ok(());
        }
        // The kernel takes a memfd page by page until the OOM killer kills a process,
        // where malloc(3) would have refused the whole at once.
        if let Some(available) = available_memory()
            && size > available
        {
            return Err(Error::new(
                Errno::ENOMEM,
                format!(
                    "allocator=malloc: cannot allocate {size} bytes: \
                     only {available} bytes of memory and swap are available"
                ),
            ));
        }
        self.file.allocate(0, size)?;
        if self.mlock {
            let words = usize::try_from(size.div_ceil(8))
                .map_err(|_| Error::os("allocator=malloc", Errno::ENOMEM))?;
            let words = SharedWords::in_file(&self.file, 0, words)?;
            lock::lock(&words).map_err(|errno| {
                let error = Error::os(format!("mlock: {size} bytes"), errno);
                match errno {
                    Errno::EPERM | Errno::ENOMEM | Errno::EAGAIN => Error::new(
                        errno,
                        format!(
                            "{}; raise the limit of locked memory (ulimit -l) or run as root",
                            error.message()
                        ),
                    ),
                    _ => error,
                }
            })?;
            self.locked = Some(words);
        }
        Ok(())
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(buf, offset)
    }

    // Punching would give the pages back, and a later write might not get them again.
    fn zero(&self, count: u64, offset: u64) -> Result<()> {
        let mut done = 0;
        while done < count {
            let length = (count - done).min(ZERO_PIECE as u64);
            self.file.write_at(&ZEROES[..length as usize], offset + done)?;
            done += length;
        }
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, _one: bool, extents: &mut Extents) -> Result<()> {
        extents.add(offset, count, ExtentKind::DATA)
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn preferred_block_size(&self) -> u32 {
        PREFERRED
    }

    fn isolation(&self) -> Isolation {
        Isolation::Connection
    }

    fn used(&self) -> Result<u64> {
        self.file.used()
    }

    fn is_preallocated(&self) -> bool {
        true
    }

    fn max_cost(&self, _count: u64) -> u64 {
        0
    }

    fn cost(&self, _buf: &[u8], _offset: u64) -> Result<u64> {
        Ok(0)
    }
}

/// Bytes of memory and swap that can still be had, from /proc/meminfo; `None` if it cannot be read.
fn available_memory() -> Option<u64> {
    available_in(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let kib = field("MemAvailable")?.checked_add(field("SwapFree").unwrap_or(0))?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_tells_what_is_available() {
        let text = "MemTotal:  100 kB\nMemAvailable:   60 kB\nSwapTotal: 9 kB\nSwapFree: 4 kB\n";
        assert_eq!(available_in(text), Some(64 * 1024));
        assert_eq!(available_in("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn more_than_the_memory_of_the_machine_is_refused() {
        let mut malloc = Malloc::new("test", false).unwrap();
        assert_eq!(malloc.set_size(1 << 50).unwrap_err().errno(), Errno::ENOMEM);
    }

    #[test]
    fn locked_memory_is_counted_by_the_kernel() {
        let mut malloc = Malloc::new("test", true).unwrap();
        // 16 pages: within every usual limit.
        malloc.set_size(64 << 10).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        let kib: u64 = locked.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        assert!(kib >= 64, "{kib}");
        malloc.write(b"x", 0).unwrap();
    }
}
