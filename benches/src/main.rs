//! The benchmark: this server, its peers and a floor under the same workloads, in turn, round after
//! round.
//!
//! `nbdkit-bench run` starts each server for each measurement, drives it from a client of its own
//! (or libnbd's programs), checks what it reads and what it has written, and prints medians,
//! spread, ratios and costs. It trusts the servers that it starts and this machine; nothing here is
//! part of the server.
#![deny(unsafe_code)]

mod client;
mod command_line;
mod failure;
mod figures;
mod fixtures;
mod floor;
mod growth;
mod images;
mod json;
mod libnbd;
mod load;
mod loaded;
mod machine;
mod map;
mod measure;
mod pages;
mod pattern;
mod peer;
mod plan;
mod plot;
mod process_tree;
mod processors;
mod publish;
mod replies;
mod results;
mod run;
mod server;
mod stack;
mod stats;
mod table;
mod target;
#[cfg(test)]
mod testing;
mod unit;
mod version;
mod workload;
mod written;

use std::process::ExitCode;

use command_line::Mode;

fn main() -> ExitCode {
    let result = match command_line::parse() {
        Ok(Mode::Run(options)) => run::run(&options),
        Ok(Mode::Floor { address, content }) => {
            floor::end_with_parent().and_then(|()| floor::run(&address, &content))
        }
        Ok(Mode::Tables { root }) => publish::tables(&root),
        Ok(Mode::List) => {
            for workload in workload::WORKLOADS {
                println!("{}", workload.name);
            }
            Ok(())
        }
        Ok(Mode::Help) => {
            print!("{}", command_line::USAGE);
            Ok(())
        }
        Err(error) => {
            eprintln!("nbdkit-bench: error: {error} (see nbdkit-bench --help)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("nbdkit-bench: error: {failure}");
            ExitCode::FAILURE
        }
    }
}
