//! Every number the cache counts: its name, its unit and what it means, in one place.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, from 0 at the agent's start.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number as monitoring sees it.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// `trackbed_cache_<what>_<unit>`, `_total` added to counters.
    pub name: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($field:ident $kind:ident $name:literal $help:literal)*) => {
        /// The live numbers, counted without locks.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $field: Count,)*
        }

        /// What an agent has counted so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct AgentCounters {
            $(#[doc = $help] pub $field: u64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> AgentCounters {
                AgentCounters { $($field: self.$field.get(),)* }
            }
        }

        impl AgentCounters {
            /// Each number with its description.
            pub fn metrics(&self) -> Vec<(Metric, u64)> {
                vec![$((
                    Metric { name: $name, kind: MetricKind::$kind, help: $help },
                    self.$field,
                ),)*]
            }
        }
    };
}

metrics! {
    origin_bytes Counter "trackbed_cache_origin_read_bytes_total"
        "Bytes of datasets read from origins"
    origin_requests Counter "trackbed_cache_origin_requests_total"
        "Reads asked of origins, repeated ones included"
    origin_errors Counter "trackbed_cache_origin_errors_total"
        "Reads that an origin failed"
    peer_in_bytes Counter "trackbed_cache_peer_received_bytes_total"
        "Bytes of datasets received from peers and found right"
    peer_in_chunks Counter "trackbed_cache_peer_received_chunks_total"
        "Chunks received from peers and found right"
    peer_out_bytes Counter "trackbed_cache_peer_sent_bytes_total"
        "Bytes of datasets given to the fabric for peers"
    peer_out_chunks Counter "trackbed_cache_peer_sent_chunks_total"
        "Chunks given to the fabric for peers"
    sibling_bytes Counter "trackbed_cache_shared_bytes_total"
        "Bytes of datasets taken from another version of the dataset on this node's disks"
    peer_referrals Counter "trackbed_cache_peer_referrals_total"
        "Times that a peer named another that has a chunk, as it was sending it to several already"
    peer_failures Counter "trackbed_cache_peer_failures_total"
        "Requests to peers that brought no chunk: unreachable, late or failing there"
    peer_corrupt_chunks Counter "trackbed_cache_peer_corrupt_chunks_total"
        "Chunks from peers that were not what their seal says"
    hedges Counter "trackbed_cache_hedges_total"
        "Requests to a second peer beside one that took long"
    hedges_won Counter "trackbed_cache_hedges_won_total"
        "Chunks that came first from whom was asked beside another"
    corrupt_blocks Counter "trackbed_cache_disk_corrupt_blocks_total"
        "Reads of this node's disk that met a damaged block or seal"
    disk_errors Counter "trackbed_cache_disk_errors_total"
        "Reads and writes of this node's disk that failed"
    disks_out Gauge "trackbed_cache_disks_out_of_service"
        "Disks of this node's cache that keep failing and are not used for now"
    disk_read_bytes Counter "trackbed_cache_disk_read_bytes_total"
        "Bytes of datasets read from this node's disk"
    stored_chunks Counter "trackbed_cache_disk_stored_chunks_total"
        "Chunks written to this node's disk"
    stored_bytes Gauge "trackbed_cache_used_bytes"
        "Bytes of datasets on this node's disks"
    evicted_versions Counter "trackbed_cache_evicted_versions_total"
        "Versions whose data was given up, to make room or because somebody asked"
    evicted_bytes Counter "trackbed_cache_evicted_bytes_total"
        "Bytes of datasets given up with them"
    unstored_chunks Counter "trackbed_cache_disk_full_chunks_total"
        "Chunks handed out without being stored, for want of space"
    checked_bytes Counter "trackbed_cache_scrub_read_bytes_total"
        "Bytes on this node's disk that upkeep has checked against their seals"
    mended_chunks Counter "trackbed_cache_scrub_mended_chunks_total"
        "Chunks that upkeep found damaged on this node's disk and put right"
    unmended_chunks Counter "trackbed_cache_scrub_lost_chunks_total"
        "Chunks that upkeep found damaged on this node's disk and nobody could deliver again"
    whole_trees Counter "trackbed_cache_trees_completed_total"
        "Versions made ready to be shown without a process in the way of reads"
    served_bytes Counter "trackbed_cache_read_bytes_total"
        "Bytes handed to readers"
    fills Counter "trackbed_cache_fills_total"
        "Chunks brought to this node, by reading, warming or prefetching"
    fills_joined Counter "trackbed_cache_fills_joined_total"
        "Requests for a chunk that was already on its way"
    fill_errors Counter "trackbed_cache_fill_errors_total"
        "Chunks that nobody could deliver"
    prefetched_chunks Counter "trackbed_cache_prefetched_chunks_total"
        "Chunks brought ahead of a reader"
}

/// One live number.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl AgentCounters {
    /// The numbers in Prometheus' text format, version 0.0.4.
    pub fn prometheus_text(&self) -> String {
        let mut text = String::new();
        for (metric, value) in self.metrics() {
            let Metric { name, help, .. } = metric;
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
            };
            writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            )
            .expect("a String takes all text");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_named_by_the_rules_and_shown() {
        let counters = Counters::default();
        counters.origin_bytes.add(7);
        let snapshot = counters.snapshot();
        for (metric, _) in snapshot.metrics() {
            assert!(
                metric.name.starts_with("trackbed_cache_"),
                "{}",
                metric.name
            );
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == MetricKind::Counter, "{}", metric.name);
        }
        let text = snapshot.prometheus_text();
        assert!(
            text.contains("\ntrackbed_cache_origin_read_bytes_total 7\n"),
            "{text}"
        );
        let json = serde_json::to_string(&snapshot).expect("numbers");
        assert_eq!(
            serde_json::from_str::<AgentCounters>(&json).expect("numbers"),
            snapshot
        );
    }
}
