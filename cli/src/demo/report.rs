//! What the demo says at its end: a short table for people, one object for programs.

use crate::exit::Failure;
use crate::output::{Output, print};
use crate::size::Size;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The most that may come from the origin, as a share of the dataset.
pub(crate) const ORIGIN_SHARE_MAX: f64 = 1.02;

/// The outcome of a run that read everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Files in the dataset.
    pub(crate) dataset_files: u64,
    /// Bytes of all files in the dataset.
    pub(crate) dataset_bytes: u64,
    /// Bytes that all nodes together read from the origin.
    pub(crate) origin_bytes: u64,
    /// Bytes that all nodes together took from peers.
    pub(crate) peer_bytes: u64,
    /// What carried the peers' bytes, as the nodes' fabrics counted them.
    pub(crate) fabric: String,
    /// Every name, mode, size, symlink and byte on every reading node was the origin's.
    pub(crate) digest_ok: bool,
    /// The nodes that read, in order.
    pub(crate) nodes: Vec<NodeReport>,
    /// What the RDMA devices counted meanwhile; only with verbs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verbs: Option<VerbsReport>,
    /// The dataset's folder or URL.
    pub(crate) dataset: String,
    /// The nodes have network namespaces ("namespaces") or share "loopback".
    pub(crate) network: &'static str,
}

/// What one node read through its mount.
#[derive(Debug, Serialize)]
pub(crate) struct NodeReport {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// The devices' own counters over the run, beside what the verbs path counted at completions.
#[derive(Debug, Serialize)]
pub(crate) struct VerbsReport {
    /// Payload that arrived, as the verbs path counted it.
    pub(crate) fabric_bytes_received: u64,
    /// The path MTU, in bytes: a packet holds at most this much payload.
    pub(crate) path_mtu: u64,
    /// Packets that all devices received.
    pub(crate) packets_received: u64,
    /// The packets are enough for the bytes, and there are no bytes without packets.
    pub(crate) agree: bool,
    /// All counters that moved, summed over the devices.
    pub(crate) hw_counters: BTreeMap<String, u64>,
}

impl Report {
    /// What the origin gave, as a share of the dataset.
    pub(crate) fn origin_share(&self) -> f64 {
        self.origin_bytes as f64 / self.dataset_bytes.max(1) as f64
    }

    /// Why the outcome is not what was promised; empty when it is.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.digest_ok {
            faults.push("what was read through the mounts is not what the origin has".to_owned());
        }
        if self.origin_share() > ORIGIN_SHARE_MAX {
            faults.push(format!(
                "{:.3} of the dataset came from the origin, more than {ORIGIN_SHARE_MAX}: some \
                 nodes did not reach each other; `--log debug` shows which",
                self.origin_share()
            ));
        }
        if let Some(verbs) = &self.verbs
            && !verbs.agree
        {
            faults.push(format!(
                "the verbs path counted {} bytes, the devices {} packets of at most {} bytes",
                verbs.fabric_bytes_received, verbs.packets_received, verbs.path_mtu
            ));
        }
        faults
    }

    /// Prints it on stdout.
    pub(crate) fn print(&self, output: Output, notes: &[String]) -> Result<(), Failure> {
        match output {
            Output::Json => match serde_json::to_string(self) {
                Ok(line) => print(&line),
                Err(error) => Err(Failure::failed(format!("cannot write JSON: {error}"))),
            },
            Output::Table => print(&self.text(notes)),
        }
    }

    fn text(&self, notes: &[String]) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY);
        table.set_header(["node", "files", "bytes", "time", "MB/s", "digests"]);
        for node in &self.nodes {
            table.add_row([
                node.name.clone(),
                node.files.to_string(),
                Size(node.bytes).to_string(),
                format!("{:.1} s", node.seconds),
                rate(node.bytes, node.seconds),
                if self.digest_ok { "match" } else { "DIFFER" }.to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut lines = vec![
            format!(
                "{}: {} files, {}",
                self.dataset,
                self.dataset_files,
                Size(self.dataset_bytes)
            ),
            table.to_string(),
            format!(
                "from the origin  {:>10}   {:.3} of the dataset, however many nodes read it",
                Size(self.origin_bytes).to_string(),
                self.origin_share()
            ),
            format!(
                "from peers       {:>10}   over {}",
                Size(self.peer_bytes).to_string(),
                self.fabric
            ),
        ];
        if let Some(verbs) = &self.verbs {
            lines.push(format!(
                "RDMA devices     {:>10}   packets received, {} with the verbs path's {}",
                verbs.packets_received,
                if verbs.agree {
                    "agreeing"
                } else {
                    "DISAGREEING"
                },
                Size(verbs.fabric_bytes_received)
            ));
        }
        lines.extend(notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    }
}

/// How the person started the demo, when it was not by the binary's own name.
const STARTED_AS: &str = "TRACKBED_DEMO_STARTED_AS";

/// What a person may try after this run.
pub(crate) fn next_steps(report: &Report, named: bool) -> String {
    let demo = std::env::var(STARTED_AS).unwrap_or_else(|_| "trackbed demo".to_owned());
    let mut steps = Vec::new();
    if !named {
        steps.push((format!("{demo} --dataset PATH"), "with files of your own"));
    }
    if report.fabric != "verbs" {
        let run = "hack/vm run -- trackbed demo --fabric verbs".to_owned();
        steps.push((run, "the same over RDMA, in a virtual machine"));
    }
    if report.fabric == "verbs" {
        let devices = "trackbed rdma devices".to_owned();
        steps.push((devices, "what RDMA devices a machine has"));
    }
    steps.push((format!("{demo} --keep"), "look around while it runs"));
    let lines = steps
        .iter()
        .map(|(run, why)| format!("\n  {run:<45} {why}"));
    format!("Try next:{}", lines.collect::<String>())
}

/// Megabytes a second, with as many digits as mean something.
fn rate(bytes: u64, seconds: f64) -> String {
    let rate = bytes as f64 / seconds.max(1e-6) / 1e6;
    if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// Seconds, for the report.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            dataset_files: 3,
            dataset_bytes: 1000,
            origin_bytes: 1000,
            peer_bytes: 700,
            fabric: "tcp".into(),
            digest_ok: true,
            nodes: vec![NodeReport {
                name: "node-1".into(),
                seconds: 0.5,
                bytes: 1000,
                files: 3,
            }],
            verbs: None,
            dataset: "/data".into(),
            network: "namespaces",
        }
    }

    #[test]
    fn a_good_run_has_no_fault() {
        assert!(report().faults().is_empty());
    }

    #[test]
    fn too_much_from_the_origin_is_a_fault() {
        let over = Report {
            origin_bytes: 1021,
            ..report()
        };
        assert_eq!(over.faults().len(), 1);
        assert!(
            Report {
                origin_bytes: 1020,
                ..report()
            }
            .faults()
            .is_empty()
        );
    }

    #[test]
    fn differing_digests_and_disagreeing_counters_are_faults() {
        let verbs = VerbsReport {
            fabric_bytes_received: 700,
            path_mtu: 4096,
            packets_received: 0,
            agree: false,
            hw_counters: BTreeMap::new(),
        };
        let bad = Report {
            digest_ok: false,
            verbs: Some(verbs),
            ..report()
        };
        assert_eq!(bad.faults().len(), 2);
        assert!(bad.text(&[]).contains("DIFFER"));
    }

    #[test]
    fn the_object_has_the_promised_keys() {
        let value = serde_json::to_value(report()).unwrap();
        for key in [
            "dataset_files",
            "dataset_bytes",
            "origin_bytes",
            "peer_bytes",
            "fabric",
            "digest_ok",
        ] {
            assert!(!value[key].is_null(), "{key}");
        }
        assert_eq!(value["nodes"][0]["name"], "node-1");
    }
}
