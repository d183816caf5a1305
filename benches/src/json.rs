//! The results for other programs: every round of every server, with the units in the names.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::measure::Measurement;
use crate::results::{Line, Series};

/// The whole run.
pub(crate) fn document(machine: &str, lines: &[Line]) -> String {
    let lines: Vec<String> = lines.iter().map(line).collect();
    format!("{{\n\"machine\": {},\n\"workloads\": [\n{}\n]\n}}\n", text(machine), lines.join(",\n"))
}

fn line(line: &Line) -> String {
    let workload = &line.workload;
    let reached = line.reached();
    let targets: Vec<String> = workload
        .targets
        .iter()
        .map(|target| {
            let met = target.met(&reached).map_or("null", |met| if met { "true" } else { "false" });
            let value = number(target.value(&reached));
            format!(
                "{{\"target\": {}, \"value\": {value}, \"met\": {met}}}",
                text(&target.to_string())
            )
        })
        .collect();
    let servers: Vec<String> = line.series.iter().map(server).collect();
    format!(
        "{{\"name\": {}, \"family\": {}, \"unit\": {}, \"ratio_nbdkit\": {}, \"ratio_best_peer\": {}, \
         \"ratio_floor\": {}, \"targets\": [{}], \"servers\": [\n  {}]}}",
        text(workload.name),
        text(workload.family),
        text(workload.unit.name()),
        number(reached.nbdkit),
        number(reached.best),
        number(reached.floor),
        targets.join(", "),
        servers.join(",\n  "),
    )
}

fn server(series: &Series) -> String {
    let rounds: Vec<String> = series.rounds.iter().flatten().map(round).collect();
    let reason = series.reason.as_deref().map_or_else(|| "null".to_owned(), text);
    let name = text(series.kind.name());
    format!(
        "{{\"name\": {name}, \"not_available\": {reason}, \"rounds\": [{}]}}",
        rounds.join(", ")
    )
}

fn round(measurement: &Measurement) -> String {
    format!(
        "{{\"value\": {}, \"operations\": {}, \"bytes\": {}, \"cpu_ns\": {}, \"pss_kib\": {}, \
         \"syscalls_per_request\": {}, \"fairness\": {}}}",
        number(Some(measurement.value)),
        measurement.operations,
        measurement.bytes,
        measurement.cpu.as_nanos(),
        measurement.pss_kib,
        number(measurement.syscalls),
        number(measurement.fairness),
    )
}

fn number(value: Option<f64>) -> String {
    // JSON has no infinities.
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| "null".to_owned(), |value| value.to_string())
}

fn text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            // Writing to a string cannot fail.
            '\0'..='\x1f' => drop(write!(quoted, "\\u{:04x}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_and_what_is_not_a_number_is_null() {
        assert_eq!(text("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
        assert_eq!(number(Some(f64::INFINITY)), "null");
        assert_eq!(number(Some(1.5)), "1.5");
    }
}
