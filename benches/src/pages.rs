//! The pages that are made of figures: one for each kind of machine, a short table for the README,
//! and one of all kinds for docs/speed.md.
#![forbid(unsafe_code)]

use crate::figures::{Figures, Row};
use crate::growth;
use crate::plan::Kind;
use crate::plot;
use crate::table::{self, markdown_of, ratio, unit_of, value};
use crate::workload::FAMILIES;

/// Rows of the README's table, besides the best and the worst, while there are less than
/// [`SHORT_ROWS`].
const SHORT: [&str; 8] = [
    "4k-read-d1",
    "4k-read-d16",
    "256k-read-d8",
    "connects-8",
    "tls-4k-read-d16",
    "4k-write-d16",
    "idle-1000",
    "start-up",
];
const SHORT_ROWS: usize = 8;

fn names(figures: &Figures) -> Vec<String> {
    figures.servers.iter().map(|(name, _)| name.clone()).collect()
}

/// Rows that are compared with peers.
fn compared(figures: &Figures) -> Vec<&Row> {
    figures.rows.iter().filter(|row| row.family != growth::FAMILY).collect()
}

/// The rows with the greatest and the least ratio to the best peer.
fn extremes<'a>(rows: &[&'a Row]) -> Option<(&'a Row, &'a Row)> {
    let order = |one: &&&Row, other: &&&Row| {
        let of = |row: &Row| row.ratio_to_best().unwrap_or(f64::NAN);
        of(one).total_cmp(&of(other))
    };
    let with_ratio = || rows.iter().filter(|row| row.ratio_to_best().is_some());
    Some((with_ratio().max_by(order)?, with_ratio().min_by(order)?))
}

/// The plots of a kind of machine: names of files and what is in them.
pub(crate) fn plots(figures: &Figures) -> Vec<(String, &'static str, String)> {
    let machine = format!("{}, {}", figures.machine, figures.date);
    let rows = compared(figures);
    let mut plots = Vec::new();
    for (family, title) in FAMILIES {
        let members: Vec<&Row> = rows.iter().filter(|row| row.family == family).copied().collect();
        if !members.is_empty() {
            let name = format!("{}-{family}.svg", figures.kind);
            plots.push((name, title, plot::svg(title, &machine, &members)));
        }
    }
    plots
}

/// The page of a kind of machine, for docs/bench.
pub(crate) fn page(figures: &Figures) -> String {
    let Figures { kind, machine, date, load, servers, rows } = figures;
    let names = names(figures);
    let mut text = format!(
        "# {machine}\n\n`make bench` made this on {date}, load average {load}; the figures are in [{kind}.tsv]({kind}.tsv). \
         What limits them is in [speed.md](../speed.md).\n\n"
    );
    let versions: Vec<String> = servers
        .iter()
        .filter(|(name, _)| name != Kind::Floor.name())
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    text += &format!("Servers: {}.\n\n{}.\n\n", versions.join(", "), table::LEGEND);
    text += &table::markdown(&compared(figures), &names);
    for (name, title, _) in plots(figures) {
        text += &format!("\n![{title}]({name})\n");
    }
    let tables = growth::tables(rows, &names);
    if !tables.is_empty() {
        text += "\n## Growth\n\nMedians, and the server's CPU time for each request; ×: beside the first line.\n";
    }
    for table in tables {
        text += &format!("\n### {}\n\n{}", table.title, table.markdown());
    }
    text
}

/// The README's table.
pub(crate) fn short(figures: &Figures) -> String {
    let rows = compared(figures);
    let mut chosen: Vec<&str> = Vec::new();
    if let Some((best, worst)) = extremes(&rows) {
        chosen.extend([best.workload.as_str(), worst.workload.as_str()]);
    }
    for name in SHORT {
        if chosen.len() < SHORT_ROWS
            && !chosen.contains(&name)
            && rows.iter().any(|row| row.workload == name)
        {
            chosen.push(name);
        }
    }
    let names = names(figures);
    let mut headings = vec!["workload".to_owned(), "unit".to_owned()];
    headings.extend(names.iter().cloned());
    headings.extend(["/nbdkit", "/best", "cpu", "cpu nbdkit"].map(str::to_owned));
    let body: Vec<Vec<String>> = rows
        .iter()
        .filter(|row| chosen.contains(&row.workload.as_str()))
        .map(|row| {
            let mut cells = vec![row.workload.clone(), unit_of(row)];
            cells.extend(names.iter().map(|name| value(row, name)));
            cells.extend([ratio(row.ratio(Kind::Nbdkit.name())), ratio(row.ratio_to_best())]);
            cells.extend([Kind::Ours, Kind::Nbdkit].map(|kind| table::cpu(row, kind.name())));
            cells
        })
        .collect();
    let Figures { kind, machine, date, .. } = figures;
    format!(
        "{machine}, {date}: {} of {} rows, the best and the worst by /best among them ([all of them](docs/bench/{kind}.md)). \
         Medians ± half the spread; /nbdkit, /best: how many times as good as nbdkit and as the best peer; \
         cpu: server CPU time, µs per request or ms per GB.\n\n{}",
        body.len(),
        rows.len(),
        markdown_of(&headings, &body),
    )
}

/// The table of all kinds of machines, for docs/speed.md.
pub(crate) fn all(kinds: &[Figures]) -> String {
    let headings =
        ["machine", "date", "peers", "rows", "faster", "slower", "best row", "worst row"];
    let headings = headings.map(str::to_owned);
    let body: Vec<Vec<String>> = kinds
        .iter()
        .map(|figures| {
            let rows = compared(figures);
            let ratios: Vec<f64> = rows.iter().filter_map(|row| row.ratio_to_best()).collect();
            // What is printed as 1.00 is neither.
            let faster = ratios.iter().filter(|ratio| **ratio >= 1.005).count();
            let slower = ratios.iter().filter(|ratio| **ratio < 0.995).count();
            let shown = |row: &Row| format!("{} {}", row.workload, ratio(row.ratio_to_best()));
            let (best, worst) = extremes(&rows)
                .map_or_else(Default::default, |(best, worst)| (shown(best), shown(worst)));
            let is_peer = |name: &str| ![Kind::Ours.name(), Kind::Floor.name()].contains(&name);
            let peers = figures.servers.iter().filter(|(name, _)| is_peer(name));
            let short = |version: &str| version.split(' ').next().unwrap_or_default().to_owned();
            let peers = peers.map(|(name, version)| match version.as_str() {
                "unknown" => name.clone(),
                version => format!("{name} {}", short(version)),
            });
            vec![
                format!("[{}](bench/{}.md)", figures.machine, figures.kind),
                figures.date.clone(),
                peers.collect::<Vec<_>>().join(", "),
                ratios.len().to_string(),
                faster.to_string(),
                slower.to_string(),
                best,
                worst,
            ]
        })
        .collect();
    format!(
        "Beside the best peer of each row; a ratio above 1 is in our favour.\n\n{}",
        markdown_of(&headings, &body)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Cell;
    use crate::testing::{self, cell};

    fn row(workload: &str, ratio: f64) -> Row {
        let to = |server, ratio| Cell { ratio: Some(ratio), ..cell(server, 2.0) };
        testing::row(workload, vec![cell("ours", 2.0), to("nbdkit", ratio), to("floor", 0.01)])
    }

    fn figures() -> Figures {
        let mut rows: Vec<Row> = SHORT.iter().map(|name| row(name, 1.5)).collect();
        rows.extend([row("worst", 0.2), row("middle", 1.0), row("best", 9.0)]);
        Figures {
            kind: "cpu".to_owned(),
            machine: "CPU".to_owned(),
            date: "2026-01-02".to_owned(),
            load: "0".to_owned(),
            servers: ["ours", "nbdkit", "floor"].map(|n| (n.to_owned(), "1 x".to_owned())).to_vec(),
            rows,
        }
    }

    #[test]
    fn the_short_table_has_the_best_and_the_worst_of_all_rows() {
        let text = short(&figures());
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(2).collect();
        assert_eq!(rows.len(), SHORT_ROWS);
        assert!(rows.iter().any(|row| row.starts_with("| worst |") && row.contains("| 0.20 |")));
        assert!(rows.iter().any(|row| row.starts_with("| best |") && row.contains("| 9.00 |")));
        assert!(!text.contains("| middle |"));
    }

    #[test]
    fn the_table_of_machines_counts_where_we_lose() {
        let text = all(&[figures()]);
        let line =
            "| [CPU](bench/cpu.md) | 2026-01-02 | nbdkit 1 | 11 | 9 | 1 | best 9.00 | worst 0.20 |";
        assert!(text.contains(line), "{text}");
    }
}
