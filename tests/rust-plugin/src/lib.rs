//! A disk in memory as people write one with the `nbdkit` crate: it is loaded by the tests of
//! plugins in C, which it is for the server.
#![expect(missing_docs, reason = "the macro defines the entry point")]

use std::sync::{Mutex, PoisonError};

use nbdkit::{Error, Flags, Result, Server, ThreadModel, plugin};

static DISK: Mutex<Vec<u8>> = Mutex::new(Vec::new());

fn disk() -> std::sync::MutexGuard<'static, Vec<u8>> {
    DISK.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Disk;

impl Server for Disk {
    fn name() -> &'static str {
        "rustdisk"
    }

    fn config(key: &str, value: &str) -> Result<()> {
        if key != "size" {
            return Err(Error::new(EINVAL, format!("unknown parameter {key}")));
        }
        let size = nbdkit::parse_size(value)?;
        *disk() = vec![0; usize::try_from(size).unwrap_or(0)];
        Ok(())
    }

    fn thread_model() -> Result<ThreadModel> {
        Ok(ThreadModel::Parallel)
    }

    fn open(_readonly: bool) -> Result<Box<dyn Server>> {
        Ok(Box::new(Disk))
    }

    fn get_size(&self) -> Result<i64> {
        Ok(i64::try_from(disk().len()).unwrap_or(i64::MAX))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = offset as usize;
        buf.copy_from_slice(&disk()[start..start + buf.len()]);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        let start = offset as usize;
        disk()[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

const EINVAL: i32 = 22;

plugin!(Disk { thread_model, write_at, flush, config });
