//! A disk in memory that is exported to C with every callback that there is, for the tests of
//! `plugins/export`. A write at offset 0 may be an order: see `obey`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbdkit_export::nbdkit_api::endpoints::{self, Endpoint};
use nbdkit_export::nbdkit_api::{
    self, BlockSize, Cache, Client, Connection, Errno, Error, Exports, ExtentKind, Extents, Flags,
    Fua, Isolation, Needs, Open, Plugin, Result, ThreadModel, Value, client,
};
use std::sync::Arc;

const SIZE: usize = 1 << 16;

/// The parameters.
#[derive(Debug, Default)]
struct Exported {
    shutdown: bool,
    broken: bool,
    cold: bool,
    about_tls: bool,
    endpoint: Option<Endpoint>,
}

impl Plugin for Exported {
    fn name(&self) -> &str {
        "exported"
    }

    fn longname(&self) -> Option<&str> {
        Some("every callback")
    }

    fn description(&self) -> Option<&str> {
        Some("A disk in memory.")
    }

    fn config_help(&self) -> Option<&str> {
        Some("shutdown=true    It may stop the server.")
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "shutdown" => self.shutdown = value.boolean()?,
            "about-tls" => self.about_tls = value.boolean()?,
            "cold" => self.cold = value.boolean()?,
            "broken" => self.broken = value.boolean()?,
            "port" => self.endpoint = Some(Endpoint::tcp("localhost", value.str()?)?),
            "vsock" => self.endpoint = Some(Endpoint::Vsock { cid: 2, port: value.integer(key)? }),
            "panic" => panic!("on purpose"),
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn max_thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    fn thread_model(&self) -> Result<ThreadModel> {
        Ok(ThreadModel::SerializeRequests)
    }

    fn get_ready(&mut self) -> Result<()> {
        match self.broken {
            true => Err(Error::msg("get_ready: it is broken")),
            false => Ok(()),
        }
    }

    fn warm_up(&self) -> Result<()> {
        if self.cold { Err(Error::msg("warm_up: it is cold")) } else { Ok(()) }
    }

    fn dump_plugin(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        writeln!(out, "exported_by=rust")
    }

    fn needs(&self, _readonly: bool) -> Needs {
        let needs = Needs { shutdown: self.shutdown, ..Needs::nothing() };
        self.endpoint.iter().cloned().fold(needs, Needs::connect_to)
    }

    fn isolation(&self) -> Isolation {
        Isolation::Shared
    }

    fn keeps_state(&self) -> bool {
        true
    }

    fn preconnect(&self, client: &Arc<Client>, readonly: bool) -> Result<()> {
        nbdkit_api::debug!("preconnect {:?} readonly {readonly}", client.peer().address);
        Ok(())
    }

    fn list_exports(&self, _: &Arc<Client>, _: bool, exports: &mut Exports) -> Result<()> {
        exports.add("one", Some("the first".to_owned()))?;
        exports.add("", None)
    }

    fn default_export(&self, _: &Arc<Client>, _: bool) -> Result<Option<String>> {
        Ok(Some("one".to_owned()))
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        match open.export {
            "none" => Err(Error::new(Errno::ENOENT, "there is no such export")),
            "panic" => panic!("on purpose"),
            name => Ok(Box::new(Handle {
                disk: Mutex::new(if self.about_tls { about_tls(open) } else { vec![0; SIZE] }),
                export: name.to_owned(),
                client: open.client.cloned(),
                endpoint: self.endpoint.clone(),
            })),
        }
    }
}

/// A disk that begins with what `tests/cplugins/tls.c` says, too.
fn about_tls(open: &Open<'_>) -> Vec<u8> {
    let tls = open.client.and_then(|client| client.tls()).cloned().unwrap_or_default();
    let text = format!("{} <{}> <{}>", u8::from(open.tls), tls.dn, tls.issuer_dn);
    let mut disk = vec![0; SIZE];
    disk[..text.len()].copy_from_slice(text.as_bytes());
    disk
}

struct Handle {
    disk: Mutex<Vec<u8>>,
    export: String,
    client: Option<Arc<Client>>,
    endpoint: Option<Endpoint>,
}

impl Handle {
    fn disk(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a text says, and leaves what came of it on the disk.
    fn obey(&self, order: &str) -> Result<()> {
        let client = self.client.as_deref();
        let text = match order {
            "panic" => panic!("on purpose"),
            "error" => return Err(Error::new(Errno::ENOSPC, "the disk is full")),
            "silent" => return Err(Error::silent(Errno::EROFS)),
            "shutdown" => {
                client::shutdown();
                String::new()
            }
            "disconnect" => {
                client.iter().for_each(|client| client.disconnect(true));
                String::new()
            }
            "sleep" => {
                let slept = client::sleep(client, Duration::from_secs(3600));
                nbdkit_api::error!("slept: {slept:?}");
                return slept;
            }
            "connect" => {
                let endpoint = self.endpoint.clone().ok_or_else(|| Error::msg("no endpoint"))?;
                let until = Instant::now() + Duration::from_secs(60);
                endpoints::connect(client, &endpoint, until).map(|_| "connected".to_owned())?
            }
            "passwd" => match std::fs::read("/etc/passwd") {
                Ok(_) => "opened".to_owned(),
                Err(error) => error.to_string(),
            },
            "export" => self.export.clone(),
            "peer" => format!("{:?}", client.map(Client::peer)),
            _ => return Ok(()),
        };
        let mut disk = self.disk();
        disk[..order.len()].fill(0);
        disk[..text.len()].copy_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(SIZE as u64)
    }

    fn export_description(&self) -> Option<String> {
        Some(format!("called {}", self.export))
    }

    fn block_size(&self) -> Result<BlockSize> {
        Ok(BlockSize { minimum: 1, preferred: 4096, maximum: 1 << 20 })
    }

    fn can_write(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_flush(&self) -> Result<bool> {
        Ok(true)
    }

    fn is_rotational(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_trim(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_zero(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_fast_zero(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_extents(&self) -> Result<bool> {
        Ok(true)
    }

    fn can_fua(&self) -> Result<Fua> {
        Ok(Fua::Native)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(false)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = offset as usize;
        buf.copy_from_slice(&self.disk()[start..start + buf.len()]);
        Ok(())
    }

    fn pwrite(&self, buf: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        let start = offset as usize;
        self.disk()[start..start + buf.len()].copy_from_slice(buf);
        match std::str::from_utf8(buf) {
            Ok(order) if offset == 0 => self.obey(order),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self, count: u64, offset: u64, flags: Flags) -> Result<()> {
        self.zero(count, offset, flags)
    }

    fn zero(&self, count: u64, offset: u64, _flags: Flags) -> Result<()> {
        let start = offset as usize;
        self.disk()[start..start + count as usize].fill(0);
        Ok(())
    }

    fn extents(&self, count: u64, offset: u64, _flags: Flags, extents: &mut Extents) -> Result<()> {
        let disk = self.disk();
        for (index, page) in disk.chunks(4096).enumerate() {
            let zero = page.iter().all(|byte| *byte == 0);
            let kind = if zero { ExtentKind::SPARSE } else { ExtentKind::DATA };
            let start = (index * 4096) as u64;
            if start + 4096 > offset && start < offset + count {
                extents.add(start, 4096, kind)?;
            }
        }
        Ok(())
    }

    fn cache(&self, _count: u64, _offset: u64) -> Result<()> {
        Ok(())
    }
}

nbdkit_export::export_plugin!(Exported::default());
