//! The measurements of a whole run, by workload, server and round, and what follows from them.
#![forbid(unsafe_code)]

use crate::measure::Measurement;
use crate::plan::Kind;
use crate::stats::{Summary, paired_ratio};
use crate::target::Reached;
use crate::workload::Workload;

/// One server's rounds.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) kind: Kind,
    /// `None` for a round without a result.
    pub(crate) rounds: Vec<Option<Measurement>>,
    /// Why the server has no results.
    pub(crate) reason: Option<String>,
}

impl Series {
    /// Something of each round.
    pub(crate) fn each(&self, what: impl Fn(&Measurement) -> Option<f64>) -> Vec<Option<f64>> {
        self.rounds.iter().map(|round| round.as_ref().and_then(&what)).collect()
    }

    /// The summary of something over the rounds.
    pub(crate) fn summary(&self, what: impl Fn(&Measurement) -> Option<f64>) -> Option<Summary> {
        let values: Vec<f64> = self.each(what).into_iter().flatten().collect();
        Summary::of(&values)
    }

    /// The summary of the workload's value.
    pub(crate) fn value(&self) -> Option<Summary> {
        self.summary(|measurement| Some(measurement.value))
    }
}

/// One workload with all servers.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) workload: Workload,
    pub(crate) series: Vec<Series>,
}

impl Line {
    pub(crate) fn of(&self, kind: Kind) -> Option<&Series> {
        self.series.iter().find(|series| series.kind == kind)
    }

    /// How many times as good ours is; more is better, whatever the unit.
    pub(crate) fn ratio(&self, other: Kind) -> Option<f64> {
        let value = |measurement: &Measurement| {
            let value = measurement.value;
            Some(if self.workload.unit.is_cost() { 1.0 / value } else { value })
        };
        paired_ratio(&self.of(Kind::Ours)?.each(value), &self.of(other)?.each(value))
    }

    /// Our ratio to the peer to which it is the worst.
    pub(crate) fn ratio_to_best(&self) -> Option<f64> {
        let peers = self.series.iter().map(|series| series.kind).filter(|kind| kind.is_peer());
        peers.filter_map(|peer| self.ratio(peer)).min_by(f64::total_cmp)
    }

    /// The server CPU time of ours, divided by that of another.
    pub(crate) fn cpu_ratio(
        &self,
        other: Kind,
        what: impl Fn(&Measurement) -> Option<f64> + Copy,
    ) -> Option<f64> {
        paired_ratio(&self.of(Kind::Ours)?.each(what), &self.of(other)?.each(what))
    }

    /// All that targets ask about.
    pub(crate) fn reached(&self) -> Reached {
        let ours = self.of(Kind::Ours);
        let median = |summary: Option<Summary>| summary.map(|summary| summary.median);
        Reached {
            value: median(ours.and_then(Series::value)),
            nbdkit: self.ratio(Kind::Nbdkit),
            best: self.ratio_to_best(),
            floor: self.ratio(Kind::Floor),
            cpu_floor: self.cpu_ratio(Kind::Floor, Measurement::cpu_per_operation),
            cpu_nbdkit: self.cpu_ratio(Kind::Nbdkit, Measurement::cpu_per_gigabyte),
            fairness: median(
                ours.and_then(|ours| ours.summary(|measurement| measurement.fairness)),
            ),
        }
    }

    /// The targets and whether each is met: the table's last column.
    pub(crate) fn verdict(&self) -> String {
        let reached = self.reached();
        let each = self.workload.targets.iter().map(|target| {
            match (target.met(&reached), target.value(&reached)) {
                (Some(true), _) => format!("{target}: met"),
                (Some(false), Some(value)) => format!("{target}: NOT MET ({value:.2})"),
                _ => format!("{target}: unknown"),
            }
        });
        each.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FASTER, line};

    #[test]
    fn the_best_peer_is_the_one_that_leaves_us_the_smallest_ratio() {
        let line = line("4k-read-d1", &FASTER);
        assert_eq!(line.ratio(Kind::Nbdkit), Some(3.0));
        assert_eq!(line.ratio_to_best(), Some(2.0));
        assert_eq!(line.ratio(Kind::Floor), Some(0.5));
        assert_eq!(line.verdict(), "nbdkit ≥ 1.25: met");
    }

    #[test]
    fn less_memory_is_a_better_ratio() {
        let line = line("idle-1000", &[(Kind::Ours, 50.0), (Kind::Nbdkit, 75.0)]);
        assert_eq!(line.ratio(Kind::Nbdkit), Some(1.5));
        assert_eq!(line.verdict(), "nbdkit ≥ 2: NOT MET (1.50)");
    }
}
