//! The rounds: each workload with each server in turn, the order turning from round to round.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::command_line::Options;
use crate::failure::Failure;
use crate::figures::{Figures, Row};
use crate::fixtures::Fixtures;
use crate::growth;
use crate::json;
use crate::machine::{self, Machine};
use crate::measure::{Setting, measure};
use crate::plan::Kind;
use crate::publish::publish;
use crate::results::{Line, Series};
use crate::table;
use crate::version::{self, version_of};
use crate::workload::Workload;

/// Runs and reports. A wrong answer of any server ends the run.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.servers.contains(&Kind::Ours) && !options.ours.is_file() {
        let path = options.ours.display();
        return Err(Failure::Unavailable(format!(
            "no server at {path}: build it first, or give --ours"
        )));
    }
    find_peers(&options.servers)?;
    // For many idle connections, here and in the servers, which inherit it.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    }
    let setting = Setting {
        ours: options.ours.clone(),
        fixtures: Fixtures::new(&options.dir)?,
        time: options.time,
        structured: options.structured,
    };
    let names: Vec<String> = options.servers.iter().map(|kind| kind.name().to_owned()).collect();
    let machine = Machine::this();
    let load = machine::load_average();
    println!("{}, load average {load}", machine.text);
    println!("{}", table::heading_line(&names));
    let mut lines = Vec::new();
    let mut rows = Vec::new();
    for workload in &options.workloads {
        let line = rounds(workload, options, &setting)?;
        let row = Row::of(&line);
        println!("{}", table::line(&row, &names));
        lines.push(line);
        rows.push(row);
    }
    // Two busy clients and servers make a load of their own; what is beyond it was other work.
    let load = format!(
        "{load} at first, {} at last, TCP by {}",
        machine::load_average(),
        machine::congestion_control()
    );
    println!("\n{}\n{}, load average {load}", table::LEGEND, machine.text);
    report_missing(&lines);
    for table in growth::tables(&rows, &names) {
        println!("\n{}", table.text());
    }
    let path = options.dir.join("results.json");
    let machine_and_load = format!("{}, load average {load}", machine.text);
    fs::write(&path, json::document(&machine_and_load, &lines))
        .map_err(|error| Failure::io("write", path.display(), &error))?;
    let Some(root) = &options.publish else { return Ok(()) };
    let version = |kind: &Kind| (kind.name().to_owned(), version_of(*kind, &options.ours));
    let figures = Figures {
        kind: machine.kind,
        machine: machine.text,
        date: machine::date(),
        load,
        servers: options.servers.iter().map(version).collect(),
        rows,
    };
    publish(root, &figures)
}

/// Stops before the first row if a program of a `--peer` is not there.
fn find_peers(servers: &[Kind]) -> Result<(), Failure> {
    for kind in servers {
        let Kind::Peer(peer) = kind else { continue };
        for program in peer.programs() {
            if !version::is_program(Path::new(&program)) {
                let program = Path::new(&program).display();
                let name = kind.name();
                return Err(Failure::Unavailable(format!("--peer {name}: no program {program}")));
            }
        }
    }
    Ok(())
}

/// Says why there are no numbers, each reason once.
fn report_missing(lines: &[Line]) {
    let mut said = HashSet::new();
    for line in lines {
        for series in &line.series {
            let Some(reason) = &series.reason else { continue };
            if said.insert((series.kind, reason)) {
                println!("{}: {}: not available: {reason}", line.workload.name, series.kind.name());
            }
        }
    }
}

fn rounds(workload: &Workload, options: &Options, setting: &Setting) -> Result<Line, Failure> {
    let series = |kind: &Kind| Series { kind: *kind, rounds: Vec::new(), reason: None };
    let mut series: Vec<Series> = options.servers.iter().map(series).collect();
    for round in 0..options.rounds {
        for turn in 0..series.len() {
            let index = (turn + round) % series.len();
            let one = &mut series[index];
            if one.reason.is_some() {
                one.rounds.push(None);
                continue;
            }
            match measure(workload, one.kind, setting, round == 0) {
                Ok(measurement) => one.rounds.push(Some(measurement)),
                Err(Failure::Unavailable(reason)) => {
                    one.reason = Some(reason);
                    one.rounds.push(None);
                }
                Err(Failure::Wrong(what)) => {
                    let (name, server) = (workload.name, one.kind.name());
                    return Err(Failure::Wrong(format!("{name}: {server}: wrong answer: {what}")));
                }
            }
        }
    }
    Ok(Line { workload: *workload, series })
}
