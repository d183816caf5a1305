//! What the values of a workload count.
#![forbid(unsafe_code)]

/// The unit of a workload's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Thousands of requests per second.
    KiloOps,
    /// Megabytes (10^6) per second.
    Megabytes,
    /// Connections per second.
    Connections,
    /// Milliseconds.
    Milliseconds,
    /// MiB.
    Mebibytes,
}

impl Unit {
    const ALL: [Unit; 5] =
        [Unit::KiloOps, Unit::Megabytes, Unit::Connections, Unit::Milliseconds, Unit::Mebibytes];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::KiloOps => "kop/s",
            Unit::Megabytes => "MB/s",
            Unit::Connections => "conn/s",
            Unit::Milliseconds => "ms",
            Unit::Mebibytes => "MiB",
        }
    }

    /// The unit of this name.
    pub(crate) fn named(name: &str) -> Option<Unit> {
        Unit::ALL.into_iter().find(|unit| unit.name() == name)
    }

    /// The unit of CPU time that goes with it.
    pub(crate) fn of_cpu(self) -> Option<&'static str> {
        match self {
            Unit::Megabytes => Some("ms/GB"),
            Unit::KiloOps | Unit::Connections => Some("µs"),
            Unit::Milliseconds | Unit::Mebibytes => None,
        }
    }

    /// Whether less is better.
    pub(crate) fn is_cost(self) -> bool {
        matches!(self, Unit::Milliseconds | Unit::Mebibytes)
    }
}
