//! One SVG per family: for each workload a group of bars, one per server, with a whisker from the
//! least to the greatest round. Bars are drawn relative to the greatest of their group, and carry
//! their value.
#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::figures::{Cell, Row};
use crate::table::number;

const WIDTH: f64 = 860.0;
/// Where bars begin; names stand to the left.
const LEFT: f64 = 250.0;
/// The longest bar; its value stands to the right.
const LONGEST: f64 = 470.0;
const BAR: f64 = 15.0;
const GAP: f64 = 14.0;
const TOP: f64 = 58.0;

/// The colours of servers that are not always there.
const FURTHER: [&str; 4] = ["#b13f5c", "#3f8f8f", "#8f7a3f", "#5c5c5c"];

/// The colour of a server, by its name and its number in the group.
fn colour(name: &str, index: usize) -> &'static str {
    match name {
        "ours" => "#1b6ca8",
        "nbdkit" => "#d1782a",
        "qemu-nbd" => "#8a6bb1",
        "nbd-server" => "#5a9e5a",
        "floor" => "#b5b5b5",
        _ => FURTHER[index % FURTHER.len()],
    }
}

/// The plot of these rows, all of one family.
pub(crate) fn svg(title: &str, machine: &str, rows: &[&Row]) -> String {
    let height = TOP + rows.iter().map(|row| row.cells.len() as f64 * BAR + GAP).sum::<f64>() + 8.0;
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
    for row in rows {
        y = group(&mut svg, y, row) + GAP;
    }
    svg += "</svg>\n";
    svg
}

/// Draws the bars of one workload from `y` down; returns where they end.
fn group(svg: &mut String, mut y: f64, row: &Row) -> f64 {
    let greatest = row.cells.iter().map(|cell| cell.max).fold(f64::MIN_POSITIVE, f64::max);
    let note = if row.unit.is_cost() { ", less is better" } else { "" };
    text(svg, 10.0, y + BAR - 4.0, "start", 11, &row.workload);
    text(svg, 10.0, y + 2.0 * BAR - 4.0, "start", 9, &format!("{}{note}", row.unit.name()));
    for (index, cell) in row.cells.iter().enumerate() {
        let Cell { server, median, min, max, .. } = cell;
        let scale = LONGEST / greatest;
        let (middle, baseline) = (y + BAR / 2.0 - 1.0, y + BAR - 4.0);
        let (width, height) = (median * scale, BAR - 3.0);
        let fill = colour(server, index);
        text(svg, LEFT - 6.0, baseline, "end", 10, server);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{fill}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\"/>",
            LEFT + min * scale,
            LEFT + max * scale,
        );
        text(svg, LEFT + max * scale + 6.0, baseline, "start", 10, &number(*median));
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
    use crate::testing::{cell, row};

    #[test]
    fn the_longest_bar_has_the_greatest_value_and_names_are_escaped() {
        let row = row("4k", vec![cell("ours", 20.0), cell("nbdkit", 10.0)]);
        let svg = svg("a & b", "machine <1>", &[&row]);
        assert!(svg.contains("width=\"470.0\"") && svg.contains("width=\"235.0\""));
        assert!(svg.contains("a &amp; b") && svg.contains("machine &lt;1>"));
        assert!(!svg.contains("qemu-nbd"));
        assert!(svg.ends_with("</svg>\n"));
    }
}
