//! Software RDMA devices, each in a network namespace of its own, two joined by a cable or more by a
//! switch.
//!
//! What a test bench is to an engineer: hosts and a link, made from `veth`, `bridge` and `rdma_rxe`,
//! gone when dropped. Needs root, iproute2 and a kernel whose rxe works in namespaces (7.1 and later).

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

/// The ends; dropping it takes the namespaces away, and with them the links and the devices.
#[derive(Debug)]
pub struct SoftRoce {
    /// The hosts.
    pub ends: Vec<End>,
    namespaces: Vec<String>,
}

impl SoftRoce {
    /// Two hosts and a cable.
    pub fn cable() -> Result<Self, BenchError> {
        let mut link = Self::empty();
        for side in ["a", "b"] {
            link.namespace(side)?;
        }
        let [a, b] = [&link.namespaces[0], &link.namespaces[1]];
        ip(&format!(
            "link add veth0 mtu {LINK_MTU} netns {a} type veth \
             peer name veth1 mtu {LINK_MTU} netns {b}"
        ))?;
        (0..2).try_for_each(|index| link.plug(index))?;
        Ok(link)
    }

    /// As many hosts, joined by a switch that has a namespace of its own.
    pub fn switched(hosts: usize) -> Result<Self, BenchError> {
        let mut link = Self::empty();
        for index in 0..hosts {
            link.namespace(&index.to_string())?;
        }
        link.namespace("switch")?;
        let switch = link.namespaces[hosts].clone();
        ip(&format!(
            "-n {switch} link add bridge0 mtu {LINK_MTU} type bridge"
        ))?;
        ip(&format!("-n {switch} link set bridge0 up"))?;
        for index in 0..hosts {
            let host = &link.namespaces[index];
            ip(&format!(
                "link add port{index} mtu {LINK_MTU} netns {switch} type veth \
                 peer name veth{index} mtu {LINK_MTU} netns {host}"
            ))?;
            ip(&format!(
                "-n {switch} link set port{index} master bridge0 up"
            ))?;
            link.plug(index)?;
        }
        Ok(link)
    }

    fn empty() -> Self {
        Self {
            ends: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    fn namespace(&mut self, suffix: &str) -> Result<(), BenchError> {
        let name = format!("trackbed-bench-{}-{suffix}", std::process::id());
        ip(&format!("netns add {name}"))?;
        self.namespaces.push(name);
        Ok(())
    }

    /// Gives the host its address and its device.
    fn plug(&mut self, index: usize) -> Result<(), BenchError> {
        let namespace = &self.namespaces[index];
        let end = End {
            namespace: Some(namespace.clone()),
            device: format!("rxe{index}"),
            address: format!("10.77.0.{}", index + 1),
        };
        let (net_device, address) = (format!("veth{index}"), &end.address);
        for command in [
            format!("address add {address}/24 dev {net_device}"),
            "link set lo up".to_owned(),
            format!("link set {net_device} up"),
        ] {
            ip(&format!("-n {namespace} {command}"))?;
        }
        let mut rdma = end.command("rdma");
        rdma.args(["link", "add", &end.device]);
        rdma.args(["type", "rxe", "netdev", &net_device]);
        output(&mut rdma)?;
        self.ends.push(end);
        Ok(())
    }
}

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<(), BenchError> {
    run("ip", &words.split_whitespace().collect::<Vec<_>>()).map(drop)
}

impl Drop for SoftRoce {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // It may not have been made; what is left to do about a failure is nothing.
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}
