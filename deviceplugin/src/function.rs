//! A PCI function as the rest of the crate knows it: where it sits and what hangs on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use trackbed_rdma::devices::Device;

/// Where a function sits on the PCI buses: domain, bus, device and function.
///
/// Written as Linux writes it, `0000:3b:02.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Domain, also called segment.
    pub domain: u32,
    /// Bus within the domain.
    pub bus: u8,
    /// Device on the bus, below 32.
    pub device: u8,
    /// Function of the device, below 8.
    pub function: u8,
}

/// What was read is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no PCI address: write domain:bus:device.function, such as 0000:3b:02.1")]
pub struct NotAnAddress(pub String);

impl Function {
    /// Whether it is a virtual function.
    pub fn is_virtual(&self) -> bool {
        self.virtual_of.is_some()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<PciAddress, NotAnAddress> {
        let parsed = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let address = PciAddress {
                domain: u32::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok()?,
                function: u8::from_str_radix(function, 16).ok()?,
            };
            // One address has one spelling: names of folders are compared with it.
            (address.device < 32 && address.function < 8 && address.to_string() == text)
                .then_some(address)
        };
        parsed().ok_or_else(|| NotAnAddress(text.to_owned()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<PciAddress, NotAnAddress> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> String {
        address.to_string()
    }
}

/// Which kind of network a port is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkType {
    /// Ethernet, and with RDMA on it RoCE or iWARP.
    Ethernet,
    /// InfiniBand.
    Infiniband,
}

/// How an RDMA device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// InfiniBand's own.
    Ib,
    /// RDMA over Converged Ethernet.
    Roce,
    /// RDMA over TCP.
    Iwarp,
}

/// An RDMA device, and how a container gets at it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RdmaDevice {
    /// The device with its ports.
    pub device: Device,
    /// How it speaks; `None` where that cannot be told.
    pub protocol: Option<Protocol>,
    /// The character devices that are its own, by name: `uverbs3`, `umad2`, `issm2`.
    pub char_devices: Vec<CharDevice>,
}

/// A character device: what it is called is decided by udev, what it is by its numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CharDevice {
    /// Its name below `/dev/infiniband`, such as `uverbs3`.
    pub name: String,
    /// Its major and minor numbers.
    pub numbers: (u32, u32),
}

/// A physical function (PF) or a virtual function (VF) of one, with what hangs on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Function {
    /// Where it sits.
    pub address: PciAddress,
    /// What it is known by for as long as the hardware stays: of the PF's serial number (or its
    /// address, without one) and the VF's index. At most 63 characters of `[a-z0-9-]`.
    pub id: String,
    /// What names a physical function in the world: its card's serial number, and which device and
    /// function of the card it is. `None` for a virtual function, and where no card alone has the number.
    pub serial: Option<String>,
    /// PCI vendor.
    pub vendor: u16,
    /// PCI device.
    pub device: u16,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// The PF and which of its VFs this is; `None` for one that is no VF.
    pub virtual_of: Option<(PciAddress, u32)>,
    /// The names of the PF's net devices; its own for one that is no VF.
    pub pf_names: Vec<String>,
    /// How many VFs it may have; 0 for one that can have none.
    pub total_vfs: u32,
    /// How many it has.
    pub vfs: u32,
    /// NUMA node; `None` where the platform does not say.
    pub numa_node: Option<u32>,
    /// The bridges above it, the root port first: what two functions share of it says how near they
    /// are.
    pub bridges: Vec<PciAddress>,
    /// Its net devices here; none while they are in a pod's network namespace.
    pub net_devices: Vec<String>,
    /// The hardware address of its first net device.
    pub mac: Option<String>,
    /// The kind of network it is on, told by its net device or RDMA port.
    pub link_type: Option<LinkType>,
    /// Its RDMA device; none while that is in a pod's network namespace.
    pub rdma: Option<RdmaDevice>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let address: PciAddress = "0000:3b:02.1".parse().expect("an address");
        assert_eq!(address.to_string(), "0000:3b:02.1");
        assert_eq!(
            "10000:e1:00.0".parse::<PciAddress>().map(|a| a.domain),
            Ok(0x10000)
        );
        for wrong in [
            "",
            "3b:02.1",
            "0000:3B:02.1",
            "0:3b:02.1",
            "0000:3b:20.0",
            "0000:3b:02.8",
            "0000:3b:2.1",
            "0000:3b:02.1 ",
            "0000:+b:02.1",
        ] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }
}
