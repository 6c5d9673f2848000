//! A port's counters, and what it means when one rises.

use std::collections::BTreeMap;
use std::path::Path;

use crate::kernel_files;

/// Counters by name, from `counters` and `hw_counters` of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<String, u64>);

/// More are not read.
const MOST_COUNTERS: usize = 1024;

/// What a counter that rises tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The link or the adapter damages or loses what it carries.
    Link,
    /// Packets were lost or came late, and were sent again.
    Retransmission,
    /// A request was refused or gave up.
    Request,
    /// The network signals congestion; a loopback should see none.
    Congestion,
}

impl Meaning {
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Meaning::Link => {
                "clean or replace cable and transceivers, then look at the switch port's counters"
            }
            Meaning::Retransmission => {
                "packets were lost: check the cable, the switch's buffers, and that PFC or ECN is set alike on all hops"
            }
            Meaning::Request => {
                "see the kernel's log for this device; firmware and driver should match"
            }
            Meaning::Congestion => {
                "other traffic shares the port: check again on a quiet node, or lower its load"
            }
        }
    }
}

/// The InfiniBand port counters (IBTA volume 1, PortCounters), and those that mlx5, irdma, bnxt_re, efa
/// and rxe add. A name that is not here says nothing bad by rising.
const MEANINGS: &[(&str, Meaning)] = &[
    ("symbol_error", Meaning::Link),
    ("link_error_recovery", Meaning::Link),
    ("link_downed", Meaning::Link),
    ("port_rcv_errors", Meaning::Link),
    ("port_rcv_remote_physical_errors", Meaning::Link),
    ("local_link_integrity_errors", Meaning::Link),
    ("excessive_buffer_overrun_errors", Meaning::Link),
    ("port_rcv_switch_relay_errors", Meaning::Link),
    ("port_rcv_constraint_errors", Meaning::Link),
    ("port_xmit_constraint_errors", Meaning::Link),
    ("VL15_dropped", Meaning::Link),
    ("port_xmit_discards", Meaning::Retransmission),
    ("rx_icrc_encapsulated", Meaning::Link),
    ("out_of_sequence", Meaning::Retransmission),
    ("packet_seq_err", Meaning::Retransmission),
    ("implied_nak_seq_err", Meaning::Retransmission),
    ("local_ack_timeout_err", Meaning::Retransmission),
    ("rnr_nak_retry_err", Meaning::Retransmission),
    ("duplicate_request", Meaning::Retransmission),
    ("out_of_buffer", Meaning::Retransmission),
    ("roce_adp_retrans", Meaning::Retransmission),
    ("roce_slow_restart", Meaning::Retransmission),
    ("req_cqe_error", Meaning::Request),
    ("resp_cqe_error", Meaning::Request),
    ("req_remote_access_errors", Meaning::Request),
    ("req_remote_invalid_request", Meaning::Request),
    ("resp_remote_access_errors", Meaning::Request),
    ("resp_local_length_error", Meaning::Request),
    ("np_cnp_sent", Meaning::Congestion),
    ("rp_cnp_handled", Meaning::Congestion),
    ("np_ecn_marked_roce_packets", Meaning::Congestion),
    // rxe
    ("rcvd_seq_err", Meaning::Retransmission),
    ("out_of_seq_request", Meaning::Retransmission),
    ("completer_retry_err", Meaning::Retransmission),
    ("rcvd_rnr_err", Meaning::Retransmission),
    ("send_rnr_err", Meaning::Retransmission),
    ("retry_exceeded_err", Meaning::Request),
    ("retry_rnr_exceeded_err", Meaning::Request),
    ("send_err", Meaning::Request),
    // bnxt_re
    ("seq_err_naks_rcvd", Meaning::Retransmission),
    ("to_retransmits", Meaning::Retransmission),
    ("rnr_naks_rcvd", Meaning::Retransmission),
    ("max_retry_exceeded", Meaning::Request),
    ("missing_resp", Meaning::Retransmission),
    ("unrecoverable_err", Meaning::Request),
    ("bad_resp_err", Meaning::Request),
    // irdma
    ("ip4InDiscards", Meaning::Retransmission),
    ("ip6InDiscards", Meaning::Retransmission),
    ("RxECNMrkd", Meaning::Congestion),
    ("cnpHandled", Meaning::Congestion),
    // efa
    ("rx_drops", Meaning::Retransmission),
    ("retrans_timeout_events", Meaning::Retransmission),
];

pub(super) fn meaning(name: &str) -> Option<Meaning> {
    MEANINGS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, meaning)| *meaning)
}

impl Counters {
    /// Reads a port's folder in sysfs. Counters that can't be read are left out.
    pub(super) fn read(port: &Path) -> Counters {
        let mut counters = BTreeMap::new();
        for kind in ["counters", "hw_counters"] {
            let folder = port.join(kind);
            for name in kernel_files::names(&folder).into_iter().take(MOST_COUNTERS) {
                // It says how often the driver asks the adapter: not a counter.
                if name == "lifespan" {
                    continue;
                }
                if let Some(value) = kernel_files::value(&folder.join(&name)) {
                    counters.insert(name, value);
                }
            }
        }
        Counters(counters)
    }

    /// Reads only those of a port that tell of a damaged link, below `root`: a dozen files at most.
    pub fn of_link(root: &Path, device: &str, port: u32) -> Counters {
        let folder = root.join(format!("sys/class/infiniband/{device}/ports/{port}"));
        let names = MEANINGS
            .iter()
            .filter(|(_, meaning)| *meaning == Meaning::Link);
        let read = names.filter_map(|(name, _)| {
            let mut kinds = ["counters", "hw_counters"].iter();
            let value =
                kinds.find_map(|kind| kernel_files::value(&folder.join(kind).join(name)))?;
            Some(((*name).to_owned(), value))
        });
        Counters(read.collect())
    }

    /// Which counters of a damaged link rose since `before`, and by how much.
    pub fn link_errors_since(&self, before: &Counters) -> Vec<(&str, u64)> {
        let risen = before.risen(self).into_iter();
        risen
            .filter(|(_, _, meaning)| *meaning == Meaning::Link)
            .map(|(name, rise, _)| (name, rise))
            .collect()
    }

    /// The counters with a meaning that rose, and by how much. One that fell was reset meanwhile and
    /// tells nothing.
    pub(super) fn risen<'a>(&self, after: &'a Counters) -> Vec<(&'a str, u64, Meaning)> {
        after
            .0
            .iter()
            .filter_map(|(name, now)| {
                let rise = now.checked_sub(*self.0.get(name)?)?;
                (rise > 0).then_some((name.as_str(), rise, meaning(name)?))
            })
            .collect()
    }

    /// The counters of the link that are not zero since the driver was loaded.
    pub(super) fn standing(&self) -> Vec<(&str, u64)> {
        self.0
            .iter()
            .filter(|(name, value)| **value > 0 && meaning(name) == Some(Meaning::Link))
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(values: &[(&str, u64)]) -> Counters {
        Counters(
            values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect(),
        )
    }

    #[test]
    fn only_a_known_bad_counter_that_rose_is_told() {
        let before = counters(&[
            ("symbol_error", 3),
            ("port_xmit_data", 10),
            ("link_downed", 2),
        ]);
        let after = counters(&[
            ("symbol_error", 5),
            ("port_xmit_data", 9000),
            ("link_downed", 0),
            ("out_of_sequence", 7),
        ]);
        assert_eq!(before.risen(&after), [("symbol_error", 2, Meaning::Link)]);
        assert_eq!(before.standing(), [("link_downed", 2), ("symbol_error", 3)]);
    }

    #[test]
    fn no_counter_has_two_meanings() {
        let mut names: Vec<_> = MEANINGS.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), MEANINGS.len());
    }
}
