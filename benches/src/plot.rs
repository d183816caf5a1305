//! One SVG per family: for each workload a group of bars, one per server, with a whisker from the
//! least to the greatest round. Bars are drawn relative to the greatest of their group, and carry
//! their value.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::plan::Kind;
use crate::results::{Line, Series};
use crate::stats::Summary;
use crate::table::number;

const WIDTH: f64 = 860.0;
/// Where bars begin; names stand to the left.
const LEFT: f64 = 250.0;
/// The longest bar; its value stands to the right.
const LONGEST: f64 = 470.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
const TOP: f64 = 58.0;

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "#1b6ca8",
        Kind::Nbdkit => "#d1782a",
        Kind::QemuNbd => "#8a6bb1",
        Kind::NbdServer => "#5a9e5a",
        Kind::Floor => "#b5b5b5",
    }
}

/// The plot of these lines, all of one family.
pub(crate) fn svg(title: &str, machine: &str, lines: &[&Line]) -> String {
    let bars = |line: &Line| line.series.iter().filter(|series| series.value().is_some()).count();
    let height = TOP + lines.iter().map(|line| bars(line) as f64 * BAR + GAP).sum::<f64>() + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
    );
    text(&mut svg, 10.0, 20.0, "start", 14, title);
    text(
        &mut svg,
        10.0,
        38.0,
        "start",
        10,
        &format!("median, least and greatest round; {machine}"),
    );
    let mut y = TOP;
    for line in lines {
        y = group(&mut svg, y, line) + GAP;
    }
    svg += "</svg>\n";
    svg
}

/// Draws the bars of one workload from `y` down; returns where they end.
fn group(svg: &mut String, mut y: f64, line: &Line) -> f64 {
    let values: Vec<(&Series, Summary)> =
        line.series.iter().filter_map(|series| Some((series, series.value()?))).collect();
    let greatest = values.iter().map(|(_, value)| value.max).fold(f64::MIN_POSITIVE, f64::max);
    let unit = line.workload.unit;
    let note = if unit.is_cost() { ", less is better" } else { "" };
    text(svg, 10.0, y + BAR - 4.0, "start", 11, line.workload.name);
    text(svg, 10.0, y + 2.0 * BAR - 4.0, "start", 9, &format!("{}{note}", unit.name()));
    for (series, value) in values {
        let scale = LONGEST / greatest;
        let (middle, baseline) = (y + BAR / 2.0 - 1.0, y + BAR - 4.0);
        let (width, height) = (value.median * scale, BAR - 3.0);
        let fill = colour(series.kind);
        text(svg, LEFT - 6.0, baseline, "end", 10, series.kind.name());
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{fill}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\"/>",
            LEFT + value.min * scale,
            LEFT + value.max * scale,
        );
        text(svg, LEFT + value.max * scale + 6.0, baseline, "start", 10, &number(value.median));
        y += BAR;
    }
    y
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measurement;
    use crate::workload::WORKLOADS;

    #[test]
    fn the_longest_bar_has_the_greatest_value_and_names_are_escaped() {
        let round = |value| Some(Measurement { value, ..Measurement::default() });
        let series = |kind, value| Series { kind, rounds: vec![round(value)], reason: None };
        let absent =
            Series { kind: Kind::QemuNbd, rounds: vec![None], reason: Some("x".to_owned()) };
        let line = Line {
            workload: WORKLOADS[0],
            series: vec![series(Kind::Ours, 20.0), series(Kind::Nbdkit, 10.0), absent],
        };
        let svg = svg("a & b", "machine <1>", &[&line]);
        assert!(svg.contains("width=\"470.0\"") && svg.contains("width=\"235.0\""));
        assert!(svg.contains("a &amp; b") && svg.contains("machine &lt;1>"));
        assert!(!svg.contains("qemu-nbd"));
        assert!(svg.ends_with("</svg>\n"));
    }
}
