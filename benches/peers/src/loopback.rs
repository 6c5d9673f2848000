//! Messages from one queue pair of a device to another of the same, in one thread.
//!
//! Both sides are told the same: reliable connections, messages from one buffer into another, one
//! doorbell and one completion for each message and for each receive, a fixed number of messages under
//! way, the same retries and time-outs, no inline data. `ibverbs` can be told nothing else (0.9.2
//! posts single signalled sends), so that is what is compared.

#[cfg(feature = "ibverbs")]
mod ibverbs;
mod ours;

use std::time::{Duration, Instant};

use trackbed_rdma::verbs::{Context, GidChoice, device_names};

use crate::PeersError;

#[cfg(feature = "ibverbs")]
pub use ibverbs::Ibverbs;
pub use ours::{Ours, Waiting};

/// How long an adapter waits for an acknowledgement: 4.096 µs times 2 to this power.
const TIMEOUT: u8 = 14;
/// How often it sends again.
const RETRIES: u8 = 6;
/// How often it tries again when there is no receive, which never happens here.
const NOT_READY_RETRIES: u8 = 6;
/// How long it waits before it does, in the encoding of the InfiniBand specification.
const NOT_READY_TIMER: u8 = 12;
/// How long a completion may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many looks at an empty queue others may run: on soft-RoCE the kernel's threads, which do
/// what an adapter would, and which a spinning thread keeps waiting for whole time slices.
const LOOKS: u32 = 100;

/// Where messages go, and what they are.
#[derive(Debug, Clone)]
pub struct Path {
    /// The device of both queue pairs.
    pub device: String,
    /// The GID of both, by its index.
    pub gid_index: u8,
    /// Bytes of a message.
    pub size: u32,
    /// Messages under way at most.
    pub depth: u32,
}

/// Two connected queue pairs of either side.
pub trait Messages {
    /// Sends so many messages from one to the other; returns when all have arrived and both ends know.
    fn send(&mut self, count: u64) -> Result<(), PeersError>;
}

/// The device and the GID to use when nobody names one: `TRACKBED_BENCH_DEVICE`, else the first device
/// that has an active port.
pub fn usual_device() -> Result<(String, u8), PeersError> {
    let wanted = std::env::var("TRACKBED_BENCH_DEVICE").ok();
    let names = match &wanted {
        Some(name) => vec![name.clone()],
        None => device_names()?,
    };
    let mut reason = "this machine has no RDMA device".to_owned();
    for name in names {
        let port = Context::open(&name)?.local_port(None, &GidChoice::Automatic);
        match port {
            Ok(port) => return Ok((name, port.gid_index)),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(PeersError::Unavailable(reason))
}

/// Counts of one run.
#[derive(Debug, Clone, Copy)]
struct Count {
    wanted: u64,
    posted: u64,
    sent: u64,
    received: u64,
}

impl Count {
    fn of(wanted: u64) -> Self {
        Self {
            wanted,
            posted: 0,
            sent: 0,
            received: 0,
        }
    }

    /// Whether another message may be posted: under way is what one of the ends does not know of.
    #[inline(always)]
    fn may_post(&self, depth: u32) -> bool {
        self.posted < self.wanted && self.posted - self.sent.min(self.received) < u64::from(depth)
    }

    #[inline(always)]
    fn is_over(&self) -> bool {
        self.sent == self.wanted && self.received == self.wanted
    }
}

/// Waiting for completions by asking for them.
#[derive(Debug)]
struct Idle {
    since: Instant,
    looks: u32,
}

impl Idle {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            looks: 0,
        }
    }

    /// After a look at the queue: whether there was anything.
    #[inline(always)]
    fn looked(&mut self, found: bool, attempt: &'static str) -> Result<(), PeersError> {
        if found {
            self.looks = 0;
            return Ok(());
        }
        self.looks = self.looks.saturating_add(1);
        if self.looks == 1 {
            self.since = Instant::now();
        } else if self.looks > LOOKS {
            std::thread::yield_now();
            if self.since.elapsed() > PATIENCE {
                return Err(PeersError::Failed {
                    attempt,
                    reason: format!("none for {PATIENCE:?}"),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_messages_are_under_way_than_the_depth_allows() {
        let mut count = Count::of(3);
        assert!(count.may_post(2) && !count.is_over());
        count.posted = 2;
        assert!(!count.may_post(2));
        count.sent = 2;
        assert!(!count.may_post(2), "the other end has not seen them");
        count.received = 1;
        assert!(count.may_post(2));
        count = Count {
            posted: 3,
            sent: 3,
            received: 3,
            ..count
        };
        assert!(!count.may_post(2) && count.is_over());
    }
}
