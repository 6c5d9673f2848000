//! State, rate and MTU of a port.

use super::Seen;
use crate::check::{Expectation, Finding};

/// What a RoCE packet needs besides its payload, as the kernel reckons (iboe_get_mtu): GRH 40, UDP 8,
/// BTH 12, XRC 4, atomic 28, ICRC 4.
const ROCE_HEADERS: u32 = 96;
/// The largest MTU of InfiniBand and RoCE.
const LARGEST_MTU: u32 = 4096;

pub(super) fn judge(seen: &Seen<'_>, expectation: &Expectation) -> Vec<Finding> {
    let mut findings = vec![state(seen)];
    if seen.is_active() {
        findings.extend(rate(seen, expectation));
        findings.extend(duplex(seen));
        findings.extend(mtu(seen, expectation));
    }
    findings
}

fn state(seen: &Seen<'_>) -> Finding {
    const ID: &str = "port/state";
    let Some(state) = seen.known.state.as_deref() else {
        return Finding::unknown(ID, &seen.subject, "its state can't be read")
            .expected("ACTIVE")
            .remedy("check again: the device may have been removed or reset meanwhile");
    };
    let physical = seen.known.physical_state.as_deref();
    let found = match physical {
        Some(physical) => format!("{state} (physical state {physical})"),
        None => state.to_owned(),
    };
    if state == "ACTIVE" {
        return match physical {
            Some("LinkUp") | None => Finding::ok(ID, &seen.subject, found),
            Some(_) => Finding::warning(ID, &seen.subject, found)
                .expected("ACTIVE (physical state LinkUp)")
                .remedy("the link is recovering from errors: check cable and transceivers"),
        };
    }
    let port = "if the port is meant to be unused, name the others with --device";
    let remedy = match (physical, &seen.known.net_device) {
        (Some("Disabled"), Some(net)) => format!("ip link set {net} up; {port}"),
        (Some("Polling" | "Sleep"), _) => {
            format!("no signal from the other end: check the cable and the switch's port; {port}")
        }
        (_, Some(net)) => format!("bring up its net device {net}, check its cable; {port}"),
        (Some("LinkUp"), None) => {
            "the link is there but not configured: start a subnet manager (opensm)".to_owned()
        }
        (_, None) => format!("check its cable and that a subnet manager runs; {port}"),
    };
    Finding::failure(ID, &seen.subject, found)
        .expected("ACTIVE (physical state LinkUp)")
        .remedy(remedy)
}

fn rate(seen: &Seen<'_>, expectation: &Expectation) -> Option<Finding> {
    const ID: &str = "port/rate";
    let subject = &seen.subject;
    let Some(rate) = &seen.port.rate else {
        return Some(
            Finding::unknown(ID, subject, "its rate can't be read")
                .remedy("check again: the device may have been removed or reset meanwhile"),
        );
    };
    let lanes = match (rate.lanes, &rate.generation) {
        (Some(lanes), Some(generation)) => format!(" ({lanes}X {generation})"),
        (Some(lanes), None) => format!(" ({lanes}X)"),
        (None, _) => String::new(),
    };
    let found = format!("{} Gb/s{lanes}", rate.gbps);
    Some(match expectation.rate_gbps {
        // Software devices name a rate that says nothing.
        None if seen.device.device.is_virtual => Finding::note(
            ID,
            subject,
            format!("{found}, which a software device only claims"),
        ),
        None => Finding::ok(ID, subject, found),
        Some(expected) if rate.gbps < expected => Finding::failure(ID, subject, found)
            .expected(format!("{expected} Gb/s"))
            .remedy(
                "reseat or replace the cable; compare speed, lanes and FEC with the switch's port",
            ),
        Some(expected) => Finding::ok(ID, subject, found).expected(format!("{expected} Gb/s")),
    })
}

fn duplex(seen: &Seen<'_>) -> Option<Finding> {
    let net = seen.port.net.as_ref()?;
    let half = net.duplex.as_deref() == Some("half");
    half.then(|| {
        Finding::failure(
            "port/duplex",
            &seen.subject,
            format!("{} is half duplex", net.name),
        )
        .expected("full duplex")
        .remedy(format!(
            "let both ends negotiate: ethtool -s {} autoneg on",
            net.name
        ))
    })
}

/// The largest RoCE MTU that a net device's MTU has room for.
fn roce_mtu(net_mtu: u32) -> Option<u32> {
    let room = net_mtu.checked_sub(ROCE_HEADERS)?;
    [4096, 2048, 1024, 512, 256]
        .into_iter()
        .find(|mtu| *mtu <= room)
}

fn mtu(seen: &Seen<'_>, expectation: &Expectation) -> Option<Finding> {
    const ID: &str = "port/mtu";
    let subject = &seen.subject;
    let net = seen.port.net.as_ref().filter(|_| seen.is_ethernet());
    let net_mtu = net.and_then(|net| net.mtu);
    // Where verbs could not be asked, the net device's MTU tells it.
    let Some(active) = seen.known.active_mtu.or_else(|| roce_mtu(net_mtu?)) else {
        let finding = match (expectation.mtu, net, net_mtu) {
            (_, Some(net), Some(mtu)) => Finding::failure(
                ID,
                subject,
                format!("its net device {} has MTU {mtu}", net.name),
            )
            .expected("4200 or more")
            .remedy(format!("ip link set {} mtu 9000", net.name)),
            (Some(expected), ..) => Finding::unknown(ID, subject, "its MTU can't be read")
                .expected(expected.to_string())
                .remedy("install libibverbs1 and ibverbs-providers, which can tell"),
            (None, ..) => Finding::note(ID, subject, "its MTU can't be read"),
        };
        return Some(finding);
    };
    let largest = seen.known.max_mtu.unwrap_or(LARGEST_MTU);
    let wanted = expectation.mtu.unwrap_or(largest);
    let found = match net_mtu {
        Some(net_mtu) => format!("{active}, with {net_mtu} on its net device"),
        None => active.to_string(),
    };
    if active >= wanted {
        return Some(Finding::ok(ID, subject, found));
    }
    let remedy = match net {
        Some(net) => format!(
            "ip link set {} mtu 9000, on all nodes and switches alike",
            net.name
        ),
        None => "raise the MTU of the partition in the subnet manager".to_owned(),
    };
    let finding = match expectation.mtu {
        Some(_) => Finding::failure(ID, subject, found),
        None => Finding::warning(ID, subject, found),
    };
    Some(finding.expected(wanted.to_string()).remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roce_mtu_follows_the_net_devices_as_in_the_kernel() {
        assert_eq!(roce_mtu(9000), Some(4096));
        assert_eq!(roce_mtu(4200), Some(4096));
        assert_eq!(roce_mtu(4191), Some(2048));
        assert_eq!(roce_mtu(1500), Some(1024));
        assert_eq!(roce_mtu(300), None);
        assert_eq!(roce_mtu(0), None);
    }
}
