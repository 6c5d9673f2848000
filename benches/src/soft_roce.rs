//! Two software RDMA devices joined by a cable, each in a network namespace of its own.
//!
//! What a test bench is to an engineer: two hosts and a link, made from `veth` and `rdma_rxe`, gone
//! when dropped. Needs root, iproute2 and a kernel whose rxe works in namespaces (7.1 and later).

use std::process::Command;

use crate::{
    BenchError,
    command::{output, run},
};

/// Jumbo frames, of which RoCE makes an MTU of 4096 bytes.
const LINK_MTU: u32 = 9000;

/// One end of the link.
#[derive(Debug, Clone)]
pub struct End {
    /// Network namespace that a program of this end runs in; `None` is the caller's own.
    pub namespace: Option<String>,
    /// RDMA device.
    pub device: String,
    /// Address that programs of the other end reach this end's at.
    pub address: String,
}

impl End {
    /// An end that is a device of this machine itself.
    pub fn here(device: &str) -> Self {
        Self {
            namespace: None,
            device: device.to_owned(),
            address: "127.0.0.1".to_owned(),
        }
    }

    /// A command that runs in this end's namespace.
    pub fn command(&self, program: &str) -> Command {
        let Some(namespace) = &self.namespace else {
            return Command::new(program);
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }
}

/// Both ends; dropping it takes the namespaces away, and with them the link and the devices.
#[derive(Debug)]
pub struct SoftRoce {
    /// The two hosts.
    pub ends: [End; 2],
    namespaces: [String; 2],
}

impl SoftRoce {
    /// Makes the namespaces, the link and the devices.
    pub fn new() -> Result<Self, BenchError> {
        let id = std::process::id();
        let namespaces = ["a", "b"].map(|side| format!("trackbed-bench-{id}-{side}"));
        let end = |index: usize| End {
            namespace: Some(namespaces[index].clone()),
            device: format!("rxe{index}"),
            address: format!("10.77.0.{}", index + 1),
        };
        let link = Self {
            ends: [end(0), end(1)],
            namespaces,
        };
        let [a, b] = &link.namespaces;
        for namespace in &link.namespaces {
            run("ip", &["netns", "add", namespace])?;
        }
        let cable = format!(
            "link add veth0 mtu {LINK_MTU} netns {a} type veth \
             peer name veth1 mtu {LINK_MTU} netns {b}"
        );
        run("ip", &cable.split_whitespace().collect::<Vec<_>>())?;
        for (index, (end, namespace)) in link.ends.iter().zip(&link.namespaces).enumerate() {
            let (net_device, address) = (format!("veth{index}"), format!("{}/24", end.address));
            let inside = ["-n", namespace];
            let plug = |words: &[&str]| run("ip", &[&inside[..], words].concat());
            plug(&["address", "add", &address, "dev", &net_device])?;
            plug(&["link", "set", "lo", "up"])?;
            plug(&["link", "set", &net_device, "up"])?;
            let mut rdma = end.command("rdma");
            rdma.args([
                "link",
                "add",
                &end.device,
                "type",
                "rxe",
                "netdev",
                &net_device,
            ]);
            output(&mut rdma)?;
        }
        Ok(link)
    }
}

impl Drop for SoftRoce {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // It may not have been made; what is left to do about a failure is nothing.
            let _ = run("ip", &["netns", "delete", namespace]);
        }
    }
}
