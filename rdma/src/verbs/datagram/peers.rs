//! The destinations of one datagram queue pair.

use super::DatagramPeer;
use crate::sys;
use crate::verbs::address::AddressHandle;
use crate::verbs::post::{Destination, WorkRequests};
use crate::verbs::ring::Ring;

/// Destinations by their places, which are used again.
pub(super) struct Peers {
    /// What their names carry, so that no other queue pair takes them.
    pair: u64,
    slots: Vec<Slot>,
}

struct Slot {
    /// Destinations that had the place before.
    uses: u32,
    handle: Option<AddressHandle>,
    /// The newest work request to it. Work requests complete in order, so none to it is outstanding when
    /// this one is not.
    newest: Option<u64>,
}

/// Where a datagram goes, as the adapter takes it.
#[derive(Clone, Copy)]
pub(super) struct Target {
    handle: *mut sys::ibv_ah,
    qp_number: u32,
    queue_key: u32,
}

impl Destination for Target {
    #[inline]
    unsafe fn set(self, work: &WorkRequests) {
        // SAFETY: as the caller says.
        unsafe { work.set_address(self.handle, self.qp_number, self.queue_key) };
    }
}

impl Target {
    fn of(handle: &AddressHandle) -> Target {
        Target {
            handle: handle.as_ptr(),
            qp_number: handle.to().qp_number,
            queue_key: handle.to().queue_key,
        }
    }
}

impl Peers {
    /// Of the queue pair with this number, which no other of the process has.
    pub(super) fn new(pair: u64) -> Peers {
        Peers {
            pair,
            slots: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, handle: AddressHandle) -> DatagramPeer {
        let free = self.slots.iter().position(|slot| slot.handle.is_none());
        let index = free.unwrap_or_else(|| {
            self.slots.push(Slot {
                uses: 0,
                handle: None,
                newest: None,
            });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.handle = Some(handle);
        DatagramPeer {
            pair: self.pair,
            index: index as u32,
            uses: slot.uses,
        }
    }

    fn find(&mut self, peer: DatagramPeer) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(peer.index as usize)?;
        let known = peer.pair == self.pair && slot.uses == peer.uses && slot.handle.is_some();
        known.then_some(slot)
    }

    pub(super) fn target(&mut self, peer: DatagramPeer) -> Option<Target> {
        self.find(peer)?.handle.as_ref().map(Target::of)
    }

    /// Notes a work request to a destination.
    pub(super) fn note(&mut self, peer: DatagramPeer, number: u64) {
        if let Some(slot) = self.find(peer) {
            slot.newest = Some(number);
        }
    }

    /// Forgets a destination, when nothing is on its way there.
    pub(super) fn remove<S>(&mut self, peer: DatagramPeer, sends: &Ring<S>) -> bool {
        let Some(slot) = self.find(peer) else {
            return false;
        };
        if slot.newest.is_some_and(|number| !sends.is_past(number)) {
            return false;
        }
        slot.handle = None;
        slot.newest = None;
        slot.uses = slot.uses.wrapping_add(1);
        true
    }

    /// A destination that stays while this work request is outstanding, which is the newest, and the next
    /// one.
    pub(super) fn hold_until(&mut self, newest: u64) -> Option<Target> {
        let slot = self.slots.iter_mut().find(|slot| slot.handle.is_some())?;
        slot.newest = Some(newest.wrapping_add(1));
        slot.handle.as_ref().map(Target::of)
    }

    /// Keeps all handles for ever.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}
