//! Which devices a pool has.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::Mode;
use crate::function::{Function, LinkType, PciAddress, Protocol};

/// The longest name of a net device, in bytes (Linux's `IFNAMSIZ` less its zero).
const MAX_NET_DEVICE_BYTES: usize = 15;

/// What a device must be: of each kind that is given one, and anything of those that are not.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Selector {
    /// PCI vendors, such as "15b3".
    pub vendors: Vec<HexId>,
    /// PCI devices, such as "101e".
    pub devices: Vec<HexId>,
    /// Drivers, such as mlx5_core.
    pub drivers: Vec<String>,
    /// PCI addresses, such as "0000:3b:02.1".
    pub addresses: Vec<PciAddress>,
    /// Net devices of physical functions, such as "ens1f0", also with some of its virtual functions,
    /// "ens1f0#0-3,7".
    pub pf_names: Vec<PfRange>,
    /// Networks.
    pub link_types: Vec<LinkType>,
    /// How the RDMA device speaks.
    pub protocols: Vec<Protocol>,
    /// NUMA nodes.
    pub numa_nodes: Vec<u32>,
    /// Whether there must be an RDMA device, as there must in mode `shared`.
    pub rdma: bool,
    /// Physical functions instead of virtual ones; in mode `shared` they are meant if nothing is said.
    pub physical: Option<bool>,
}

/// A PCI vendor or device, in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HexId(pub u16);

impl TryFrom<String> for HexId {
    type Error = String;

    fn try_from(text: String) -> Result<HexId, String> {
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let four = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u16::from_str_radix(digits, 16).ok().filter(|_| four);
        id.map(HexId)
            .ok_or_else(|| format!("{text:?} is no PCI vendor or device: write four hexadecimal digits, such as \"15b3\""))
    }
}

/// A physical function by its net device's name, and which of its virtual functions are meant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PfRange {
    name: String,
    /// All if there is none.
    indexes: Vec<RangeInclusive<u32>>,
}

impl TryFrom<String> for PfRange {
    type Error = String;

    fn try_from(text: String) -> Result<PfRange, String> {
        let refuse = || {
            format!(
                "{text:?} is no net device with virtual functions: write such as ens1f0 or ens1f0#0-3,7"
            )
        };
        let (name, ranges) = match text.split_once('#') {
            Some((name, ranges)) => (name, Some(ranges)),
            None => (text.as_str(), None),
        };
        if name.is_empty() || name.len() > MAX_NET_DEVICE_BYTES {
            return Err(refuse());
        }
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let range = first.parse().ok()?..=last.parse().ok()?;
            (!range.is_empty()).then_some(range)
        };
        let indexes = ranges.map_or(Some(Vec::new()), |ranges| {
            ranges.split(',').map(range).collect()
        });
        Ok(PfRange {
            name: name.to_owned(),
            indexes: indexes.ok_or_else(refuse)?,
        })
    }
}

impl PfRange {
    fn matches(&self, function: &Function) -> bool {
        let meant = match function.virtual_of {
            Some((_, index)) => {
                self.indexes.is_empty() || self.indexes.iter().any(|range| range.contains(&index))
            }
            None => self.indexes.is_empty(),
        };
        meant && function.pf_names.contains(&self.name)
    }
}

impl Selector {
    /// Whether a pool of this mode has the device.
    pub fn matches(&self, mode: Mode, function: &Function) -> bool {
        fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
            wanted.is_empty() || wanted.iter().any(is)
        }
        let physical = self.physical.unwrap_or(mode == Mode::Shared);
        let rdma = function.rdma.as_ref();
        let protocol = rdma.and_then(|rdma| rdma.protocol);
        physical != function.is_virtual()
            && any(&self.vendors, |id| id.0 == function.vendor)
            && any(&self.devices, |id| id.0 == function.device)
            && any(&self.drivers, |driver| {
                Some(driver) == function.driver.as_ref()
            })
            && any(&self.addresses, |address| *address == function.address)
            && any(&self.pf_names, |range| range.matches(function))
            && any(&self.link_types, |link| Some(*link) == function.link_type)
            && any(&self.protocols, |wanted| Some(*wanted) == protocol)
            && any(&self.numa_nodes, |node| Some(*node) == function.numa_node)
            && (rdma.is_some() || !(self.rdma || mode == Mode::Shared))
    }
}
