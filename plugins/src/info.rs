//! nbdkit-info-plugin(1): a read-only disk that holds the export name, or something about
//! the client or the server.

mod base64;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nbdkit_api::client::PeerAddress;
use nbdkit_api::{
    Blocking, Cache, Client, Connection, Errno, Error, NBDKIT_VERSION, Open, Plugin, Result, Value,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    ExportName,
    Base64ExportName,
    Address,
    Time,
    Uptime,
    ConnTime,
    Version,
}

impl Mode {
    fn parse(text: &str) -> Option<Mode> {
        Some(match text.to_ascii_lowercase().as_str() {
            "exportname" | "export-name" => Mode::ExportName,
            "base64exportname" | "base64-export-name" => Mode::Base64ExportName,
            "address" => Mode::Address,
            "time" => Mode::Time,
            "uptime" => Mode::Uptime,
            "conntime" => Mode::ConnTime,
            "version" => Mode::Version,
            _ => return None,
        })
    }
}

/// The plugin: the mode, and when it was loaded.
#[derive(Debug)]
pub struct Info {
    mode: Mode,
    loaded: Instant,
}

impl Default for Info {
    fn default() -> Info {
        Info { mode: Mode::default(), loaded: Instant::now() }
    }
}

impl Plugin for Info {
    fn name(&self) -> &str {
        "info"
    }

    fn callbacks(&self) -> &'static [&'static str] {
        &[
            "dump_plugin",
            "config",
            "config_help",
            "open",
            "get_size",
            "can_multi_conn",
            "can_cache",
            "pread",
        ]
    }

    fn magic_config_key(&self) -> Option<&str> {
        Some("mode")
    }

    fn config_help(&self) -> Option<&str> {
        Some(
            "mode=exportname|base64exportname|address|time|uptime|conntime|version\n\
             \x20                                     Plugin mode (default exportname).",
        )
    }

    fn config(&mut self, key: &str, value: Value<'_>) -> Result<()> {
        match key {
            "mode" => {
                let text = value.str()?;
                self.mode = Mode::parse(text)
                    .ok_or_else(|| Error::msg(format!("unknown mode: '{text}'")))?;
            }
            _ => return Err(Error::unknown_parameter(key)),
        }
        Ok(())
    }

    fn dump_plugin(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "info_address=yes")?;
        writeln!(out, "info_base64=yes")
    }

    fn open(&self, open: &Open<'_>) -> Result<Box<dyn Connection>> {
        let content = match self.mode {
            Mode::ExportName => Content::Bytes(open.export.as_bytes().to_vec()),
            Mode::Base64ExportName => Content::Bytes(
                base64::decode(open.export.as_bytes())
                    .map_err(|why| Error::new(Errno::EINVAL, format!("base64: {why}")))?,
            ),
            Mode::Address => Content::Bytes(address(open.client.map(|c| &**c))?.into_bytes()),
            Mode::Version => Content::Bytes(NBDKIT_VERSION.as_bytes().to_vec()),
            Mode::Time => Content::Clock,
            Mode::Uptime => Content::Since(self.loaded),
            Mode::ConnTime => Content::Since(Instant::now()),
        };
        // The same whichever client reads it, and whenever.
        let is_multi_conn =
            matches!(self.mode, Mode::ExportName | Mode::Base64ExportName | Mode::Version);
        Ok(Box::new(Handle { content, is_multi_conn }))
    }
}

/// Where a client comes from, in the usual notation.
fn address(client: Option<&Client>) -> Result<String> {
    match client.map(|client| &client.peer().address) {
        Some(PeerAddress::Inet(SocketAddr::V4(address))) => Ok(address.to_string()),
        Some(PeerAddress::Inet(SocketAddr::V6(address))) => {
            Ok(format!("[{}]:{}", address.ip(), address.port()))
        }
        // The path would tell about the host.
        Some(PeerAddress::Unix) => Ok("unix".to_owned()),
        Some(PeerAddress::Vsock { cid, port }) => Ok(format!("vsock:{cid}:{port}")),
        Some(PeerAddress::Unknown) | None => {
            Err(Error::new(Errno::EINVAL, "the address of the client is not known"))
        }
    }
}

/// What the disk of a client holds.
enum Content {
    Bytes(Vec<u8>),
    /// The time of day when it is read.
    Clock,
    /// The time that has passed when it is read.
    Since(Instant),
}

struct Handle {
    content: Content,
    is_multi_conn: bool,
}

/// Bytes of a time: 64-bit seconds and 32-bit microseconds, big-endian.
const TIME_SIZE: usize = 12;

fn time_bytes(time: Duration) -> [u8; TIME_SIZE] {
    let mut bytes = [0; TIME_SIZE];
    bytes[..8].copy_from_slice(&time.as_secs().to_be_bytes());
    bytes[8..].copy_from_slice(&time.subsec_micros().to_be_bytes());
    bytes
}

/// Copies the part of `content` that begins at `offset`.
fn copy(content: &[u8], buf: &mut [u8], offset: u64) -> Result<()> {
    let part = usize::try_from(offset)
        .ok()
        .and_then(|from| content.get(from..)?.get(..buf.len()))
        .ok_or_else(|| Error::new(Errno::EINVAL, "pread: beyond the end of the disk"))?;
    buf.copy_from_slice(part);
    Ok(())
}

impl Connection for Handle {
    fn size(&self) -> Result<u64> {
        Ok(match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Clock | Content::Since(_) => TIME_SIZE as u64,
        })
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(self.is_multi_conn)
    }

    fn can_cache(&self) -> Result<Cache> {
        Ok(Cache::Native)
    }

    fn pread(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match &self.content {
            Content::Bytes(bytes) => copy(bytes, buf, offset),
            Content::Clock => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                copy(&time_bytes(now), buf, offset)
            }
            Content::Since(start) => copy(&time_bytes(start.elapsed()), buf, offset),
        }
    }

    fn blocking(&self) -> Blocking {
        Blocking::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbdkit_api::client::Peer;
    use std::sync::Arc;

    fn open(mode: &str, export: &str, client: Option<&Arc<Client>>) -> Result<Box<dyn Connection>> {
        let mut plugin = Info::default();
        plugin.config("mode", Value::new(mode))?;
        plugin.open(&Open { client, readonly: true, export, tls: false })
    }

    fn read(disk: &dyn Connection) -> Vec<u8> {
        let mut buf = vec![0; disk.size().unwrap() as usize];
        disk.pread(&mut buf, 0).unwrap();
        buf
    }

    #[test]
    fn the_export_name_is_reflected() {
        assert_eq!(
            read(&*open("exportname", "h\u{e9}llo", None).unwrap()),
            "h\u{e9}llo".as_bytes()
        );
        assert_eq!(read(&*open("BASE64exportname", "AAH/", None).unwrap()), [0, 1, 255]);
        assert!(open("base64exportname", "?", None).is_err());
        assert!(open("nothing", "", None).is_err());
    }

    #[test]
    fn addresses_are_in_the_usual_notation() {
        let at = |address| {
            let peer = Peer { address, ..Peer::default() };
            let client = Client::new(1, peer, None, Box::new(|| ()));
            open("address", "", Some(&client)).map(|disk| String::from_utf8(read(&*disk)).unwrap())
        };
        let inet = |text: &str| PeerAddress::Inet(text.parse().unwrap());
        assert_eq!(at(inet("127.0.0.1:99")).unwrap(), "127.0.0.1:99");
        assert_eq!(at(inet("[::1]:58912")).unwrap(), "[::1]:58912");
        assert_eq!(at(PeerAddress::Unix).unwrap(), "unix");
        assert!(at(PeerAddress::Unknown).is_err());
    }

    #[test]
    fn times_advance_between_reads() {
        for mode in ["time", "uptime", "conntime"] {
            let disk = open(mode, "", None).unwrap();
            assert!(!disk.can_multi_conn().unwrap());
            let first = read(&*disk);
            std::thread::sleep(Duration::from_millis(2));
            assert!(read(&*disk) > first, "{mode}");
        }
        assert_eq!(
            time_bytes(Duration::new(0x5d8f_24c7, 0x0004_2401 * 1000)),
            [0, 0, 0, 0, 0x5d, 0x8f, 0x24, 0xc7, 0, 4, 0x24, 1]
        );
    }

    #[test]
    fn reading_beyond_the_end_is_an_error() {
        let disk = open("exportname", "abc", None).unwrap();
        let mut buf = [0; 2];
        assert!(disk.pread(&mut buf, 2).is_err());
        assert!(disk.pread(&mut buf, u64::MAX).is_err());
    }
}
