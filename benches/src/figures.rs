//! The figures of one kind of machine, as they are kept in docs/bench/KIND.tsv: medians, extremes,
//! ratios and costs. Tables and plots are made of them, now or later.
//!
//! One fact for each line, tab between fields: `machine`, `kind`, `date`, `load`, then a `server`
//! line for each server, and for each workload a `row` with a `cell` for each server that can do
//! it.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::measure::Measurement;
use crate::plan::Kind;
use crate::results::{Line, Series};
use crate::unit::Unit;

/// One server's figures in one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) server: String,
    /// In the unit of the row.
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// How many times as good as this server ours is.
    pub(crate) ratio: Option<f64>,
    /// Processor time of the server, in the unit's measure of it.
    pub(crate) cpu: Option<f64>,
    /// System calls per request.
    pub(crate) calls: Option<f64>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) family: String,
    pub(crate) unit: Unit,
    /// What was wanted and whether it was met.
    pub(crate) targets: String,
    pub(crate) cells: Vec<Cell>,
}

/// All of one run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figures {
    /// The machine's kind, a name for files.
    pub(crate) kind: String,
    /// The same in words.
    pub(crate) machine: String,
    /// YYYY-MM-DD.
    pub(crate) date: String,
    /// What else mattered: load averages, and by what TCP decides when to send.
    pub(crate) load: String,
    /// Names and versions.
    pub(crate) servers: Vec<(String, String)>,
    pub(crate) rows: Vec<Row>,
}

impl Cell {
    fn of(line: &Line, series: &Series) -> Option<Cell> {
        let value = series.value()?;
        let cpu = match line.workload.unit {
            Unit::Megabytes => series.summary(Measurement::cpu_per_gigabyte),
            Unit::KiloOps | Unit::Connections => {
                series.summary(|measurement| measurement.cpu_per_operation().map(|cpu| cpu / 1e3))
            }
            Unit::Milliseconds | Unit::Mebibytes => None,
        };
        let calls = series.summary(|measurement| measurement.syscalls);
        Some(Cell {
            server: series.kind.name().to_owned(),
            median: value.median,
            min: value.min,
            max: value.max,
            ratio: line.ratio(series.kind).filter(|_| series.kind != Kind::Ours),
            cpu: cpu.map(|cpu| cpu.median),
            calls: calls.map(|calls| calls.median),
        })
    }

    /// Half the distance between the extremes, in percent of the median.
    pub(crate) fn spread_percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median * 100.0 }
    }
}

impl Row {
    pub(crate) fn of(line: &Line) -> Row {
        Row {
            workload: line.workload.name.to_owned(),
            family: line.workload.family.to_owned(),
            unit: line.workload.unit,
            targets: line.verdict(),
            cells: line.series.iter().filter_map(|series| Cell::of(line, series)).collect(),
        }
    }

    pub(crate) fn cell(&self, server: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.server == server)
    }

    /// How many times as good as this server ours is.
    pub(crate) fn ratio(&self, server: &str) -> Option<f64> {
        self.cell(server)?.ratio
    }

    /// Our ratio to the peer that does best. The floor is no peer.
    pub(crate) fn ratio_to_best(&self) -> Option<f64> {
        let peers = self.cells.iter().filter(|cell| cell.server != Kind::Floor.name());
        peers.filter_map(|cell| cell.ratio).min_by(f64::total_cmp)
    }
}

const HEAD: &str = "# Written by nbdkit-bench; tables and plots are made of it (nbdkit-bench tables).\n\
    # row: workload, family, unit, targets. cell: server, median, min, max, how many times as good \
    ours is, CPU time of the server (µs per request, ms per GB), system calls per request.\n";

impl Figures {
    /// The text of the file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = HEAD.to_owned();
        let mut line = |fields: &[&str]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", fields.join("\t"));
        };
        line(&["machine", &self.machine]);
        line(&["kind", &self.kind]);
        line(&["date", &self.date]);
        line(&["load", &self.load]);
        for (name, version) in &self.servers {
            line(&["server", name, version]);
        }
        for row in &self.rows {
            line(&["row", &row.workload, &row.family, row.unit.name(), &row.targets]);
            for cell in &row.cells {
                let numbers = [
                    Some(cell.median),
                    Some(cell.min),
                    Some(cell.max),
                    cell.ratio,
                    cell.cpu,
                    cell.calls,
                ];
                let numbers = numbers.map(number);
                let mut fields = vec!["cell", &cell.server];
                fields.extend(numbers.iter().map(String::as_str));
                line(&fields);
            }
        }
        text
    }

    /// Reads such a text. An error names the line.
    pub(crate) fn parse(text: &str) -> Result<Figures, String> {
        let mut figures = Figures {
            kind: String::new(),
            machine: String::new(),
            date: String::new(),
            load: String::new(),
            servers: Vec::new(),
            rows: Vec::new(),
        };
        for (index, line) in text.lines().enumerate() {
            figures.take(line).map_err(|error| format!("line {}: {error}", index + 1))?;
        }
        if figures.kind.is_empty() || figures.date.is_empty() || figures.servers.is_empty() {
            return Err("kind, date or servers are missing".to_owned());
        }
        Ok(figures)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            [comment] if comment.starts_with('#') => {}
            ["machine", value] => value.clone_into(&mut self.machine),
            ["kind", value] => value.clone_into(&mut self.kind),
            ["date", value] => value.clone_into(&mut self.date),
            ["load", value] => value.clone_into(&mut self.load),
            ["server", name, version] => self.servers.push((name.to_owned(), version.to_owned())),
            ["row", workload, family, unit, targets] => self.rows.push(Row {
                workload: workload.to_owned(),
                family: family.to_owned(),
                unit: Unit::named(unit).ok_or_else(|| format!("no unit: {unit:?}"))?,
                targets: targets.to_owned(),
                cells: Vec::new(),
            }),
            ["cell", server, median, min, max, ratio, cpu, calls] => {
                if !self.servers.iter().any(|(name, _)| name == server) {
                    return Err(format!("no server line for {server:?}"));
                }
                let row = self.rows.last_mut().ok_or("a cell before the first row")?;
                row.cells.push(Cell {
                    server: server.to_owned(),
                    median: needed(median)?,
                    min: needed(min)?,
                    max: needed(max)?,
                    ratio: value(ratio)?,
                    cpu: value(cpu)?,
                    calls: value(calls)?,
                });
            }
            _ => return Err(format!("neither a known fact nor a comment: {line:?}")),
        }
        Ok(())
    }
}

/// Four digits that matter; "-" for nothing.
fn number(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return "-".to_owned() };
    let digits = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 1.0 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn value(text: &str) -> Result<Option<f64>, String> {
    match text {
        "-" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("no number: {text:?}")),
    }
}

fn needed(text: &str) -> Result<f64, String> {
    value(text)?.ok_or_else(|| "a number is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FASTER, line};

    fn figures() -> Figures {
        let server = |name: &str| (name.to_owned(), format!("{name} 1.0"));
        Figures {
            kind: "some-cpu".to_owned(),
            machine: "Some CPU".to_owned(),
            date: "2026-01-02".to_owned(),
            load: "0.1 at first".to_owned(),
            servers: ["ours", "nbdkit", "qemu-nbd", "floor"].map(server).to_vec(),
            rows: vec![Row::of(&line("4k-read-d1", &FASTER))],
        }
    }

    #[test]
    fn the_best_peer_is_the_one_that_leaves_us_the_smallest_ratio() {
        let row = &figures().rows[0];
        assert_eq!(row.ratio("nbdkit"), Some(3.0));
        assert_eq!(row.ratio_to_best(), Some(2.0));
        assert_eq!(row.ratio("floor"), Some(0.5));
        assert_eq!(row.ratio("ours"), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let figures = figures();
        assert_eq!(Figures::parse(&figures.to_text()), Ok(figures));
    }

    #[test]
    fn a_file_with_a_mistake_names_the_line() {
        let text = figures().to_text();
        let spoilt = text.replace("\t10.00\t", "\tten\t");
        assert_eq!(Figures::parse(&spoilt).unwrap_err(), "line 13: no number: \"ten\"");
        let spoilt = text.replace("cell\tfloor", "cell\tceiling");
        assert!(Figures::parse(&spoilt).unwrap_err().contains("no server line"));
        assert!(Figures::parse("").is_err());
    }
}
