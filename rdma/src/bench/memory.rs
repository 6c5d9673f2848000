//! The memory that messages come from and go to.
//!
//! Other kinds of memory (a GPU's, an adapter's own) come in here: one more [`Memory`], for which
//! [`Areas::new`] registers a [`crate::verbs::Pinned`] of it. Everything else posts parts of areas and
//! copies in and out of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::plan::{Measure, Plan, Verb};
use crate::verbs::{
    HugePageSize, HugePages, MappingOptions, Pages, ProtectionDomain, RemoteAccess, RemoteWindow,
    Scratch,
};

/// Areas of different queue pairs never share a cache line.
const ALIGNMENT: u64 = 64;

/// What kind of memory messages lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Memory {
    /// Ordinary pages.
    #[default]
    Anonymous,
    /// Huge pages of 2 MiB that the machine's owner reserved.
    HugePages,
}

impl Memory {
    fn options(self, node: Option<u32>) -> MappingOptions {
        let pages = match self {
            Memory::Anonymous => Pages::Ordinary,
            Memory::HugePages => Pages::Huge(HugePages {
                size: HugePageSize::TwoMebibytes,
                or_transparent: false,
            }),
        };
        MappingOptions { pages, node }
    }
}

/// Which end of a measurement this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    /// Whether this end begins messages.
    pub(super) fn sends(self, plan: &Plan) -> bool {
        self == Side::Client || plan.bidirectional || to_and_fro(plan)
    }

    /// Whether the other end does.
    pub(super) fn receives(self, plan: &Plan) -> bool {
        self == Side::Server || plan.bidirectional || to_and_fro(plan)
    }
}

/// Whether each message of the client is answered by one of the server's program.
fn to_and_fro(plan: &Plan) -> bool {
    plan.measure == Measure::Latency && !plan.verb.is_fetch()
}

/// An end's memory.
pub(super) struct Areas {
    /// What is written and sent: the same bytes on all queue pairs.
    pub(super) source: Scratch,
    /// Where messages are received, and what is read: an area a queue pair.
    pub(super) sink: Scratch,
    /// What the peer writes, reads or counts in: an area a queue pair.
    pub(super) window: Option<RemoteWindow>,
    stride: u64,
}

impl Areas {
    pub(super) fn new(
        pd: &Arc<ProtectionDomain>,
        plan: &Plan,
        side: Side,
        memory: Memory,
        node: Option<u32>,
    ) -> Result<Areas, BenchError> {
        let options = memory.options(node);
        let stride = plan.largest().next_multiple_of(ALIGNMENT);
        let all = stride.saturating_mul(plan.queue_pairs.into());
        let (sends, receives) = (side.sends(plan), side.receives(plan));
        let size = |needed: bool, bytes: u64| {
            let bytes = if needed { bytes } else { ALIGNMENT };
            usize::try_from(bytes).unwrap_or(usize::MAX)
        };
        let fetch = plan.verb.is_fetch();
        let lands_here = (fetch && sends) || (plan.verb == Verb::Send && receives);
        let access = RemoteAccess {
            write: plan.verb == Verb::Write && receives,
            read: plan.verb == Verb::Read && receives,
            atomic: plan.verb == Verb::Atomic && receives,
        };
        let window = if access == RemoteAccess::default() {
            None
        } else {
            Some(RemoteWindow::mapped(pd, size(true, all), access, &options)?)
        };
        Ok(Areas {
            source: Scratch::mapped(pd, size(!fetch && sends, stride), &options)?,
            sink: Scratch::mapped(pd, size(lands_here, all), &options)?,
            window,
            stride,
        })
    }

    /// Where the area of a queue pair begins, in sinks and windows of both ends.
    pub(super) fn at(&self, lane: usize) -> u64 {
        self.stride * lane as u64
    }
}
