//! A web server on the loopback interface, for programs that fetch disks: `HEAD`, `GET`, ranges,
//! connections that stay open, and paths that are served only to who sends a certain header.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

/// What is served.
#[derive(Debug)]
struct Site {
    content: Vec<u8>,
    /// First component of a path, and the header lines, in lower case, that a request for it must
    /// have.
    guarded: &'static [(&'static str, &'static [&'static str])],
}

/// Serves `content` at every path, until the process ends. A path below `/NAME/` of `guarded`
/// answers 401 unless the request has all of that name's header lines, which are compared without
/// regard to case. Returns the address: `http://127.0.0.1:PORT`.
///
/// # Panics
/// If there is no free port.
#[must_use]
pub fn serve(
    content: Vec<u8>,
    guarded: &'static [(&'static str, &'static [&'static str])],
) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let site = Arc::new(Site { content, guarded });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let site = Arc::clone(&site);
            std::thread::spawn(move || site.answer_requests(&stream));
        }
    });
    format!("http://127.0.0.1:{port}")
}

impl Site {
    /// Answers what comes on one connection until the client ends it.
    fn answer_requests(&self, stream: &TcpStream) {
        let mut lines = BufReader::new(stream);
        loop {
            let mut request = Vec::new();
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|length| length > 2) {
                request.push(std::mem::take(&mut line).trim_end().to_ascii_lowercase());
            }
            let Some(first) = request.first() else { return };
            let (status, body) = if self.admits(&request) {
                self.body(&request)
            } else {
                ("401 Unauthorized", &[][..])
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\nContent-Length: {length}\r\n\r\n"
            );
            let body = if first.starts_with("head") { &[][..] } else { body };
            let mut stream = stream;
            if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err() {
                return;
            }
        }
    }

    fn admits(&self, request: &[String]) -> bool {
        let path = request[0].split(' ').nth(1).unwrap_or_default();
        let guard = path.split('/').nth(1).unwrap_or_default();
        let wanted = self.guarded.iter().find(|(name, _)| *name == guard);
        wanted.is_none_or(|(_, lines)| lines.iter().all(|line| request.iter().any(|it| it == line)))
    }

    fn body(&self, request: &[String]) -> (&'static str, &[u8]) {
        let range = request.iter().find_map(|line| {
            let (from, to) = line.strip_prefix("range: bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?))
        });
        match range {
            Some((from, to)) => {
                ("206 Partial Content", &self.content[from..=to.min(self.content.len() - 1)])
            }
            None => ("200 OK", &self.content),
        }
    }
}
