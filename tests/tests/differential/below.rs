//! What a filter asks of the layer below it, from the log filter there; and clients of one server
//! whose requests a test checks itself.

use std::os::unix::net::UnixStream;

use nbd_protocol::constants::{NbdError, Rep};
use nbdkit_tests::differential::Row;
use nbdkit_tests::processes::eventually;
use nbdkit_tests::transcript::Session;
use nbdkit_tests::{Ask, Client, Server};

/// Compares what the client of `script` gets, and what the layer below `filter` is asked for it,
/// but for extents. Both servers have the log filter there, and then `rest` of the command line.
pub(crate) fn compare(
    name: &str,
    variant: &str,
    filter: &str,
    rest: &[&str],
    script: impl Fn(&mut Session),
) {
    let filter = format!("--filter={filter}");
    let arguments = [&[&*filter, "--filter=log"], rest, &["logfile={dir}/log"]].concat();
    Row::new(name, &arguments).variant(variant).compare(|s| {
        script(s);
        s.disconnect();
        note_requests(s);
    });
}

/// Adds the requests in the log to the transcript, once the connection has ended.
fn note_requests(s: &mut Session) {
    let path = s.dir().join("log");
    let mut text = String::new();
    eventually("the log has the end of the connection", || {
        text = std::fs::read_to_string(&path).unwrap();
        text.contains("Disconnect")
    });
    for line in text.lines() {
        // Date, time, connection, what, id, parameters.
        let fields: Vec<_> = line.split(' ').skip(3).collect();
        let [what, id, parameters @ ..] = &fields[..] else { continue };
        if id.starts_with("id=") && !what.starts_with("...") && *what != "Extents" {
            s.note(format!("below: {what} {}", parameters.join(" ")));
        }
    }
}

/// A client of an export, with structured replies and `base:allocation`.
pub(crate) fn open_export(server: &Server, export: &str) -> Client<UnixStream> {
    let mut client = server.connect();
    client.handshake().unwrap();
    client.structured_replies().unwrap();
    client.set_meta_context(export, &["base:allocation"]).unwrap();
    assert_eq!(client.go(export, &[]).unwrap().end.reply, Rep::ACK);
    client
}

/// A client of the default export.
pub(crate) fn open(server: &Server) -> Client<UnixStream> {
    open_export(server, "")
}

pub(crate) fn ask(client: &mut Client<UnixStream>, ask: &Ask) -> Option<NbdError> {
    client.call(ask).unwrap().nbd_error()
}

/// Writes `length` bytes of one value; panics on errors.
pub(crate) fn write(client: &mut Client<UnixStream>, offset: u64, length: usize, byte: u8) {
    assert_eq!(ask(client, &Ask::write(offset, vec![byte; length])), None);
}

pub(crate) fn read(client: &mut Client<UnixStream>, offset: u64, length: u64) -> Vec<u8> {
    let reply = client.call(&Ask::read(offset, length)).unwrap();
    assert_eq!(reply.error.map(|error| error.message), None);
    reply.data
}

pub(crate) fn extents(
    client: &mut Client<UnixStream>,
    offset: u64,
    length: u64,
) -> Vec<(u64, u64)> {
    let reply = client.call(&Ask::block_status(offset, length)).unwrap();
    assert_eq!(reply.error.as_ref().map(|error| &error.message), None);
    reply.extents()
}
