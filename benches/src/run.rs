//! The rounds: each workload with each server in turn, the order turning from round to round.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::command_line::Options;
use crate::failure::Failure;
use crate::fixtures::Fixtures;
use crate::json;
use crate::machine;
use crate::measure::{Setting, measure};
use crate::plan::Kind;
use crate::publish::publish;
use crate::results::{Line, Series};
use crate::table;
use crate::workload::Workload;

/// Runs and reports. A wrong answer of any server ends the run.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if options.servers.contains(&Kind::Ours) && !options.ours.is_file() {
        let path = options.ours.display();
        return Err(Failure::Unavailable(format!(
            "no server at {path}: build it first, or give --ours"
        )));
    }
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
    let machine = format!("{}, load average {}", machine::description(), machine::load_average());
    println!("{machine}");
    println!("{}", table::headings());
    let mut lines = Vec::new();
    for workload in &options.workloads {
        let line = rounds(workload, options, &setting)?;
        println!("{}", table::line(&line));
        lines.push(line);
    }
    // Two busy clients and servers make a load of their own; what is beyond it was other work.
    let machine = format!("{machine} at first, {} at last", machine::load_average());
    println!("\n{}\n{machine}", table::LEGEND);
    report_missing(&lines);
    let path = options.dir.join("results.json");
    fs::write(&path, json::document(&machine, &lines))
        .map_err(|error| Failure::io("write", path.display(), &error))?;
    match &options.publish {
        Some(root) => publish(root, &machine, &lines),
        None => Ok(()),
    }
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
