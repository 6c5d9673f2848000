//! Devices of one board should be alike: firmware, rate, lanes, MTU, flow control.

use std::collections::BTreeMap;

use super::known;
use crate::check::facts::{DeviceFacts, LinkRate};
use crate::check::{Expectation, Finding};

pub(super) fn judge(devices: &[DeviceFacts], expectation: &Expectation) -> Vec<Finding> {
    let mut boards: BTreeMap<&str, Vec<&DeviceFacts>> = BTreeMap::new();
    for device in devices {
        if let (Some(board), false) = (&device.board, device.device.is_virtual) {
            boards.entry(board).or_default().push(device);
        }
    }
    let mut findings = Vec::new();
    for (board, siblings) in boards {
        findings.extend(firmware(board, &siblings));
        if expectation.rate_gbps.is_none() {
            findings.extend(rates(&siblings));
        }
        findings.extend(flow(&siblings));
        findings.extend(mtus(&siblings));
    }
    findings
}

/// What most have; of two equally frequent, the later in order.
fn usual<T: Ord + Clone>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, u32> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    counts
        .into_iter()
        .rev()
        .find(|(_, count)| *count == most)
        .map(|(value, _)| value)
}

/// `16.35.2000` as numbers, so that 16.9 comes before 16.35.
fn version(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn firmware(board: &str, siblings: &[&DeviceFacts]) -> Vec<Finding> {
    const ID: &str = "firmware/siblings";
    let versions = siblings
        .iter()
        .filter_map(|device| device.device.firmware.as_deref())
        .map(|text| (version(text), text));
    let Some((_, expected)) = usual(versions) else {
        return Vec::new();
    };
    siblings
        .iter()
        .filter_map(|device| {
            let found = device.device.firmware.as_deref()?;
            let name = &device.device.name;
            Some(if found == expected {
                Finding::ok(ID, name, found)
            } else {
                Finding::warning(ID, name, found)
                    .expected(format!("{expected}, as its siblings ({board}) have"))
                    .remedy(format!(
                        "bring all of them to one version ({} at {})",
                        name,
                        device.device.pci_address.as_deref().unwrap_or("?")
                    ))
            })
        })
        .collect()
}

/// Active ports with what they are judged by.
fn active<'a>(
    siblings: &'a [&DeviceFacts],
) -> impl Iterator<Item = (String, &'a DeviceFacts, &'a crate::check::facts::PortFacts)> {
    siblings.iter().flat_map(|device| {
        device.ports.iter().filter_map(|port| {
            let known = known(device, port)?;
            (known.state.as_deref() == Some("ACTIVE")).then(|| {
                (
                    format!("{}/{}", device.device.name, port.number),
                    *device,
                    port,
                )
            })
        })
    })
}

fn rates(siblings: &[&DeviceFacts]) -> Vec<Finding> {
    const ID: &str = "port/siblings";
    let rates: Vec<(String, &LinkRate)> = active(siblings)
        .filter_map(|(subject, _, port)| Some((subject, port.rate.as_ref()?)))
        .collect();
    let Some((best, most)) = rates.iter().max_by(|a, b| a.1.gbps.total_cmp(&b.1.gbps)) else {
        return Vec::new();
    };
    rates
        .iter()
        .filter(|(_, rate)| rate.gbps < most.gbps)
        .map(|(subject, rate)| {
            let found = format!("{} Gb/s", rate.gbps);
            let expected = format!("{} Gb/s, as {best} has", most.gbps);
            let lost_lanes = rate.generation == most.generation && rate.lanes < most.lanes;
            if let (true, Some(lanes), Some(of)) = (lost_lanes, rate.lanes, most.lanes) {
                // The same signalling on fewer lanes is a link that lost some.
                Finding::failure(ID, subject, format!("{found} on {lanes} lanes of {of}"))
                    .expected(expected)
                    .remedy("a lane is lost: clean, reseat or replace the cable, then the transceiver")
            } else {
                Finding::warning(ID, subject, found)
                    .expected(expected)
                    .remedy("if it is of another network, say what to expect with --device and --expect-rate; else check cable and switch port")
            }
        })
        .collect()
}

fn mtus(siblings: &[&DeviceFacts]) -> Vec<Finding> {
    let mtus: Vec<(String, u32, &str)> = active(siblings)
        .filter_map(|(subject, _, port)| {
            let net = port.net.as_ref()?;
            Some((subject, net.mtu?, net.name.as_str()))
        })
        .collect();
    let Some(expected) = usual(mtus.iter().map(|(_, mtu, _)| *mtu)) else {
        return Vec::new();
    };
    mtus.iter()
        .filter(|(_, mtu, _)| *mtu != expected)
        .map(|(subject, mtu, net)| {
            Finding::warning("port/mtu-siblings", subject, format!("{net} has MTU {mtu}"))
                .expected(format!("{expected}, as its siblings have"))
                .remedy(format!("ip link set {net} mtu {expected}"))
        })
        .collect()
}

fn flow(siblings: &[&DeviceFacts]) -> Vec<Finding> {
    let known: Vec<(String, u8)> = active(siblings)
        .filter_map(|(subject, _, port)| match port.flow.pfc {
            Some(Ok(priorities)) => Some((subject, priorities)),
            _ => None,
        })
        .collect();
    let Some(expected) = usual(known.iter().map(|(_, priorities)| *priorities)) else {
        return Vec::new();
    };
    known
        .iter()
        .filter(|(_, priorities)| *priorities != expected)
        .map(|(subject, priorities)| {
            Finding::warning(
                "flow/siblings",
                subject,
                format!("PFC on {}", super::traffic::priorities(*priorities)),
            )
            .expected(format!(
                "on {}, as its siblings have",
                super::traffic::priorities(expected)
            ))
            .remedy("set PFC alike on all ports (`dcb pfc set`, mlnx_qos) and switches")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_have_is_usual_and_of_two_the_newer() {
        assert_eq!(usual([3, 1, 1].into_iter()), Some(1));
        let two = ["16.9.1", "16.35.2"].map(|text| (version(text), text));
        assert_eq!(usual(two.into_iter()).map(|found| found.1), Some("16.35.2"));
        assert_eq!(usual(std::iter::empty::<u8>()), None);
    }
}
