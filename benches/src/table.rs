//! The results as a table for a terminal and for the README.
#![forbid(unsafe_code)]

use crate::measure::Measurement;
use crate::plan::Kind;
use crate::results::{Line, Series};
use crate::workload::Unit;

/// The columns, in order.
const HEADINGS: [&str; 15] = [
    "workload",
    "unit",
    "ours",
    "nbdkit",
    "qemu-nbd",
    "nbd-server",
    "floor",
    "/nbdkit",
    "/best",
    "/floor",
    "cpu",
    "cpu nbdkit",
    "cpu floor",
    "calls",
    "targets",
];

const WIDTHS: [usize; 15] = [19, 11, 10, 10, 10, 10, 10, 7, 6, 6, 6, 10, 9, 5, 0];

/// What the columns mean, for under the table.
pub(crate) const LEGEND: &str = "medians ± half the spread; /x: median of the rounds' ratios, more is better; \
    cpu: server CPU time of the whole process tree, µs per request or ms per GB; calls: system calls per request of ours";

/// The line of headings.
pub(crate) fn headings() -> String {
    align(&HEADINGS.map(str::to_owned))
}

/// One line for a terminal.
pub(crate) fn line(line: &Line) -> String {
    align(&cells(line))
}

/// All lines as a table in Markdown.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = row(&HEADINGS.map(str::to_owned));
    text += &row(&HEADINGS.map(|_| "---".to_owned()));
    for line in lines {
        text += &row(&cells(line));
    }
    text
}

fn align(cells: &[String]) -> String {
    let padded = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}"));
    padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

fn cells(line: &Line) -> [String; 15] {
    let value = |kind| line.of(kind).map_or_else(|| "-".to_owned(), value_of);
    let ratio =
        |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let cpu = |kind| {
        line.of(kind).and_then(|series| cpu_of(line, series)).unwrap_or_else(|| "-".to_owned())
    };
    let calls =
        line.of(Kind::Ours).and_then(|ours| ours.summary(|measurement| measurement.syscalls));
    [
        line.workload.name.to_owned(),
        unit_of(line),
        value(Kind::Ours),
        value(Kind::Nbdkit),
        value(Kind::QemuNbd),
        value(Kind::NbdServer),
        value(Kind::Floor),
        ratio(line.ratio(Kind::Nbdkit)),
        ratio(line.ratio_to_best()),
        ratio(line.ratio(Kind::Floor)),
        cpu(Kind::Ours),
        cpu(Kind::Nbdkit),
        cpu(Kind::Floor),
        ratio(calls.map(|calls| calls.median)),
        line.verdict(),
    ]
}

fn value_of(series: &Series) -> String {
    series.value().map_or_else(
        || "n/a".to_owned(),
        |summary| format!("{} ±{:.0}%", number(summary.median), summary.spread_percent()),
    )
}

/// The unit of the values, and that of CPU time.
fn unit_of(line: &Line) -> String {
    match line.workload.unit {
        unit @ Unit::Megabytes => format!("{} ms/GB", unit.name()),
        unit @ (Unit::KiloOps | Unit::Connections) => format!("{} µs", unit.name()),
        unit @ (Unit::Milliseconds | Unit::Mebibytes) => unit.name().to_owned(),
    }
}

/// CPU time per request, or per gigabyte where the unit is bytes.
fn cpu_of(line: &Line, series: &Series) -> Option<String> {
    let cpu = match line.workload.unit {
        Unit::Megabytes => series.summary(Measurement::cpu_per_gigabyte),
        Unit::KiloOps | Unit::Connections => {
            series.summary(|measurement| measurement.cpu_per_operation().map(|cpu| cpu / 1e3))
        }
        Unit::Milliseconds | Unit::Mebibytes => None,
    };
    cpu.map(|cpu| number(cpu.median))
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([1234.5, 99.95, 12.34, 1.234].map(number), ["1234", "100.0", "12.3", "1.23"]);
    }
}
