//! What the results should be: ratios in which more is always better, and bounds.
#![forbid(unsafe_code)]

use std::fmt;

/// One thing to be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// So many times as good as Debian's nbdkit.
    Nbdkit(f64),
    /// So many times as good as the best peer.
    Best(f64),
    /// So many times as good as the floor.
    Floor(f64),
    /// Server CPU time per request, at most so many times the floor's.
    Cpu(f64),
    /// Server CPU time per byte, at most so many times nbdkit's.
    CpuPerByte(f64),
    /// The value itself is at most so much.
    Most(f64),
    /// The slowest client is at least so many times as fast as the fastest.
    Fair(f64),
}

/// What was measured, as far as targets go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) value: Option<f64>,
    pub(crate) nbdkit: Option<f64>,
    pub(crate) best: Option<f64>,
    pub(crate) floor: Option<f64>,
    pub(crate) cpu_floor: Option<f64>,
    pub(crate) cpu_nbdkit: Option<f64>,
    pub(crate) fairness: Option<f64>,
}

impl Target {
    /// What was reached of it; `None` if one side of the comparison is missing.
    pub(crate) fn value(self, reached: &Reached) -> Option<f64> {
        match self {
            Target::Nbdkit(_) => reached.nbdkit,
            Target::Best(_) => reached.best,
            Target::Floor(_) => reached.floor,
            Target::Cpu(_) => reached.cpu_floor,
            Target::CpuPerByte(_) => reached.cpu_nbdkit,
            Target::Most(_) => reached.value,
            Target::Fair(_) => reached.fairness,
        }
    }

    /// Whether it was reached.
    pub(crate) fn met(self, reached: &Reached) -> Option<bool> {
        let value = self.value(reached)?;
        Some(match self {
            Target::Nbdkit(least)
            | Target::Best(least)
            | Target::Floor(least)
            | Target::Fair(least) => value >= least,
            Target::Cpu(most) | Target::CpuPerByte(most) | Target::Most(most) => value <= most,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Nbdkit(least) => write!(f, "nbdkit ≥ {least}"),
            Target::Best(least) => write!(f, "best ≥ {least}"),
            Target::Floor(least) => write!(f, "floor ≥ {least}"),
            Target::Cpu(most) => write!(f, "cpu/floor ≤ {most}"),
            Target::CpuPerByte(most) => write!(f, "cpu/nbdkit ≤ {most:.2}"),
            Target::Most(most) => write!(f, "≤ {most}"),
            Target::Fair(least) => write!(f, "fair ≥ {least}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_missed_or_unknown() {
        let reached = Reached { nbdkit: Some(2.0), cpu_floor: Some(1.4), ..Reached::default() };
        assert_eq!(Target::Nbdkit(2.0).met(&reached), Some(true));
        assert_eq!(Target::Nbdkit(2.1).met(&reached), Some(false));
        assert_eq!(Target::Cpu(1.3).met(&reached), Some(false));
        assert_eq!(Target::Floor(0.8).met(&reached), None);
    }
}
