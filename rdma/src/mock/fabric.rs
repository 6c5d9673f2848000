//! What the mock provider keeps: queue pairs, completion queues, regions, due events.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::events::Event;
use super::queues::QueuePair;
use super::shared_receive::SharedReceives;
use super::work::Part;
use crate::sys;

/// All mock objects of the process, by the numbers that the C structures carry.
#[derive(Default)]
pub(super) struct Fabric {
    pub(super) queue_pairs: HashMap<u32, QueuePair>,
    pub(super) queues: HashMap<usize, Queue>,
    pub(super) regions: HashMap<u32, Region>,
    /// By the address of the queue's structure.
    pub(super) shared_receives: HashMap<usize, SharedReceives>,
    pub(super) due: HashMap<RawFd, VecDeque<usize>>,
    /// What waits to be taken, by the descriptor of the context that reports it.
    pub(super) events: HashMap<RawFd, VecDeque<Event>>,
    /// The descriptor that events of an object are reported on, by the address of its structure.
    pub(super) reporters: HashMap<usize, RawFd>,
    /// Events and notifications of an object that were taken and not acknowledged.
    pub(super) taken: HashMap<usize, u32>,
    /// With which errno a context, by its descriptor, refuses the next registration.
    pub(super) refuse_registration: HashMap<RawFd, i32>,
    /// The upper parts of the keys of windows.
    pub(super) windows: HashSet<u32>,
    /// With which errno a context, by its descriptor, refuses once to destroy a window.
    pub(super) refuse_window_end: HashMap<RawFd, i32>,
    /// The structures of queue pairs, by their numbers.
    pub(super) structures: HashMap<u32, usize>,
    numbers: u32,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<sys::ibv_wc>,
    pub(super) capacity: usize,
    pub(super) channel: Option<RawFd>,
    pub(super) armed: bool,
    pub(super) overrun: bool,
    /// What the queue's owner calls it.
    pub(super) tag: u64,
}

pub(super) struct Region {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) access: u32,
    pub(super) pd: usize,
    pub(super) holder: Holder,
}

/// Whose way to some memory a key is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// That of the memory's owner, and of peers: a region's.
    Region,
    /// Of the peers of a whole protection domain: a window's of type 1.
    Domain,
    /// Of the peer of one queue pair: a window's of type 2.
    QueuePair(u32),
}

static FABRIC: LazyLock<Mutex<Fabric>> = LazyLock::new(Mutex::default);

pub(super) fn lock() -> MutexGuard<'static, Fabric> {
    // A test that failed while it held the lock says nothing about the others.
    FABRIC.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn signal(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: an eventfd of ours takes eight bytes.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

impl Fabric {
    /// A number for a queue pair or key, never used twice.
    pub(super) fn number(&mut self) -> u32 {
        self.numbers += 1;
        0x100 + self.numbers
    }

    pub(super) fn complete(
        &mut self,
        queue: usize,
        qp_number: u32,
        status: sys::ibv_wc_status,
        done: sys::ibv_wc,
    ) {
        let Some(target) = self.queues.get_mut(&queue) else {
            return;
        };
        if target.entries.len() >= target.capacity {
            target.overrun = true;
            self.report_object(queue, sys::IBV_EVENT_CQ_ERR);
            return;
        }
        target.entries.push_back(sys::ibv_wc {
            qp_num: qp_number,
            status,
            ..done
        });
        if let Some(channel) = target.channel
            && target.armed
        {
            target.armed = false;
            self.due.entry(channel).or_default().push_back(queue);
            signal(channel);
        }
    }

    /// Whether all parts lie in regions of the protection domain with these rights.
    pub(super) fn covers(&self, parts: &[Part], pd: usize, access: u32) -> bool {
        parts
            .iter()
            .all(|part| self.allows(part.lkey, part.address, part.len.into(), (pd, None), access))
    }

    /// Whether a key opens this range, with these rights, to a user: a protection domain, and the number
    /// of the queue pair when it is a peer that asks.
    pub(super) fn allows(
        &self,
        key: u32,
        address: u64,
        len: u64,
        (pd, peer): (usize, Option<u32>),
        access: u32,
    ) -> bool {
        self.regions.get(&key).is_some_and(|region| {
            let open = match region.holder {
                Holder::Region => true,
                Holder::Domain => peer.is_some(),
                Holder::QueuePair(number) => peer == Some(number),
            };
            region.pd == pd
                && open
                && region.access & access == access
                && address >= region.start
                && address
                    .checked_add(len)
                    .is_some_and(|end| end <= region.start + region.len)
        })
    }
}
