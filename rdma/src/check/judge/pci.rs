//! Whether PCI carries what the ports can.

use super::known;
use crate::check::Finding;
use crate::check::facts::{DeviceFacts, PciLink};

pub(super) fn judge(device: &DeviceFacts) -> Vec<Finding> {
    let name = &device.device.name;
    let Some(pci) = &device.pci else {
        return Vec::new();
    };
    let mut findings = vec![width(name, pci), speed(name, pci)];
    findings.extend(carries(device, pci));
    findings.extend(iommu(name, pci));
    findings.extend(redirection(name, pci));
    findings
}

/// Judges what is in use against what the device and its slot could do.
fn against(
    id: &str,
    name: &str,
    (now, own, slot): (Option<f64>, Option<f64>, Option<f64>),
    print: impl Fn(f64) -> String,
    address: &str,
) -> Finding {
    let (Some(now), Some(own)) = (now, own) else {
        return Finding::note(id, name, format!("{address} doesn't tell"));
    };
    let possible = slot.map_or(own, |slot| slot.min(own));
    if now < possible {
        return Finding::failure(id, name, print(now))
            .expected(print(possible))
            .remedy(format!(
                "reseat the card at {address} and check its riser; look for corrected errors with `lspci -vv -s {address}` and in the kernel's log (AER)"
            ));
    }
    if now < own {
        return Finding::note(id, name, format!("{}, all that its slot has", print(now)))
            .expected(print(own))
            .remedy("a slot with more lanes or a newer generation would let it do all it can");
    }
    Finding::ok(id, name, print(now))
}

fn width(name: &str, pci: &PciLink) -> Finding {
    let slot = pci.slot.as_ref().and_then(|slot| slot.max_width);
    let lanes = (
        pci.width.map(f64::from),
        pci.max_width.map(f64::from),
        slot.map(f64::from),
    );
    against(
        "pci/width",
        name,
        lanes,
        |lanes| format!("x{lanes}"),
        &pci.address,
    )
}

fn speed(name: &str, pci: &PciLink) -> Finding {
    let slot = pci.slot.as_ref().and_then(|slot| slot.max_speed);
    let speeds = (pci.speed, pci.max_speed, slot);
    against(
        "pci/speed",
        name,
        speeds,
        |speed| format!("{speed} GT/s"),
        &pci.address,
    )
}

/// What a link carries, in Gb/s, before the headers of its packets: 8b/10b up to 5 GT/s, 128b/130b above.
fn gbps(width: u32, speed: f64) -> f64 {
    let share = if speed > 5.0 { 128.0 / 130.0 } else { 0.8 };
    f64::from(width) * speed * share
}

fn carries(device: &DeviceFacts, pci: &PciLink) -> Option<Finding> {
    let carried = gbps(pci.width?, pci.speed?);
    let needed: f64 = device
        .ports
        .iter()
        .filter(|port| {
            known(device, port).is_some_and(|known| known.state.as_deref() == Some("ACTIVE"))
        })
        .filter_map(|port| port.rate.as_ref())
        .map(|rate| rate.gbps)
        .sum();
    let name = &device.device.name;
    let found = format!("PCIe carries {carried:.0} Gb/s, its active ports {needed:.0} Gb/s");
    if needed == 0.0 {
        return None;
    }
    Some(if carried < needed {
        Finding::warning("pci/bandwidth", name, found)
            .expected(format!("at least {needed:.0} Gb/s"))
            .remedy("put the card into a wider or newer slot, or spread its ports over two cards")
    } else {
        Finding::ok("pci/bandwidth", name, found)
    })
}

fn iommu(name: &str, pci: &PciLink) -> Option<Finding> {
    let kind = pci.iommu.as_deref()?;
    Some(if kind == "identity" {
        Finding::ok("pci/iommu", name, "addresses pass untranslated")
    } else {
        Finding::note("pci/iommu", name, format!("translates addresses ({kind})"))
            .expected("identity, for full speed with many regions")
            .remedy("boot with iommu=pt")
    })
}

fn redirection(name: &str, pci: &PciLink) -> Option<Finding> {
    let first = pci.redirecting.first()?;
    let all = pci.redirecting.join(", ");
    Some(
        Finding::note(
            "pci/acs",
            name,
            format!("{all} send traffic between devices up to the root"),
        )
        .expected("access control services off, when GPUs shall reach the adapter directly")
        .remedy(format!(
            "turn ACS off in the firmware's set-up, or `setpci -s {first} ECAP_ACS+6.w=0`"
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_carries_is_reckoned_with_its_encoding() {
        assert_eq!(gbps(8, 5.0).round(), 32.0);
        assert_eq!(gbps(16, 8.0).round(), 126.0);
        assert_eq!(gbps(16, 32.0).round(), 504.0);
    }
}
