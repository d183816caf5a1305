//! The summary as text. nbdkit-stats-filter(1), "EXAMPLE OUTPUT".

use std::fmt::Write;
use std::time::Duration;

use super::counters::{ALIGNMENTS, Counters, Operation, SIZES};

/// The summary of what was counted in `elapsed`; `threshold` is a percentage.
pub(super) fn render(counters: &Counters, elapsed: Duration, threshold: u32) -> String {
    // Writing to a String cannot fail.
    let mut out = String::new();
    let total = |of: fn(&Counters, Operation) -> u64, operations: &[Operation]| {
        operations.iter().fold(0, |sum: u64, &op| sum.saturating_add(of(counters, op)))
    };
    let ops = total(Counters::ops, &Operation::ALL);
    // The others move no data.
    let bytes = total(
        Counters::bytes,
        &[Operation::Read, Operation::Write, Operation::Trim, Operation::Zero],
    );
    let _ = writeln!(
        out,
        "total: {ops} ops, {:.6} s, {}, {}/s",
        elapsed.as_secs_f64(),
        human(bytes as f64),
        rate(bytes, elapsed)
    );
    for operation in Operation::ALL {
        let ops = counters.ops(operation);
        if ops == 0 {
            continue;
        }
        let (bytes, time) = (counters.bytes(operation), counters.time(operation));
        let _ = writeln!(
            out,
            "{}: {ops} ops, {:.6} s, {}, {}/s op, {}/s total",
            operation.as_str(),
            time.as_secs_f64(),
            human(bytes as f64),
            rate(bytes, time),
            rate(bytes, elapsed)
        );
        if threshold > 0 && operation != Operation::Flush {
            histogram(&mut out, counters, operation, threshold);
        }
    }
    out
}

/// Requests of about one size.
struct Row {
    bits: usize,
    requests: u64,
    bytes: u64,
    alignments: [u64; ALIGNMENTS],
}

fn histogram(out: &mut String, counters: &Counters, operation: Operation, threshold: u32) {
    let mut rows: Vec<Row> = (0..SIZES)
        .map(|bits| {
            let alignments = counters.alignments(operation, bits);
            let requests = sum(&alignments);
            Row { bits, requests, bytes: counters.size_bytes(operation, bits), alignments }
        })
        .filter(|row| row.requests > 0)
        .collect();
    rows.sort_by(|a, b| b.requests.cmp(&a.requests).then(a.bits.cmp(&b.bits)));
    let all = rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.requests));
    let enough = share(all, threshold);
    out.push_str("  Request size and alignment breakdown:\n");
    let (mut shown, mut rest) = (0_u64, rows.as_slice());
    while let [row, others @ ..] = rest
        && shown < enough
    {
        let _ = writeln!(
            out,
            "    {:2} bits: {:4.1}% ({} reqs, {} total)",
            row.bits,
            percent(row.requests, all),
            row.requests,
            human(row.bytes as f64)
        );
        alignments(out, row, threshold);
        shown = shown.saturating_add(row.requests);
        rest = others;
    }
    if !rest.is_empty() {
        let requests = rest.iter().fold(0, |sum: u64, row| sum.saturating_add(row.requests));
        let bytes = rest.iter().fold(0, |sum: u64, row| sum.saturating_add(row.bytes));
        let _ = writeln!(
            out,
            "    other sizes: {:4.1}% ({requests} reqs, {} total)",
            percent(requests, all),
            human(bytes as f64)
        );
    }
    out.push('\n');
}

/// How many requests of a size are aligned how well. Offset 0 is aligned to anything, so it
/// counts everywhere and needs no line of its own.
fn alignments(out: &mut String, row: &Row, threshold: u32) {
    let enough = share(row.requests, threshold);
    let mut shown = 0_u64;
    for (bits, &exactly) in row.alignments[..ALIGNMENTS - 1].iter().enumerate() {
        if exactly == 0 {
            continue;
        }
        let at_least = sum(&row.alignments[bits..]);
        let percent = percent(at_least, row.requests);
        if shown > enough {
            let _ = writeln!(out, "         {bits:2}+ bit-aligned: {percent:4.1}% ({at_least})");
            break;
        }
        let _ = writeln!(out, "         {bits:2} bit aligned: {percent:5.1}% ({at_least})");
        shown = shown.saturating_add(exactly);
    }
}

fn sum(counts: &[u64]) -> u64 {
    counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
}

/// `percent` per cent of `all`, rounded down.
fn share(all: u64, percent: u32) -> u64 {
    (u128::from(all) * u128::from(percent) / 100) as u64
}

fn percent(part: u64, all: u64) -> f64 {
    part as f64 * 100.0 / all as f64
}

/// Bytes per second, to the microsecond that the summary shows.
fn rate(bytes: u64, time: Duration) -> String {
    match time.as_micros() {
        0 => "(n/a)".to_owned(),
        micros => human(bytes as f64 / (micros as f64 / 1e6)),
    }
}

fn human(bytes: f64) -> String {
    const KIB: f64 = 1024.0;
    const MIB: f64 = KIB * 1024.0;
    const GIB: f64 = MIB * 1024.0;
    if bytes < KIB {
        format!("{} bytes", bytes.floor())
    } else if bytes < MIB {
        format!("{:.2} KiB", bytes / KIB)
    } else if bytes < GIB {
        format!("{:.2} MiB", bytes / MIB)
    } else {
        format!("{:.2} GiB", bytes / GIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(requests: &[(Operation, u64, u64, u64)], threshold: u32) -> String {
        let counters = Counters::new(true).unwrap();
        for &(operation, times, count, offset) in requests {
            for _ in 0..times {
                counters.add(operation, count, offset, Duration::from_micros(1));
            }
        }
        render(&counters, Duration::from_millis(100), threshold)
    }

    /// What Debian's nbdkit prints for these requests, but for the times and for the bytes of
    /// the other sizes, where it prints those of all.
    #[test]
    fn the_summary_is_nbdkits() {
        let mut requests: Vec<_> = (0..20).map(|i| (Operation::Read, 1, 4096, i * 4096)).collect();
        requests.extend((0..5).map(|i| (Operation::Read, 1, 3892, i * 65536)));
        requests.extend((0..3).map(|i| (Operation::Read, 1, 65536, i * 65536)));
        requests.extend([
            (Operation::Read, 1, 512, 512),
            (Operation::Read, 1, 65536, 0),
            (Operation::Write, 2, 512, 512),
            (Operation::Write, 1, 5, 777),
            (Operation::Trim, 1, 1 << 20, 0),
            (Operation::Flush, 1, 0, 0),
        ]);
        let expected = "\
total: 35 ops, 0.100000 s, 1.35 MiB, 13.48 MiB/s
read: 30 ops, 0.000030 s, 355.50 KiB, 11.30 GiB/s op, 3.47 MiB/s total
  Request size and alignment breakdown:
    12 bits: 66.7% (20 reqs, 80.00 KiB total)
         12 bit aligned: 100.0% (20)
         13 bit aligned:  50.0% (10)
         14 bit aligned:  25.0% (5)
         15 bit aligned:  15.0% (3)
         16 bit aligned:  10.0% (2)
    11 bits: 16.7% (5 reqs, 19.00 KiB total)
         16 bit aligned: 100.0% (5)
         17 bit aligned:  60.0% (3)
         18 bit aligned:  40.0% (2)
    16 bits: 13.3% (4 reqs, 256.00 KiB total)
         16 bit aligned: 100.0% (4)
         17 bit aligned:  75.0% (3)
    other sizes:  3.3% (1 reqs, 512 bytes total)

write: 3 ops, 0.000003 s, 1.00 KiB, 327.11 MiB/s op, 10.05 KiB/s total
  Request size and alignment breakdown:
     9 bits: 66.7% (2 reqs, 1.00 KiB total)
          9 bit aligned: 100.0% (2)
    other sizes: 33.3% (1 reqs, 5 bytes total)

trim: 1 ops, 0.000001 s, 1.00 MiB, 976.56 GiB/s op, 10.00 MiB/s total
  Request size and alignment breakdown:
    other sizes: 100.0% (1 reqs, 1.00 MiB total)

flush: 1 ops, 0.000001 s, 0 bytes, 0 bytes/s op, 0 bytes/s total
";
        assert_eq!(summary(&requests, 95), expected);
    }

    #[test]
    fn a_low_threshold_ends_the_alignments_too() {
        let read = |times, align: u32| (Operation::Read, times, 4096, 1 << align);
        let text =
            summary(&[read(10, 12), read(5, 20), read(3, 25), (Operation::Read, 2, 4096, 0)], 50);
        let expected = "    12 bits: 100.0% (20 reqs, 80.00 KiB total)\n\
            \x20        12 bit aligned: 100.0% (20)\n\
            \x20        20 bit aligned:  50.0% (10)\n\
            \x20        25+ bit-aligned: 25.0% (5)\n\n";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn no_threshold_means_no_histogram() {
        let text = summary(&[(Operation::Zero, 1, 1 << 31, 0)], 0);
        assert!(text.ends_with(" total\n"), "{text}");
        assert!(text.contains("zero: 1 ops, 0.000001 s, 2.00 GiB, 2000000.00 GiB/s op, "));
    }
}
