//! Rows of growth: one workload with a parameter that grows, and what a request then costs.
//!
//! The parameter is the last part of the workload's name: `growth-clients-64`.
#![forbid(unsafe_code)]

use crate::figures::Row;
use crate::table::{markdown_of, number};

/// The family of these rows.
pub(crate) const FAMILY: &str = "growth";

/// The beginning of the names of a series, what its parameter is, and what a request of it is.
const SERIES: [(&str, &str, &str); 9] = [
    ("clients", "clients", "reads of 4 KiB, 8 in flight for each client, file in the page cache"),
    ("connects", "clients", "connections, so many clients at a time"),
    ("beside", "idle clients", "connections, one at a time, beside so many idle ones"),
    ("filters", "filters", "reads of 4 KiB, 16 in flight, zeroes through so many filters"),
    ("size", "export", "reads of 4 KiB, 16 in flight, all over an empty RAM disk of this size"),
    (
        "map",
        "extents",
        "extents in replies to block status, about a sparse file of 4 GiB with so many",
    ),
    (
        "sparse",
        "extents",
        "reads of 4 KiB, 16 in flight, all over a sparse file of 4 GiB with so many extents",
    ),
    ("dir", "files", "connections to one of so many files in dir="),
    (
        "list",
        "files",
        "names in replies to NBD_OPT_LIST, one list for each connection, so many files in dir=",
    ),
];

/// One series as a table.
#[derive(Debug)]
pub(crate) struct Growth {
    /// What is counted.
    pub(crate) title: &'static str,
    headings: Vec<String>,
    body: Vec<Vec<String>>,
}

/// The tables of the rows that belong to a series.
pub(crate) fn tables(rows: &[Row], servers: &[String]) -> Vec<Growth> {
    let mut tables = Vec::new();
    for (series, parameter, title) in SERIES {
        let of_series: Vec<(&str, &Row)> = rows
            .iter()
            .filter(|row| row.family == FAMILY)
            .filter_map(|row| {
                let (beginning, value) = row.workload.rsplit_once('-')?;
                (beginning.strip_prefix("growth-")? == series).then_some((value, row))
            })
            .collect();
        let Some((_, first)) = of_series.first() else { continue };
        let can = |server: &&String| of_series.iter().any(|(_, row)| row.cell(server).is_some());
        let servers: Vec<&String> = servers.iter().filter(can).collect();
        let mut headings = vec![parameter.to_owned()];
        headings.extend(servers.iter().map(|server| format!("{server}, {}", first.unit.name())));
        headings.extend(servers.iter().map(|server| format!("cpu {server}, µs")));
        let body = of_series.iter().map(|(value, row)| {
            let values = servers.iter().map(|server| value_of(row, server));
            let costs = servers.iter().map(|server| cost(&of_series, row, server));
            std::iter::once((*value).to_owned()).chain(values).chain(costs).collect()
        });
        tables.push(Growth { title, headings, body: body.collect() });
    }
    tables
}

fn value_of(row: &Row, server: &str) -> String {
    row.cell(server).map_or_else(|| "n/a".to_owned(), |cell| number(cell.median))
}

/// CPU time of one request, and how many times that of the first row that the server can do.
fn cost(series: &[(&str, &Row)], row: &Row, server: &str) -> String {
    let cpu = |row: &Row| row.cell(server).and_then(|cell| cell.cpu);
    let first = series.iter().find_map(|(_, row)| cpu(row)).filter(|first| *first > 0.0);
    match (cpu(row), first) {
        (Some(cpu), Some(first)) => format!("{} ×{:.2}", number(cpu), cpu / first),
        _ => "-".to_owned(),
    }
}

impl Growth {
    pub(crate) fn markdown(&self) -> String {
        markdown_of(&self.headings, &self.body)
    }

    /// For a terminal, in columns.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<&Vec<String>> = std::iter::once(&self.headings).chain(&self.body).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> =
            (0..self.headings.len()).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = format!("{}\n", self.title);
        for line in lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Cell;
    use crate::testing::{self, cell};

    fn row(workload: &str, cpu: f64) -> Row {
        let ours = Cell { cpu: Some(cpu), ..cell("ours", 100.0) };
        let row = testing::row(workload, vec![ours, cell("nbdkit", 100.0)]);
        Row { family: FAMILY.to_owned(), ..row }
    }

    #[test]
    fn costs_are_shown_beside_the_first_of_the_series() {
        let rows = [row("growth-clients-1", 2.0), row("growth-clients-8", 3.0), row("4k", 1.0)];
        let servers = ["ours", "nbdkit", "floor"].map(str::to_owned);
        let tables = tables(&rows, &servers);
        assert_eq!(tables.len(), 1);
        assert_eq!(
            tables[0].markdown(),
            "| clients | ours, kop/s | nbdkit, kop/s | cpu ours, µs | cpu nbdkit, µs |\n\
             | --- | --- | --- | --- | --- |\n\
             | 1 | 100 | 100 | 2.00 ×1.00 | - |\n\
             | 8 | 100 | 100 | 3.00 ×1.50 | - |\n"
        );
        assert!(tables[0].text().contains("8        100"));
    }
}
