//! The command line of the benchmark.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::client::Address;
use crate::floor::Content;
use crate::peer::Peer;
use crate::plan::Kind;
use crate::workload::{WORKLOADS, Workload};

pub(crate) const USAGE: &str = "\
usage: nbdkit-bench run [--quick] [--only WORKLOAD,...] [--servers SERVER,...] [--rounds N] [--seconds S]
                        [--simple] [--ours PATH] [--peer NAME=COMMAND]... [--dir DIR] [--publish DIR]
       nbdkit-bench tables DIR
       nbdkit-bench list
       nbdkit-bench floor --unix PATH | --tcp ADDRESS:PORT  --file PATH | --null BYTES

  --quick    fewer workloads, rounds and seconds
  --only     workloads whose name begins with one of these
  --servers  of: ours, nbdkit, qemu-nbd, nbd-server, floor
  --rounds   how often each server is measured (5)
  --seconds  of each timed run (0.5)
  --simple   do not ask for structured replies
  --ours     our server (the nbdkit beside this program)
  --peer     a further server: a column of its own, NAME; may be repeated
  --dir      for files to serve and results.json (bench, beside the directory of this program)
  --publish  write what was measured to DIR/docs/bench, in files of this kind of machine, and make tables anew
  tables     make the tables of DIR anew, of the figures in DIR/docs/bench

The COMMAND of --peer is split into words as a shell does it, but no shell runs (sh -c is there for who needs one). It must stay
in the foreground. In its words these are replaced:
  {socket}        the path of a Unix socket to listen on       {port}  the TCP port to listen on, on 127.0.0.1
  {file}          the path of a file to serve, raw             {size}  bytes of the export: without {file}, of zeroes
  {certificates}  a directory: require TLS, ca-cert.pem, server-cert.pem, server-key.pem
  {psk}           a file: require TLS with pre-shared keys
  {arguments}     all of the arguments that nbdkit gets, for a server that has nbdkit's command line
A NAME may have several commands. For each row the first is taken that has exactly what the row needs; rows for which none has
it are left out. Examples:
  --peer 'nbdkit1.40=/opt/nbdkit/nbdkit {arguments}'
  --peer 'mine=mined --socket {socket} {file}' --peer 'mine=mined --port {port} {file}'
";

/// What to do.
#[derive(Debug)]
pub(crate) enum Mode {
    Run(Options),
    Floor { address: Address, content: Content },
    Tables { root: PathBuf },
    List,
    Help,
}

/// How to run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) workloads: Vec<Workload>,
    /// Peers of the user's come last.
    pub(crate) servers: Vec<Kind>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) structured: bool,
    pub(crate) ours: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) publish: Option<PathBuf>,
}

pub(crate) fn parse() -> Result<Mode, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(Value(mode)) if mode == "run" => run(parser),
        Some(Value(mode)) if mode == "floor" => floor(parser),
        Some(Value(mode)) if mode == "tables" => Ok(Mode::Tables { root: parser.value()?.into() }),
        Some(Value(mode)) if mode == "list" => Ok(Mode::List),
        Some(Long("help") | Short('h')) => Ok(Mode::Help),
        Some(other) => Err(other.unexpected()),
        None => Err("run, tables, list or floor?".into()),
    }
}

fn run(mut parser: lexopt::Parser) -> Result<Mode, lexopt::Error> {
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.parent().unwrap_or(&program);
    let mut options = Options {
        workloads: WORKLOADS.to_vec(),
        servers: Kind::ALL.to_vec(),
        rounds: 5,
        time: Duration::from_millis(500),
        structured: true,
        ours: beside.join("nbdkit"),
        dir: beside.parent().unwrap_or(beside).join("bench"),
        publish: None,
    };
    let mut peers = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => {
                options.workloads.retain(|workload| workload.quick);
                options.rounds = 3;
                options.time = Duration::from_millis(200);
            }
            Long("only") => {
                let only = parser.value()?.string()?;
                options.workloads = select(&only)?;
            }
            Long("servers") => options.servers = servers(&parser.value()?.string()?)?,
            Long("rounds") => options.rounds = parser.value()?.parse::<usize>()?.max(1),
            Long("seconds") => {
                let seconds = parser.value()?.parse::<f64>()?;
                options.time = Duration::try_from_secs_f64(seconds)
                    .map_err(|error| format!("--seconds {seconds}: {error}"))?;
            }
            Long("simple") => options.structured = false,
            Long("ours") => options.ours = parser.value()?.into(),
            Long("peer") => {
                let taken = Kind::ALL.map(Kind::name);
                Peer::add(&mut peers, &parser.value()?.string()?, &taken)?;
            }
            Long("dir") => options.dir = parser.value()?.into(),
            Long("publish") => options.publish = Some(parser.value()?.into()),
            Long("help") | Short('h') => return Ok(Mode::Help),
            other => return Err(other.unexpected()),
        }
    }
    let whole =
        options.workloads.len() == WORKLOADS.len() && options.servers.len() == Kind::ALL.len();
    if options.publish.is_some() && !whole {
        return Err("--publish needs all workloads and servers".into());
    }
    // For the rest of the run, so that a server can be told by a value that is copied.
    options.servers.extend(peers.into_iter().map(|peer| Kind::Peer(Box::leak(Box::new(peer)))));
    Ok(Mode::Run(options))
}

fn select(only: &str) -> Result<Vec<Workload>, lexopt::Error> {
    let mut chosen = Vec::new();
    for name in only.split(',') {
        // A whole name means that one, even if others begin with it.
        let exact = WORKLOADS.iter().filter(|workload| workload.name == name);
        let mut found: Vec<_> = exact.copied().collect();
        if found.is_empty() {
            found = WORKLOADS
                .iter()
                .filter(|workload| workload.name.starts_with(name))
                .copied()
                .collect();
        }
        if found.is_empty() {
            return Err(format!("no workload begins with {name:?}; try: nbdkit-bench list").into());
        }
        chosen.append(&mut found);
    }
    Ok(chosen)
}

fn servers(names: &str) -> Result<Vec<Kind>, lexopt::Error> {
    let find = |name: &str| {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        kind.ok_or_else(|| format!("no server is called {name:?}").into())
    };
    names.split(',').map(find).collect()
}

fn floor(mut parser: lexopt::Parser) -> Result<Mode, lexopt::Error> {
    let (mut address, mut content) = (None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("unix") => address = Some(Address::Unix(parser.value()?.into())),
            Long("tcp") => address = Some(Address::Tcp(parser.value()?.parse()?)),
            Long("file") => content = Some(Content::File(parser.value()?.into())),
            Long("null") => content = Some(Content::Null(parser.value()?.parse()?)),
            other => return Err(other.unexpected()),
        }
    }
    match (address, content) {
        (Some(address), Some(content)) => Ok(Mode::Floor { address, content }),
        _ => Err("floor: an address and something to serve are needed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_name_selects_one_workload_and_a_beginning_several() {
        let names = |only: &str| -> Vec<&str> {
            select(only).unwrap().iter().map(|workload| workload.name).collect()
        };
        assert_eq!(names("4k-read-d1"), ["4k-read-d1"]);
        assert_eq!(names("null-d64,connects"), ["null-d64", "connects-1", "connects-8"]);
        assert!(select("nonesuch").is_err());
    }
}
