//! Counters, the load, and what keeps a RoCE port from dropping packets.

use super::Seen;
use crate::check::Finding;
use crate::check::counters::{Counters, Meaning};
use crate::check::facts::Load;

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let mut findings = load(seen);
    findings.extend(standing(seen));
    if seen.is_ethernet() && !seen.device.device.is_virtual {
        findings.extend(flow(seen));
    }
    findings
}

fn load(seen: &Seen<'_>) -> Vec<Finding> {
    const ID: &str = "load/run";
    let subject = &seen.subject;
    match &seen.port.load {
        Load::Skipped => Vec::new(),
        Load::Unable(reason) => vec![
            Finding::unknown(ID, subject, reason.clone())
                .expected("a load from the port to itself")
                .remedy("remove what stands in its way, or leave it out with --no-load"),
        ],
        Load::Broke { reason, after } => {
            let broke = Finding::failure(ID, subject, reason.clone())
                .expected("every byte arrives")
                .remedy(
                    "see the kernel's log for this device; its firmware and driver should match",
                );
            let mut findings = vec![broke];
            findings.extend(rises(seen, after));
            findings
        }
        Load::Ran { row, after } => {
            let speed = row.gbit_per_second.unwrap_or(0.0);
            let found = format!(
                "{} messages of {} bytes to itself in {:.1} s, {speed:.1} Gb/s, every byte right",
                row.messages, row.bytes, row.seconds
            );
            let mut findings = vec![Finding::ok(ID, subject, found)];
            findings.extend(rises(seen, after));
            findings
        }
    }
}

fn rises(seen: &Seen<'_>, after: &Counters) -> Vec<Finding> {
    const ID: &str = "counters/load";
    let subject = &seen.subject;
    let before = &seen.port.counters;
    if before.0.is_empty() {
        return vec![Finding::note(
            ID,
            subject,
            "it has no counters that can be read",
        )];
    }
    let risen = before.risen(after);
    if risen.is_empty() {
        let found = format!("none of {} counters tells of a fault", before.0.len());
        return vec![Finding::ok(ID, subject, found)];
    }
    risen
        .into_iter()
        .map(|(name, rise, meaning)| {
            let found = format!("{name} rose by {rise} during the load");
            let finding = match meaning {
                Meaning::Congestion => Finding::note(ID, subject, found),
                // A software device loses packets when its CPU is busy.
                Meaning::Retransmission if seen.device.device.is_virtual => {
                    Finding::warning(ID, subject, found)
                }
                _ => Finding::failure(ID, subject, found),
            };
            finding.expected("no rise").remedy(meaning.remedy())
        })
        .collect()
}

fn standing(seen: &Seen<'_>) -> Vec<Finding> {
    let standing = seen.port.counters.standing();
    if standing.is_empty() {
        return Vec::new();
    }
    let list: Vec<String> = standing
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    vec![
        Finding::note(
            "counters/standing",
            &seen.subject,
            format!("since its driver was loaded: {}", list.join(", ")),
        )
        .remedy("check again later: what still rises is a bad cable or transceiver"),
    ]
}

/// Priorities as people write them.
pub(super) fn priorities(mask: u8) -> String {
    let list: Vec<String> = (0..8)
        .filter(|priority| mask & (1 << priority) != 0)
        .map(|priority| priority.to_string())
        .collect();
    match list.as_slice() {
        [] => "no priority".to_owned(),
        [one] => format!("priority {one}"),
        _ => format!("priorities {}", list.join(", ")),
    }
}

fn flow(seen: &Seen<'_>) -> Vec<Finding> {
    let subject = &seen.subject;
    let flow = &seen.port.flow;
    let mut findings = Vec::new();
    match &flow.pfc {
        Some(Ok(mask)) => findings.push(Finding::note(
            "flow/pfc",
            subject,
            format!("PFC on {}", priorities(*mask)),
        )),
        Some(Err(reason)) => findings.push(Finding::note(
            "flow/pfc",
            subject,
            format!("PFC is not readable: {reason}"),
        )),
        None => {}
    }
    match flow.ecn {
        Some(mask) => findings.push(Finding::note(
            "flow/ecn",
            subject,
            format!("ECN on {}", priorities(mask)),
        )),
        None => findings.push(Finding::note(
            "flow/ecn",
            subject,
            "ECN is not readable: its driver has no ecn folder in sysfs",
        )),
    }
    let pfc = match flow.pfc {
        Some(Ok(mask)) => Some(mask),
        _ => None,
    };
    if (pfc, flow.ecn) == (Some(0), Some(0)) {
        findings.push(
            Finding::warning("flow/lossless", subject, "neither PFC nor ECN is on")
                .expected("at least one of them, alike on all nodes and switches")
                .remedy("turn ECN on for the priority of RoCE, and PFC where the network is built for it"),
        );
    }
    if pfc.is_some_and(|mask| mask != 0)
        && flow.pause.is_some_and(|(sends, honours)| sends || honours)
    {
        findings.push(
            Finding::warning(
                "flow/pause",
                subject,
                "pause frames for the whole link are on besides PFC",
            )
            .expected("one of them")
            .remedy("ethtool -A DEVICE rx off tx off"),
        );
    }
    findings
}
