//! The results as tables for a terminal and for pages.
#![forbid(unsafe_code)]

use crate::figures::{Cell, Row};
use crate::plan::Kind;

/// What the columns mean, for under the table.
pub(crate) const LEGEND: &str = "medians ± half the spread; /x: median of the rounds' ratios, more is better; \
    cpu: server CPU time of the whole process tree, µs per request or ms per GB; calls: system calls per request of ours";

/// The columns for these servers, and their widths on a terminal.
fn headings(servers: &[String]) -> Vec<(String, usize)> {
    let mut headings = vec![("workload".to_owned(), 23), ("unit".to_owned(), 11)];
    headings.extend(servers.iter().map(|server| (server.clone(), server.len().max(10))));
    for name in ["/nbdkit", "/best", "/floor"] {
        headings.push((name.to_owned(), 7));
    }
    for server in servers {
        let name =
            if server == Kind::Ours.name() { "cpu".to_owned() } else { format!("cpu {server}") };
        let width = name.len().max(6);
        headings.push((name, width));
    }
    headings.push(("calls".to_owned(), 5));
    headings.push(("targets".to_owned(), 0));
    headings
}

fn cells(row: &Row, servers: &[String]) -> Vec<String> {
    let mut cells = vec![row.workload.clone(), unit_of(row)];
    cells.extend(servers.iter().map(|server| value(row, server)));
    cells.push(ratio(row.ratio(Kind::Nbdkit.name())));
    cells.push(ratio(row.ratio_to_best()));
    cells.push(ratio(row.ratio(Kind::Floor.name())));
    cells.extend(servers.iter().map(|server| cpu(row, server)));
    cells.push(ratio(row.cell(Kind::Ours.name()).and_then(|ours| ours.calls)));
    cells.push(row.targets.clone());
    cells
}

/// The line of headings for a terminal.
pub(crate) fn heading_line(servers: &[String]) -> String {
    let names: Vec<String> = headings(servers).into_iter().map(|(name, _)| name).collect();
    align(&names, servers)
}

/// One line for a terminal.
pub(crate) fn line(row: &Row, servers: &[String]) -> String {
    align(&cells(row, servers), servers)
}

fn align(cells: &[String], servers: &[String]) -> String {
    let widths = headings(servers).into_iter().map(|(_, width)| width);
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
    padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// All rows as a table in Markdown, without columns in which there is nothing.
pub(crate) fn markdown(rows: &[&Row], servers: &[String]) -> String {
    let headings: Vec<String> = headings(servers).into_iter().map(|(name, _)| name).collect();
    let body: Vec<Vec<String>> = rows.iter().map(|row| cells(row, servers)).collect();
    let is_used = |column: &usize| body.iter().any(|cells| !["", "-"].contains(&&*cells[*column]));
    let used: Vec<usize> = (0..headings.len()).filter(is_used).collect();
    let pick = |cells: &[String]| used.iter().map(|column| cells[*column].clone()).collect();
    let body: Vec<Vec<String>> = body.iter().map(|cells| pick(cells)).collect();
    markdown_of(&pick(&headings), &body)
}

/// A table in Markdown.
pub(crate) fn markdown_of(headings: &[String], body: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(headings);
    text += &line(&vec!["---".to_owned(); headings.len()]);
    for cells in body {
        text += &line(cells);
    }
    text
}

/// A server's value and spread; "n/a" if it has none.
pub(crate) fn value(row: &Row, server: &str) -> String {
    let of = |cell: &Cell| format!("{} ±{:.0}%", number(cell.median), cell.spread_percent());
    row.cell(server).map_or_else(|| "n/a".to_owned(), of)
}

/// A server's CPU time.
pub(crate) fn cpu(row: &Row, server: &str) -> String {
    row.cell(server).and_then(|cell| cell.cpu).map_or_else(|| "-".to_owned(), number)
}

/// A ratio, with two places.
pub(crate) fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// The unit of the values, and that of CPU time.
pub(crate) fn unit_of(row: &Row) -> String {
    let cpu = row.unit.of_cpu().map_or_else(String::new, |cpu| format!(" {cpu}"));
    format!("{}{cpu}", row.unit.name())
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
    use crate::testing::{cell, row};

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!([1234.5, 99.95, 12.34, 1.234].map(number), ["1234", "100.0", "12.3", "1.23"]);
    }

    #[test]
    fn every_server_has_a_column_and_what_it_cannot_do_is_marked() {
        let ours = Cell { min: 1.0, cpu: Some(1.5), ..cell("ours", 2.0) };
        let new = Cell { min: 1.0, ..cell("new", 2.0) };
        let row = row("4k", vec![ours, new]);
        let servers = ["ours", "new", "old"].map(str::to_owned);
        assert_eq!(
            markdown(&[&row], &servers),
            "| workload | unit | ours | new | old | cpu |\n\
             | --- | --- | --- | --- | --- | --- |\n\
             | 4k | kop/s µs | 2.00 ±25% | 2.00 ±25% | n/a | 1.50 |\n"
        );
        assert!(heading_line(&servers).contains(" new "));
    }
}
