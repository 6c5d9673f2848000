//! How a fabric is set up.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::serve::MAX_PEER_SLOTS;
use super::{FabricError, FabricKind};
use crate::verbs::GidChoice;

/// How to run a fabric.
#[derive(Debug, Clone)]
pub struct FabricConfig {
    /// What carries the chunks.
    pub kind: FabricKind,
    /// TCP: where the data port listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// TCP: the address that peers are told to connect to, if not the one listened on.
    pub advertise: Option<IpAddr>,
    /// Verbs: the device's name; without one, the first of this network namespace that has an active
    /// port.
    pub device: Option<String>,
    /// Verbs: the device's port, from 1; without one, the first that is active.
    pub device_port: Option<u8>,
    /// Verbs: which of the port's addresses to use.
    pub gid: GidChoice,
    /// Slots of the arena kept for each peer we ask, and so the most requests under way to it.
    pub arena_slots: usize,
    /// Requests of one peer that are worked on, or whose answers are on their way to it, at a time.
    pub serves_per_peer: usize,
    /// How long a peer that owes us an answer may give no sign of life. Over verbs, one whose adapter
    /// still acknowledges is too busy rather than gone, and is given three times as long.
    pub deadline: Duration,
    /// How long an accepted peer may take to open its data connection.
    pub ticket_lifetime: Duration,
}

impl FabricConfig {
    /// A fabric over TCP with the usual settings: arenas of 16 slots, 8 requests of a peer worked
    /// on at a time, a deadline of 10 s.
    pub fn tcp(listen: SocketAddr) -> FabricConfig {
        FabricConfig {
            kind: FabricKind::Tcp,
            listen,
            advertise: None,
            device: None,
            device_port: None,
            gid: GidChoice::Automatic,
            arena_slots: 16,
            serves_per_peer: 8,
            deadline: Duration::from_secs(10),
            ticket_lifetime: Duration::from_secs(30),
        }
    }

    /// A fabric over verbs on that device, or on the first that will do, with the settings
    /// of [`FabricConfig::tcp`].
    pub fn verbs(device: Option<String>) -> FabricConfig {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        FabricConfig {
            kind: FabricKind::Verbs,
            device,
            ..FabricConfig::tcp(nowhere)
        }
    }

    /// Refuses settings that make no sense.
    pub(super) fn check(&self) -> Result<(), FabricError> {
        let wrong = |name, reason: String| Err(FabricError::Setting { name, reason });
        if !(1..=MAX_PEER_SLOTS).contains(&self.arena_slots) {
            let reason = format!("{} slots: 1 to {} work", self.arena_slots, MAX_PEER_SLOTS);
            return wrong("arena_slots", reason);
        }
        if !(1..=MAX_PEER_SLOTS).contains(&self.serves_per_peer) {
            let reason = format!("{}: 1 to {} work", self.serves_per_peer, MAX_PEER_SLOTS);
            return wrong("serves_per_peer", reason);
        }
        if self.deadline < Duration::from_millis(100) {
            return wrong(
                "deadline",
                format!("{:?}: 100 ms is the least", self.deadline),
            );
        }
        Ok(())
    }
}
