//! The policies that are compared.

use crate::plan::{Discipline, Peer};

/// A policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Trackbed's own.
    Trackbed,
    /// First come, first served.
    Fifo,
    /// First come, first served, who does not fit is skipped.
    SkipFifo,
    /// EASY backfill.
    Easy,
    /// Dominant resource fairness between teams.
    Drf,
    /// The shortest run time first.
    Sjf,
}

impl Policy {
    /// All policies, Trackbed's first.
    pub const ALL: [Policy; 6] = [
        Policy::Trackbed,
        Policy::Fifo,
        Policy::SkipFifo,
        Policy::Easy,
        Policy::Drf,
        Policy::Sjf,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Trackbed => "trackbed",
            Policy::Fifo => "fifo",
            Policy::SkipFifo => "skip-fifo",
            Policy::Easy => "easy",
            Policy::Drf => "drf",
            Policy::Sjf => "sjf",
        }
    }

    /// How it goes through a queue.
    pub fn discipline(self) -> Discipline {
        match self {
            Policy::Trackbed => Discipline::default(),
            Policy::Fifo => Discipline::Peer(Peer::Fifo),
            Policy::SkipFifo => Discipline::Peer(Peer::SkipFifo),
            Policy::Easy => Discipline::Peer(Peer::Easy),
            Policy::Drf => Discipline::Peer(Peer::DrfGang),
            Policy::Sjf => Discipline::Peer(Peer::Sjf),
        }
    }

    /// Whether it is told true run times, whatever users say: the shortest job first is a bound only then.
    pub fn knows_run_times(self) -> bool {
        self == Policy::Sjf
    }
}
