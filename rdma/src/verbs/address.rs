//! Where datagrams go and come from: addresses, the adapter's handles for them, and the header that
//! stands before a datagram that arrived.

use std::fmt;
use std::net::Ipv4Addr;
use std::ptr::NonNull;
use std::sync::Arc;

use super::endpoint::EndpointError;
use super::error::VerbsError;
use super::gid::Gid;
use super::memory::ProtectionDomain;
use super::port::{LinkLayer, LocalPort};
use crate::sys;

const LIMIT_24: u32 = 1 << 24;

/// A queue pair for datagrams, as others need to know it to send to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramAddress {
    /// Queue pair number, 24 bits.
    pub qp_number: u32,
    /// The key that its datagrams must carry.
    pub queue_key: u32,
    /// Local identifier, 0 on Ethernet.
    pub lid: u16,
    /// The port's address.
    pub gid: Gid,
}

impl DatagramAddress {
    /// Length of an encoded address.
    pub const ENCODED_BYTES: usize = 28;

    /// Encodes it, little endian.
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[0..4].copy_from_slice(&self.qp_number.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.queue_key.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.lid.to_le_bytes());
        bytes[12..28].copy_from_slice(&self.gid.0);
        bytes
    }

    /// Decodes what a peer sent.
    pub fn decode(bytes: &[u8]) -> Result<DatagramAddress, EndpointError> {
        let bytes: &[u8; Self::ENCODED_BYTES] = bytes
            .try_into()
            .map_err(|_| EndpointError::Length(bytes.len()))?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let qp_number = word(0);
        if qp_number >= LIMIT_24 {
            return Err(EndpointError::Field("queue pair number", qp_number));
        }
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[12..28]);
        Ok(DatagramAddress {
            qp_number,
            queue_key: word(4),
            lid: u16::from_le_bytes([bytes[8], bytes[9]]),
            gid: Gid(gid),
        })
    }
}

impl fmt::Display for DatagramAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "datagram queue pair {} at {}", self.qp_number, self.gid)?;
        if self.lid != 0 {
            write!(f, " (LID {})", self.lid)?;
        }
        Ok(())
    }
}

/// How datagrams to an address travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// Hops a packet may take (RoCE v2: the IP time to live).
    pub hop_limit: u8,
    /// IP traffic class (DSCP and ECN bits).
    pub traffic_class: u8,
    /// InfiniBand service level.
    pub service_level: u8,
}

impl Default for PathOptions {
    fn default() -> PathOptions {
        PathOptions {
            hop_limit: 64,
            traffic_class: 0,
            service_level: 0,
        }
    }
}

/// The adapter's handle for a destination: resolved once, used for any number of datagrams.
pub struct AddressHandle {
    raw: NonNull<sys::ibv_ah>,
    to: DatagramAddress,
    pd: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs' control functions are thread safe, and the handle is not changed.
unsafe impl Send for AddressHandle {}
// SAFETY: as above.
unsafe impl Sync for AddressHandle {}

impl AddressHandle {
    /// Resolves an address that its owner told, or that [`Sender::address`] gave, from a port of ours.
    pub fn new(
        pd: &Arc<ProtectionDomain>,
        local: &LocalPort,
        to: &DatagramAddress,
        options: &PathOptions,
    ) -> Result<AddressHandle, VerbsError> {
        pd.context().check_process()?;
        check(local, to)?;
        let global = local.link_layer == LinkLayer::Ethernet || to.lid == 0;
        let mut grh = sys::ibv_global_route::default();
        if global {
            grh.dgid.raw = to.gid.0;
            grh.sgid_index = local.gid_index;
            grh.hop_limit = options.hop_limit;
            grh.traffic_class = options.traffic_class;
        }
        let mut attributes = sys::ibv_ah_attr {
            grh,
            dlid: to.lid,
            sl: options.service_level & 15,
            is_global: u8::from(global),
            port_num: local.port,
            ..Default::default()
        };
        let context = pd.context();
        // SAFETY: the protection domain is alive and the attributes are ours.
        let raw = unsafe { (context.library().create_ah)(pd.as_ptr(), &mut attributes) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            VerbsError::last("ibv_create_ah", format!("{} (to {to})", context.name()))
        })?;
        Ok(AddressHandle {
            raw,
            to: *to,
            pd: Arc::clone(pd),
        })
    }

    /// Where it leads.
    pub fn to(&self) -> &DatagramAddress {
        &self.to
    }

    pub(super) fn protection_domain(&self) -> &Arc<ProtectionDomain> {
        &self.pd
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_ah {
        self.raw.as_ptr()
    }
}

impl Drop for AddressHandle {
    fn drop(&mut self) {
        if self.pd.context().is_inherited() {
            return;
        }
        // SAFETY: the handle is ours; queue pairs keep it while a datagram to it is under way.
        unsafe { (self.pd.context().library().destroy_ah)(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for AddressHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressHandle")
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

/// What the device would refuse with a bare EINVAL, or accept and never deliver.
fn check(local: &LocalPort, to: &DatagramAddress) -> Result<(), VerbsError> {
    let incompatible = |reason| {
        Err(VerbsError::Incompatible {
            local: format!("port {} at {}", local.port, local.gid),
            remote: to.to_string(),
            reason,
        })
    };
    match local.link_layer {
        LinkLayer::Ethernet if to.gid.is_zero() => incompatible("the destination has no GID"),
        LinkLayer::Ethernet if to.gid.ip().is_ipv4() != local.gid.ip().is_ipv4() => incompatible(
            "one end chose an IPv4 GID, the other an IPv6 one: choose one kind on both",
        ),
        LinkLayer::InfiniBand if to.lid == 0 && to.gid.is_zero() => {
            incompatible("the destination has neither a LID nor a GID")
        }
        _ => Ok(()),
    }
}

/// Where a datagram came from. The sender chose all of it, so it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The queue pair that sent it.
    pub qp_number: u32,
    /// Its port's local identifier, 0 on Ethernet.
    pub lid: u16,
    /// Its port's address, when the datagram tells: always on Ethernet.
    pub gid: Option<Gid>,
}

impl Sender {
    /// Where an answer goes, when the sender uses this queue key. `None` when the datagram had no address
    /// and no LID.
    pub fn address(&self, queue_key: u32) -> Option<DatagramAddress> {
        let gid = match self.gid {
            Some(gid) => gid,
            None if self.lid != 0 => Gid([0; 16]),
            None => return None,
        };
        Some(DatagramAddress {
            qp_number: self.qp_number,
            queue_key,
            lid: self.lid,
            gid,
        })
    }
}

/// Bytes that the adapter writes before a datagram: a global route header (IBTA specification, 8.3), or,
/// in its last 20 bytes, an IPv4 header (annex A17).
pub(super) const HEADER_BYTES: usize = 40;

/// The sender's address in such a header; `None` where there is none. `local` is the address of the port
/// it arrived on, which tells the two forms apart when both are possible.
pub(super) fn source(header: &[u8; HEADER_BYTES], local: &Gid) -> Option<Gid> {
    let (front, ipv4) = header.split_at(20);
    let octets = |at: usize| [ipv4[at], ipv4[at + 1], ipv4[at + 2], ipv4[at + 3]];
    let from = |at: usize| Gid::from(std::net::IpAddr::V4(Ipv4Addr::from(octets(at))));
    let mut sender = [0; 16];
    sender.copy_from_slice(&header[8..24]);
    let is_version_6 = front[0] >> 4 == 6;
    // Version 4, and no options.
    let is_version_4 = ipv4[0] == 0x45;
    if is_version_6 && header[24..40] == local.0 {
        return Some(Gid(sender));
    }
    if is_version_4 && (from(16) == *local || checksum_fits(ipv4)) {
        return Some(from(12));
    }
    is_version_6.then_some(Gid(sender))
}

/// Whether the ones' complement sum over an IPv4 header is right (RFC 791).
fn checksum_fits(header: &[u8]) -> bool {
    let sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn ipv4_header(source: [u8; 4], destination: [u8; 4]) -> [u8; 20] {
        let mut header = [
            0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&destination);
        let sum: u32 = header
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let check = !(((folded & 0xffff) + (folded >> 16)) as u16);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn gid(address: &str) -> Gid {
        Gid::from(address.parse::<IpAddr>().expect("an address"))
    }

    proptest! {
        #[test]
        fn an_address_survives_its_encoding(
            qp_number in 0..LIMIT_24, queue_key: u32, lid: u16, gid: [u8; 16],
        ) {
            let address = DatagramAddress { qp_number, queue_key, lid, gid: Gid(gid) };
            prop_assert_eq!(DatagramAddress::decode(&address.encode()), Ok(address));
        }

        #[test]
        fn arbitrary_bytes_are_an_address_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(address) = DatagramAddress::decode(&bytes) {
                prop_assert!(address.qp_number < LIMIT_24);
            }
        }

        /// Whatever the unused front of the header holds.
        #[test]
        fn the_sender_is_found_in_an_ipv4_header(
            front: [u8; 20], sender: [u8; 4], receiver: [u8; 4], to_us: bool,
        ) {
            let mut header = [0; HEADER_BYTES];
            header[..20].copy_from_slice(&front);
            header[20..].copy_from_slice(&ipv4_header(sender, receiver));
            let local = if to_us { Gid::from(IpAddr::from(receiver)) } else { gid("10.9.9.9") };
            prop_assert_eq!(source(&header, &local), Some(Gid::from(IpAddr::from(sender))));
        }

        #[test]
        fn the_sender_is_found_in_a_global_route_header(
            sender: [u8; 16], receiver: [u8; 16], flow: [u8; 3],
        ) {
            let mut header = [0; HEADER_BYTES];
            header[0] = 0x60;
            header[1..4].copy_from_slice(&flow);
            header[8..24].copy_from_slice(&sender);
            header[24..40].copy_from_slice(&receiver);
            prop_assert_eq!(source(&header, &Gid(receiver)), Some(Gid(sender)));
        }

        #[test]
        fn arbitrary_headers_have_a_sender_or_none(header: [u8; 40], local: [u8; 16]) {
            let _ = source(&header, &Gid(local));
        }
    }

    #[test]
    fn a_header_of_zeroes_has_no_sender() {
        assert_eq!(source(&[0; HEADER_BYTES], &gid("10.0.0.1")), None);
        let nobody = Sender {
            qp_number: 1,
            lid: 0,
            gid: None,
        };
        assert_eq!(nobody.address(1), None);
    }
}
