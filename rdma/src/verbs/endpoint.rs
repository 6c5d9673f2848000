//! What two ends tell each other before they are connected, and how they then treat the path.

use std::fmt;

use thiserror::Error;

use super::gid::Gid;
use crate::sys;

/// Payload bytes of one packet on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Mtu {
    Bytes256,
    Bytes512,
    Bytes1024,
    Bytes2048,
    Bytes4096,
}

impl Mtu {
    const ALL: [Mtu; 5] = [
        Mtu::Bytes256,
        Mtu::Bytes512,
        Mtu::Bytes1024,
        Mtu::Bytes2048,
        Mtu::Bytes4096,
    ];

    /// Its size.
    pub fn bytes(self) -> u32 {
        256 << (self as u32)
    }

    /// The MTU of exactly this many bytes.
    pub fn from_bytes(bytes: u32) -> Option<Mtu> {
        Mtu::ALL.into_iter().find(|mtu| mtu.bytes() == bytes)
    }

    /// From `enum ibv_mtu`; what is unknown counts as the smallest.
    pub(super) fn from_raw(raw: sys::ibv_mtu) -> Mtu {
        Mtu::ALL
            .into_iter()
            .find(|mtu| mtu.raw() == raw)
            .unwrap_or(Mtu::Bytes256)
    }

    pub(super) fn raw(self) -> sys::ibv_mtu {
        self as u32 + sys::IBV_MTU_256
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

/// One end of a reliable connection, as the other end needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Queue pair number, 24 bits.
    pub qp_number: u32,
    /// First packet sequence number, 24 bits.
    pub packet_sequence: u32,
    /// Local identifier, 0 on Ethernet.
    pub lid: u16,
    /// The MTU this end can take; the smaller of both is used.
    pub mtu: Mtu,
    /// The address.
    pub gid: Gid,
    /// Reads and atomics this end serves at a time.
    pub reads_in_flight: u8,
}

/// Why bytes are not an [`Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Wrong length.
    #[error("an endpoint has {expected} bytes, not {0}", expected = Endpoint::ENCODED_BYTES)]
    Length(usize),
    /// A field holds a value that no endpoint has.
    #[error("an endpoint can't have {0} {1}")]
    Field(&'static str, u32),
}

const LIMIT_24: u32 = 1 << 24;

impl Endpoint {
    /// Length of an encoded endpoint.
    pub const ENCODED_BYTES: usize = 32;

    /// Encodes it, little endian.
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let mut bytes = [0; Self::ENCODED_BYTES];
        bytes[0..4].copy_from_slice(&self.qp_number.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.packet_sequence.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.lid.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.mtu.bytes() as u16).to_le_bytes());
        bytes[12] = self.reads_in_flight;
        bytes[16..32].copy_from_slice(&self.gid.0);
        bytes
    }

    /// Decodes what a peer sent.
    pub fn decode(bytes: &[u8]) -> Result<Endpoint, EndpointError> {
        let bytes: &[u8; Self::ENCODED_BYTES] = bytes
            .try_into()
            .map_err(|_| EndpointError::Length(bytes.len()))?;
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (qp_number, packet_sequence) = (word(0), word(4));
        if qp_number >= LIMIT_24 {
            return Err(EndpointError::Field("queue pair number", qp_number));
        }
        if packet_sequence >= LIMIT_24 {
            return Err(EndpointError::Field(
                "packet sequence number",
                packet_sequence,
            ));
        }
        let mtu_bytes = u32::from(half(10));
        let mtu = Mtu::from_bytes(mtu_bytes).ok_or(EndpointError::Field("MTU", mtu_bytes))?;
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[16..32]);
        Ok(Endpoint {
            qp_number,
            packet_sequence,
            lid: half(8),
            mtu,
            gid: Gid(gid),
            reads_in_flight: bytes[12],
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue pair {} at {}", self.qp_number, self.gid)?;
        if self.lid != 0 {
            write!(f, " (LID {})", self.lid)?;
        }
        Ok(())
    }
}

/// How a connection treats losses and the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectOptions {
    /// How long to wait for an acknowledgement: 4.096 µs times 2 to this power (1 to 31; 14 is 67 ms).
    pub timeout: u8,
    /// How often to send again before giving the peer up (0 to 7). soft-RoCE takes 7 for ever.
    pub retries: u8,
    /// How often to try again when the peer has no receive posted (0 to 6; 7 is for ever).
    pub not_ready_retries: u8,
    /// How long the peer is asked to wait before such a retry, in the encoding of the InfiniBand
    /// specification (12 is 0.64 ms).
    pub not_ready_timer: u8,
    /// An upper bound on the path MTU.
    pub mtu: Mtu,
    /// Hops a packet may take (RoCE v2: the IP time to live).
    pub hop_limit: u8,
    /// IP traffic class (DSCP and ECN bits).
    pub traffic_class: u8,
    /// InfiniBand service level.
    pub service_level: u8,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            timeout: 14,
            retries: 6,
            not_ready_retries: 6,
            not_ready_timer: 12,
            mtu: Mtu::Bytes4096,
            hop_limit: 64,
            traffic_class: 0,
            service_level: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_endpoint_survives_its_encoding(
            qp_number in 0..LIMIT_24, packet_sequence in 0..LIMIT_24, lid: u16, mtu in 0usize..5,
            gid: [u8; 16], reads_in_flight: u8,
        ) {
            let endpoint = Endpoint {
                qp_number, packet_sequence, lid, mtu: Mtu::ALL[mtu], gid: Gid(gid), reads_in_flight,
            };
            prop_assert_eq!(Endpoint::decode(&endpoint.encode()), Ok(endpoint));
        }

        #[test]
        fn arbitrary_bytes_are_an_endpoint_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(endpoint) = Endpoint::decode(&bytes) {
                prop_assert!(endpoint.qp_number < LIMIT_24 && endpoint.packet_sequence < LIMIT_24);
            }
        }
    }

    #[test]
    fn mtus_have_their_wire_sizes() {
        assert_eq!(Mtu::from_raw(sys::IBV_MTU_4096).bytes(), 4096);
        assert_eq!(Mtu::Bytes1024.raw(), sys::IBV_MTU_1024);
        assert_eq!(Mtu::from_bytes(1500), None);
    }
}
