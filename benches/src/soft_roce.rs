//! Two software RDMA devices joined by a cable, each in a network namespace of its own.
//!
//! What a test bench is to an engineer: two hosts and a link, made from `veth` and `rdma_rxe`, gone
//! when dropped. Needs root, iproute2 and a kernel whose rxe works in namespaces (7.1 and later).

use std::process::Command;

use crate::{BenchError, command::run};

/// Jumbo frames, of which RoCE makes an MTU of 4096 bytes.
const LINK_MTU: &str = "9000";

/// One end of the link.
#[derive(Debug, Clone)]
pub struct End {
    /// Network namespace that a program of this end runs in.
    pub namespace: String,
    /// RDMA device.
    pub device: String,
    /// Address of the device's net device.
    pub address: String,
}

impl End {
    /// A command that runs in this end's namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }
}

/// Both ends; dropping it takes the namespaces away, and with them the link and the devices.
#[derive(Debug)]
pub struct SoftRoce {
    /// The two hosts.
    pub ends: [End; 2],
}

impl SoftRoce {
    /// Makes the namespaces, the link and the devices.
    pub fn new() -> Result<Self, BenchError> {
        let id = std::process::id();
        let end = |side: &str, host: u8| End {
            namespace: format!("trackbed-bench-{id}-{side}"),
            device: format!("rxe{side}"),
            address: format!("10.77.0.{host}"),
        };
        let link = Self { ends: [end("a", 1), end("b", 2)] };
        let [a, b] = &link.ends;
        for end in &link.ends {
            run("ip", &["netns", "add", &end.namespace])?;
        }
        run(
            "ip",
            &[
                "link", "add", "va", "mtu", LINK_MTU, "netns", &a.namespace, "type", "veth",
                "peer", "name", "vb", "mtu", LINK_MTU, "netns", &b.namespace,
            ],
        )?;
        for (end, net_device) in link.ends.iter().zip(["va", "vb"]) {
            let address = format!("{}/24", end.address);
            run("ip", &["-n", &end.namespace, "address", "add", &address, "dev", net_device])?;
            run("ip", &["-n", &end.namespace, "link", "set", "lo", "up"])?;
            run("ip", &["-n", &end.namespace, "link", "set", net_device, "up"])?;
            run(
                "ip",
                &[
                    "netns", "exec", &end.namespace, "rdma", "link", "add", &end.device, "type",
                    "rxe", "netdev", net_device,
                ],
            )?;
        }
        Ok(link)
    }
}

impl Drop for SoftRoce {
    fn drop(&mut self) {
        for end in &self.ends {
            // It may not have been made; what is left to do about a failure is nothing.
            let _ = run("ip", &["netns", "delete", &end.namespace]);
        }
    }
}
