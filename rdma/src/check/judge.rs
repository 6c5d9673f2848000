//! From facts to findings: pure functions, one file for each kind of thing that is judged.

mod addresses;
mod node;
mod pci;
mod port;
mod siblings;
mod traffic;

use super::facts::{DeviceFacts, Facts, PortFacts, Verbs};
use super::{Expectation, Finding};
use crate::devices::Port;

/// Judges everything that was gathered.
pub fn judge(facts: &Facts, expectation: &Expectation) -> Vec<Finding> {
    let mut findings = node::judge(facts);
    for device in &facts.devices {
        findings.extend(reach(device));
        findings.extend(pci::judge(device));
        for port in &device.ports {
            let Some(known) = known(device, port) else {
                continue;
            };
            let seen = Seen {
                subject: format!("{}/{}", device.device.name, port.number),
                device,
                port,
                known,
            };
            findings.extend(port::judge(&seen, expectation));
            if seen.is_active() {
                findings.extend(addresses::judge(&seen));
                findings.extend(traffic::judge(&seen));
            }
        }
        if device.ports.is_empty() {
            findings.push(
                Finding::failure("port/state", &device.device.name, "it has no port")
                    .expected("at least one")
                    .remedy(
                        "see the kernel's log: its driver gave up, or it was removed meanwhile",
                    ),
            );
        }
    }
    findings.extend(addresses::duplicates(&facts.devices));
    findings.extend(siblings::judge(&facts.devices, expectation));
    findings
}

/// A port with all that is known of it.
struct Seen<'a> {
    subject: String,
    device: &'a DeviceFacts,
    port: &'a PortFacts,
    known: &'a Port,
}

impl Seen<'_> {
    fn is_active(&self) -> bool {
        self.known.state.as_deref() == Some("ACTIVE")
    }

    fn is_ethernet(&self) -> bool {
        self.known.link_layer.as_deref() == Some("Ethernet")
    }
}

fn known<'a>(device: &'a DeviceFacts, port: &PortFacts) -> Option<&'a Port> {
    let ports = &device.device.ports;
    ports.iter().find(|known| known.number == port.number)
}

/// Whether user space reaches the device.
fn reach(device: &DeviceFacts) -> Vec<Finding> {
    let name = &device.device.name;
    let mut findings = Vec::new();
    if device.uverbs.is_none() {
        findings.push(
            Finding::failure(
                "verbs/device",
                name,
                "it has no /dev/infiniband/uverbs* device",
            )
            .expected("one, made by the module ib_uverbs")
            .remedy("modprobe ib_uverbs"),
        );
    }
    findings.extend(match &device.verbs {
        Verbs::NotAsked => None,
        Verbs::Opened => Some(Finding::ok("verbs/open", name, "libibverbs opens it")),
        Verbs::NoLibrary(reason) => Some(
            Finding::unknown("verbs/open", name, reason.clone())
                .expected("libibverbs and the device's provider")
                .remedy("install libibverbs1 and ibverbs-providers (rdma-core)"),
        ),
        Verbs::Failed(reason) => Some(
            Finding::failure("verbs/open", name, reason.clone())
                .expected("libibverbs opens it")
                .remedy(
                    "install its provider (ibverbs-providers); in a container, hand /dev/infiniband in",
                ),
        ),
    });
    findings
}
