//! Results, for the tests of what is made of them.
#![forbid(unsafe_code)]

use crate::figures::{Cell, Row};
use crate::measure::Measurement;
use crate::plan::Kind;
use crate::results::{Line, Series};
use crate::unit::Unit;
use crate::workload::WORKLOADS;

/// What one round of a workload gave, by server.
pub(crate) fn line(name: &str, values: &[(Kind, f64)]) -> Line {
    let workload = *WORKLOADS.iter().find(|workload| workload.name == name).unwrap();
    let series = |(kind, value): &(Kind, f64)| Series {
        kind: *kind,
        rounds: vec![Some(Measurement { value: *value, ..Measurement::default() })],
        reason: None,
    };
    Line { workload, series: values.iter().map(series).collect() }
}

/// We are thrice as fast as nbdkit, twice as fast as qemu-nbd and half as fast as the floor.
pub(crate) const FASTER: [(Kind, f64); 4] =
    [(Kind::Ours, 30.0), (Kind::Nbdkit, 10.0), (Kind::QemuNbd, 15.0), (Kind::Floor, 60.0)];

/// A row of the family "small" with these cells.
pub(crate) fn row(workload: &str, cells: Vec<Cell>) -> Row {
    Row {
        workload: workload.to_owned(),
        family: "small".to_owned(),
        unit: Unit::KiloOps,
        targets: String::new(),
        cells,
    }
}

/// A cell of a server of which nothing but this value is known.
pub(crate) fn cell(server: &str, value: f64) -> Cell {
    Cell {
        server: server.to_owned(),
        median: value,
        min: value,
        max: value,
        ratio: None,
        cpu: None,
        calls: None,
    }
}
