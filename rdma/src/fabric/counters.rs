//! What the fabric did, counted where it happened.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::FabricKind;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A snapshot of a fabric's counters. All count up from the fabric's start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub struct FabricCounters {
            /// The transport these belong to.
            pub kind: FabricKind,
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters themselves: relaxed, as each stands alone.
        #[derive(Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self, kind: FabricKind) -> FabricCounters {
                FabricCounters { kind, $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Links on which we ask, opened.
    links_opened,
    /// Of those, ended, for whatever reason.
    links_ended,
    /// Peers that connected to ask us.
    peers_accepted,
    /// Of those, gone.
    peers_ended,
    /// Connections and frames that were refused as malformed or not authorised.
    intrusions,
    /// Requests sent to peers.
    requests_sent,
    /// Frames they travelled in.
    request_frames_sent,
    /// Payloads received.
    payloads_received,
    /// Data and trailer bytes of those.
    payload_bytes_received,
    /// Refusals received.
    refusals_received,
    /// Requests received from peers.
    requests_received,
    /// Payloads sent: over TCP handed to the socket, over verbs completed by the device.
    payloads_sent,
    /// Data and trailer bytes of those.
    payload_bytes_sent,
    /// Refusals sent.
    refusals_sent,
    /// RDMA writes posted, with or without immediate. Verbs only.
    verbs_writes_posted,
    /// RDMA writes that completed well. Verbs only.
    verbs_writes_completed,
    /// Bytes those moved. Verbs only.
    verbs_write_bytes_completed,
    /// Writes with immediate that arrived. Verbs only.
    verbs_immediates_received,
    /// Sends that completed well. Verbs only.
    verbs_sends_completed,
    /// Work that completed with an error, flushes included. Verbs only.
    verbs_work_failed,
}

/// One number that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn increment(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
