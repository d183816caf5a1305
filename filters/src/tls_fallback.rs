//! nbdkit-tls-fallback-filter(1): clients without TLS get a small read-only disk with a message
//! instead of the real one.
//!
//! Nothing below is opened for them: it does not learn that they exist, nor under which export
//! name.

use std::sync::Arc;

use nbdkit_api::{
    BlockSize, Cache, Client, DataPath, Direction, Errno, Error, Exports, Extents, Filter, Flags,
    Fua, Layer, Next, NextConfig, Open, OpenLayer, Result, Slot, ThreadModel, Value, Zero,
};

/// The size of the message, bytes.
const SIZE: usize = 512;
const MESSAGE: &str =
    "This NBD server requires TLS authentication before it will serve useful data.\n";

/// The filter: what clients without TLS read.
#[derive(Debug)]
pub struct TlsFallback {
    disk: Arc<[u8; SIZE]>,
}

impl Default for TlsFallback {
    fn default() -> TlsFallback {
        TlsFallback { disk: disk(MESSAGE.as_bytes()) }
    }
}

/// The message and zeroes; what does not fit is left out.
fn disk(message: &[u8]) -> Arc<[u8; SIZE]> {
    let mut disk = [0; SIZE];
    let length = message.len().min(SIZE);
    disk[..length].copy_from_slice(&message[..length]);
    Arc::new(disk)
}

impl Filter for TlsFallback {
    fn name(&self) -> &str {
        "tls-fallback"
    }

    fn longname(&self) -> Option<&str> {
        Some("nbdkit tls-fallback filter")
    }

    fn config_help(&self) -> Option<&str> {
        Some("tlsreadme=<MESSAGE>  What clients without TLS read instead of the disk.")
    }

    fn config(&mut self, next: NextConfig<'_>, key: &str, value: Value<'_>) -> Result<()> {
        if key != "tlsreadme" {
            return next.config(key, value);
        }
        self.disk = disk(value.as_bytes());
        Ok(())
    }

    fn thread_model(&self, below: ThreadModel) -> Result<ThreadModel> {
        if below == ThreadModel::SerializeConnections {
            // A client that stays without TLS would keep all others out.
            return Err(Error::msg("the tls-fallback filter requires parallel connection support"));
        }
        Ok(below)
    }

    fn list_exports(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
        exports: &mut Exports,
    ) -> Result<()> {
        if client.is_tls() {
            return below.list_exports(client, readonly, exports);
        }
        exports.add("", None)
    }

    fn default_export(
        &self,
        below: &Arc<Layer>,
        client: &Arc<Client>,
        readonly: bool,
    ) -> Result<Option<String>> {
        if client.is_tls() {
            return below.default_export(client, readonly);
        }
        Ok(Some(String::new()))
    }

    fn open(&self, below: &mut Slot<'_>, open: &Open<'_>) -> Result<Box<dyn OpenLayer>> {
        if open.tls {
            below.open(open)?;
            return Ok(Box::new(Encrypted));
        }
        Ok(Box::new(Plain(Arc::clone(&self.disk))))
    }
}

/// A client with TLS: everything passes through.
struct Encrypted;

impl OpenLayer for Encrypted {
    fn data_path(&self, _: Direction) -> DataPath {
        DataPath::Transparent
    }
}

/// A client without: there is nothing below.
struct Plain(Arc<[u8; SIZE]>);

fn refused<T>() -> Result<T> {
    Err(Error::silent(Errno::EPERM))
}

impl OpenLayer for Plain {
    fn size(&self, _: &Next) -> Result<u64> {
        Ok(SIZE as u64)
    }

    fn export_description(&self, _: &Next) -> Option<String> {
        None
    }

    fn block_size(&self, _: &Next) -> Result<BlockSize> {
        Ok(BlockSize::default())
    }

    fn can_write(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_flush(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn is_rotational(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_trim(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_zero(&self, _: &Next) -> Result<Zero> {
        Ok(Zero::None)
    }

    fn can_fast_zero(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_extents(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_fua(&self, _: &Next) -> Result<Fua> {
        Ok(Fua::None)
    }

    fn can_multi_conn(&self, _: &Next) -> Result<bool> {
        Ok(false)
    }

    fn can_cache(&self, _: &Next) -> Result<Cache> {
        Ok(Cache::None)
    }

    fn pread(&self, _: &Next, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = usize::try_from(offset).unwrap_or(SIZE);
        match self.0.get(start..).and_then(|disk| disk.get(..buf.len())) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::silent(Errno::EIO)),
        }
    }

    fn pwrite(&self, _: &Next, _: &[u8], _: u64, _: Flags) -> Result<()> {
        refused()
    }

    fn flush(&self, _: &Next) -> Result<()> {
        refused()
    }

    fn trim(&self, _: &Next, _: u64, _: u64, _: Flags) -> Result<()> {
        refused()
    }

    fn zero(&self, _: &Next, _: u64, _: u64, _: Flags) -> Result<()> {
        refused()
    }

    fn extents(&self, _: &Next, _: u64, _: u64, _: Flags, _: &mut Extents) -> Result<()> {
        refused()
    }

    fn cache(&self, _: &Next, _: u64, _: u64) -> Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Disk};

    #[test]
    fn clients_without_tls_read_the_message_and_change_nothing() {
        let disk = Arc::new(Disk::new(1 << 20));
        let backend = testing::backend(&disk, &["tls-fallback"], &[]);
        assert_eq!(backend.size().unwrap(), 512);
        assert!(!backend.can_write().unwrap());
        let text = testing::read(&backend, 512, 0);
        assert!(text.starts_with(MESSAGE.as_bytes()));
        assert!(text[MESSAGE.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(testing::read(&backend, 3, 500), [0; 3]);
    }

    #[test]
    fn messages_are_cut_or_padded_to_the_size() {
        let long = "x".repeat(600);
        for (message, expected) in [("hi", b"hi\0"), (&long, b"xxx")] {
            let disk = Arc::new(Disk::new(1 << 20));
            let backend = testing::backend(&disk, &["tls-fallback"], &[("tlsreadme", message)]);
            assert_eq!(testing::read(&backend, 3, 0), expected);
            assert_eq!(backend.size().unwrap(), 512);
        }
    }

    #[test]
    fn clients_with_tls_get_the_disk() {
        let layer = testing::layer(&Arc::new(Disk::new(1 << 20)), &["tls-fallback"], &[]);
        let client = testing::client();
        client.set_tls(nbdkit_api::client::TlsPeer::default());
        let open = Open { client: Some(&client), readonly: false, export: "", tls: true };
        assert_eq!(layer.open(&open).unwrap().size().unwrap(), 1 << 20);
    }
}
