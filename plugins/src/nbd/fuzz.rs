//! For the fuzz target: what an upstream server sends, without a socket.

#![forbid(unsafe_code)]

use nbdkit_api::{Errno, Error, Result};

use super::decode::{Decoder, Step};
use super::haggle::{Form, Greeted, Stream, TlsMode, greet};
use super::table::{KEPT, Kind, Table};
use super::uri;

/// A server that has written all its bytes beforehand.
struct Script<'a>(&'a [u8]);

impl Stream for Script<'_> {
    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        let (taken, rest) =
            self.0.split_at_checked(buf.len()).ok_or_else(|| Error::silent(Errno::ESHUTDOWN))?;
        buf.copy_from_slice(taken);
        self.0 = rest;
        Ok(())
    }

    fn write_all(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn start_tls(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A handshake with a server that sends these bytes; `purpose` chooses what is wanted of it.
///
/// # Panics
/// If the handshake does, or believes what cannot be.
pub fn handshake(purpose: u8, bytes: &[u8]) {
    let tls = [TlsMode::Off, TlsMode::On, TlsMode::Require][usize::from(purpose) % 3];
    let mut script = Script(bytes);
    let Ok(greeted) = greet(&mut script, tls) else { return };
    match (greeted, purpose / 3 % 3) {
        (Greeted::Newstyle(haggling), 0) => {
            let Ok(facts) = haggling.go("disk") else { return };
            assert!(i64::try_from(facts.size).is_ok());
            assert!(facts.context.is_none() || facts.form != Form::Simple);
        }
        (Greeted::Newstyle(haggling), 1) => {
            let _ = haggling.list();
        }
        (Greeted::Newstyle(haggling), _) => {
            let _ = haggling.default_name();
        }
        (Greeted::Oldstyle(facts), _) => {
            assert!(tls != TlsMode::Require && i64::try_from(facts.size).is_ok());
        }
    }
}

/// The requests that are outstanding, in slots from 0 on. Those in ABANDONED have lost their
/// clients.
const KINDS: [Kind; 7] = [
    Kind::Plain,
    Kind::Read { offset: 0x1000, length: 64 },
    Kind::Read { offset: 0x1000, length: KEPT + 64 },
    Kind::Status { context: 1 },
    Kind::Read { offset: 0x1000, length: KEPT + 64 },
    Kind::Plain,
    Kind::Read { offset: 0x1000, length: KEPT + 64 },
];
/// The last one is of a pipeline.
const QUEUED: usize = 6;
const ABANDONED: [u32; 2] = [4, 5];

/// Replies from a server that sends these bytes, in pieces of a length that `choice` chooses, as
/// its lowest bits do the form of the replies.
///
/// # Panics
/// If the decoder does, or believes what cannot be.
pub fn replies(choice: u8, mut bytes: &[u8]) {
    let form = [Form::Simple, Form::Structured, Form::Extended][usize::from(choice) % 3];
    let piece = [1, 7, 100, 100_000][usize::from(choice) / 3 % 4];
    let mut table = Table::default();
    let mut decoder = Decoder::new(form);
    let mut buffers: Vec<Vec<u8>> = (0..)
        .zip(KINDS)
        .map(|(number, kind)| {
            match number {
                QUEUED => table.begin_queued(kind),
                _ => table.begin(kind),
            };
            match kind {
                Kind::Read { length, .. } => vec![0xee; length as usize],
                Kind::Plain | Kind::Status { .. } => Vec::new(),
            }
        })
        .collect();
    for index in ABANDONED {
        table.abandon(index);
    }
    let mut own = 0;
    loop {
        let buf = &mut buffers[own as usize];
        let Ok(step) = decoder.step(&mut table, own, buf) else { return };
        match step {
            Step::Own(other) => {
                assert!(other != own && !ABANDONED.contains(&other));
                own = other;
                continue;
            }
            Step::Direct { at, left } => {
                let count = bytes.len().min(left).min(piece);
                buf[at..at + count].copy_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                if count == 0 || decoder.received(count, &mut table).is_err() {
                    return;
                }
            }
            Step::Kept { index, at, left } => {
                let count = bytes.len().min(left).min(piece);
                table.slot(index).kept()[at..][..count].copy_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                if count == 0 || decoder.received(count, &mut table).is_err() {
                    return;
                }
            }
            Step::Read => {
                let space = decoder.space(table.expects_long());
                let count = bytes.len().min(space.len()).min(piece);
                space[..count].copy_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                decoder.filled(count);
                if count == 0 {
                    break;
                }
            }
        }
    }
    for (index, kind) in (0..).zip(KINDS) {
        if !table.is_done(index) {
            continue;
        }
        let Ok(reply) = table.take(index) else { continue };
        match kind {
            Kind::Read { length, .. } => {
                assert!(reply.data.is_empty() || reply.data.len() == length as usize);
            }
            Kind::Status { .. } => {
                assert!(!reply.extents.is_empty() && reply.extents.iter().all(|it| it.0 > 0));
            }
            Kind::Plain => assert!(reply.data.is_empty() && reply.extents.is_empty()),
        }
    }
}

/// A URI.
///
/// # Panics
/// If the parser does, or an export's name is none.
pub fn uri(text: &str) {
    match uri::parse(text) {
        Ok(uri) => assert!(!uri.export.contains('\0')),
        Err(why) => assert!(!why.message().contains('\n')),
    }
}
