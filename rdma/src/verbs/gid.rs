//! The addresses of a port and how one of them is chosen.
//!
//! A RoCE port has several GIDs, of different versions and of several IP addresses, in an order that
//! changes with the net device's addresses. Choosing by index is how two ends silently disagree; we
//! choose by kind and address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::context::Context;
use super::error::VerbsError;
use super::port::LinkLayer;
use crate::sys;

/// A 128-bit port address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The IP address that a RoCE GID stands for: IPv4 for an IPv4-mapped one.
    pub fn ip(&self) -> IpAddr {
        let address = Ipv6Addr::from(self.0);
        address
            .to_ipv4_mapped()
            .map_or(IpAddr::V6(address), IpAddr::V4)
    }

    /// Whether this is an empty entry of the table.
    pub fn is_zero(&self) -> bool {
        // An entry with a subnet prefix but no interface id is as unusable as an empty one.
        self.0[8..] == [0; 8]
    }

    /// Whether it is reachable on its own link only.
    pub fn is_link_local(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    fn is_ipv4(&self) -> bool {
        matches!(self.ip(), IpAddr::V4(_))
    }
}

impl From<IpAddr> for Gid {
    fn from(address: IpAddr) -> Gid {
        match address {
            IpAddr::V4(address) => Gid(address.to_ipv6_mapped().octets()),
            IpAddr::V6(address) => Gid(address.octets()),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv6Addr::from(self.0), f)
    }
}

/// What kind of network a GID is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE v1: Ethernet frames, one layer 2 network only.
    RoceV1,
    /// RoCE v2 over IPv4.
    RoceV2Ipv4,
    /// RoCE v2 over IPv6.
    RoceV2Ipv6,
}

impl GidKind {
    pub(crate) fn roce_v2(gid: &Gid) -> GidKind {
        if gid.is_ipv4() {
            GidKind::RoceV2Ipv4
        } else {
            GidKind::RoceV2Ipv6
        }
    }

    /// From the text in sysfs (`gid_attrs/types/*`), the GID and the link layer.
    pub(crate) fn from_sysfs(text: &str, gid: &Gid, link_layer: LinkLayer) -> Option<GidKind> {
        match (text.trim(), link_layer) {
            ("RoCE v2", _) => Some(GidKind::roce_v2(gid)),
            ("IB/RoCE v1", LinkLayer::Ethernet) => Some(GidKind::RoceV1),
            ("IB/RoCE v1", LinkLayer::InfiniBand) => Some(GidKind::InfiniBand),
            _ => None,
        }
    }
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GidKind::InfiniBand => "infiniband",
            GidKind::RoceV1 => "rocev1",
            GidKind::RoceV2Ipv4 => "rocev2-ipv4",
            GidKind::RoceV2Ipv6 => "rocev2-ipv6",
        })
    }
}

impl std::str::FromStr for GidKind {
    type Err = String;

    fn from_str(text: &str) -> Result<GidKind, String> {
        [
            GidKind::InfiniBand,
            GidKind::RoceV1,
            GidKind::RoceV2Ipv4,
            GidKind::RoceV2Ipv6,
        ]
        .into_iter()
        .find(|kind| kind.to_string() == text)
        .ok_or_else(|| format!("{text:?} is not infiniband, rocev1, rocev2-ipv4 or rocev2-ipv6"))
    }
}

/// One entry of a port's GID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GidEntry {
    /// Its index in the table, which differs from node to node.
    pub index: u32,
    /// The address.
    pub gid: Gid,
    /// Its kind.
    pub kind: GidKind,
}

impl fmt::Display for GidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.index, self.gid, self.kind)
    }
}

/// Which GID of a port to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GidChoice {
    /// RoCE v2 over IPv4, else over a routable IPv6 address, else link-local, else the first there is.
    #[default]
    Automatic,
    /// The entry with this index.
    Index(u32),
    /// The best entry of this kind.
    Kind(GidKind),
    /// The entry with this IP address, RoCE v2 preferred.
    Address(IpAddr),
}

impl fmt::Display for GidChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GidChoice::Automatic => f.write_str("at all"),
            GidChoice::Index(index) => write!(f, "at index {index}"),
            GidChoice::Kind(kind) => write!(f, "of kind {kind}"),
            GidChoice::Address(address) => write!(f, "of address {address}"),
        }
    }
}

impl GidChoice {
    /// The entry this choice takes of a table.
    pub fn pick(&self, entries: &[GidEntry]) -> Option<GidEntry> {
        entries
            .iter()
            .filter(|entry| match self {
                GidChoice::Automatic => true,
                GidChoice::Index(index) => entry.index == *index,
                GidChoice::Kind(kind) => entry.kind == *kind,
                GidChoice::Address(address) => entry.gid == Gid::from(*address),
            })
            .min_by_key(|entry| (rank(entry), entry.index))
            .copied()
    }
}

/// Lower is better.
fn rank(entry: &GidEntry) -> u8 {
    match (entry.kind, entry.gid.is_link_local()) {
        (GidKind::InfiniBand, _) => 0,
        (GidKind::RoceV2Ipv4, _) if entry.gid.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST) => 1,
        (GidKind::RoceV2Ipv6, false) => 2,
        (GidKind::RoceV2Ipv4 | GidKind::RoceV2Ipv6, _) => 3,
        (GidKind::RoceV1, _) => 4,
    }
}

/// The most entries that are asked for at once.
const LONGEST_TABLE: usize = 1 << 16;

/// What libibverbs says of an entry; `None` for an empty one.
fn entry_of(raw: &sys::ibv_gid_entry) -> Option<GidEntry> {
    // SAFETY: a GID is 16 plain bytes.
    let gid = Gid(unsafe { raw.gid.raw });
    let kind = match raw.gid_type {
        sys::IBV_GID_TYPE_ROCE_V2 => GidKind::roce_v2(&gid),
        sys::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
        _ => GidKind::InfiniBand,
    };
    let index = raw.gid_index;
    (!gid.is_zero()).then_some(GidEntry { index, gid, kind })
}

impl Context {
    /// The used entries of a port's GID table, with their kinds.
    pub fn gids(&self, port: u8) -> Result<Vec<GidEntry>, VerbsError> {
        let attributes = self.port(port)?;
        if let Some(entries) = self.gid_table(port, attributes.gid_table_len)? {
            return Ok(entries);
        }
        (0..attributes.gid_table_len)
            .filter_map(|index| {
                self.gid_entry(port, index, attributes.link_layer)
                    .transpose()
            })
            .collect()
    }

    /// All of a port's used entries in one system call: tables have hundreds, most of them empty.
    /// `None` where library or kernel are too old for it.
    fn gid_table(&self, port: u8, table_len: u32) -> Result<Option<Vec<GidEntry>>, VerbsError> {
        let Some(query_gid_table) = self.library().query_gid_table else {
            return Ok(None);
        };
        // The tables of all ports come together.
        let room = (table_len as usize).saturating_mul(self.limits().ports.into());
        let mut raw = vec![sys::ibv_gid_entry::default(); room.clamp(1, LONGEST_TABLE)];
        let size = size_of::<sys::ibv_gid_entry>();
        // SAFETY: the context is open, the array is ours, as long and of entries as large as we say.
        let filled =
            unsafe { query_gid_table(self.as_ptr(), raw.as_mut_ptr(), raw.len(), 0, size) };
        let Ok(filled) = usize::try_from(filled) else {
            // Too old, or a table longer than the port says: entry by entry, which names what fails.
            return Ok(None);
        };
        raw.truncate(filled);
        let used = raw.iter().filter(|entry| entry.port_num == u32::from(port));
        let mut entries: Vec<GidEntry> = used.filter_map(entry_of).collect();
        entries.sort_by_key(|entry| entry.index);
        Ok(Some(entries))
    }

    fn gid_entry(
        &self,
        port: u8,
        index: u32,
        link_layer: LinkLayer,
    ) -> Result<Option<GidEntry>, VerbsError> {
        if let Some(query_gid_ex) = self.library().query_gid_ex {
            let mut raw = sys::ibv_gid_entry::default();
            let size = size_of_val(&raw);
            // SAFETY: the context is open, the entry is ours and as large as we say.
            let code =
                unsafe { query_gid_ex(self.as_ptr(), u32::from(port), index, &mut raw, 0, size) };
            match code.saturating_abs() {
                0 => return Ok(entry_of(&raw)),
                // An empty entry.
                libc::ENODATA => return Ok(None),
                // An older kernel: fall through.
                libc::EOPNOTSUPP | libc::ENOSYS => {}
                _ => {
                    let object = format!("{} port {port} GID {index}", self.name());
                    return Err(VerbsError::code("ibv_query_gid_ex", object, code));
                }
            }
        }
        let mut raw = sys::ibv_gid::default();
        let position = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: the context is open and the GID is ours.
        if unsafe { (self.library().query_gid)(self.as_ptr(), port, position, &mut raw) } != 0 {
            let object = format!("{} port {port} GID {index}", self.name());
            return Err(VerbsError::last("ibv_query_gid", object));
        }
        // SAFETY: a GID is 16 plain bytes.
        let gid = Gid(unsafe { raw.raw });
        if gid.is_zero() {
            return Ok(None);
        }
        let types = format!(
            "/sys/class/infiniband/{}/ports/{port}/gid_attrs/types/{index}",
            self.name()
        );
        let kind = std::fs::read_to_string(Path::new(&types))
            .ok()
            .and_then(|text| GidKind::from_sysfs(&text, &gid, link_layer));
        Ok(kind.map(|kind| GidEntry { index, gid, kind }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u32, address: &str, kind: GidKind) -> GidEntry {
        let address: IpAddr = address.parse().expect("an address");
        GidEntry {
            index,
            gid: Gid::from(address),
            kind,
        }
    }

    fn table() -> Vec<GidEntry> {
        vec![
            entry(0, "fe80::1", GidKind::RoceV1),
            entry(1, "fe80::1", GidKind::RoceV2Ipv6),
            entry(2, "10.0.0.1", GidKind::RoceV1),
            entry(3, "10.0.0.1", GidKind::RoceV2Ipv4),
            entry(4, "fd00::1", GidKind::RoceV2Ipv6),
        ]
    }

    #[test]
    fn automatic_choice_takes_roce_v2_over_ipv4_wherever_it_stands() {
        assert_eq!(
            GidChoice::Automatic.pick(&table()).map(|entry| entry.index),
            Some(3)
        );
    }

    #[test]
    fn a_kind_takes_the_routable_address_before_the_link_local_one() {
        let choice = GidChoice::Kind(GidKind::RoceV2Ipv6);
        assert_eq!(choice.pick(&table()).map(|entry| entry.index), Some(4));
    }

    #[test]
    fn an_address_takes_version_2_before_version_1() {
        let choice = GidChoice::Address("10.0.0.1".parse().expect("an address"));
        assert_eq!(choice.pick(&table()).map(|entry| entry.index), Some(3));
    }

    #[test]
    fn an_address_that_the_port_lacks_takes_nothing() {
        let choice = GidChoice::Address("10.0.0.9".parse().expect("an address"));
        assert_eq!(choice.pick(&table()), None);
    }
}
