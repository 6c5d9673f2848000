//! The opaque bytes by which two fabrics meet: an offer and its answer, carried by the control
//! plane, which has authenticated both sides.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::FabricKind;
use super::frame::TICKET_BYTES;
use crate::verbs;

/// Bytes of a greeting: 8 of head, 16 of common fields, 64 for the transport, 4 of checksum.
pub(super) const GREETING_BYTES: usize = 92;

const MAGIC: [u8; 4] = *b"TBM1";
const LAYOUT: u8 = 1;

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Offer = 1,
    Answer = 2,
}

/// An offer or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) role: Role,
    /// Data bytes of a slot; both sides must agree.
    pub(super) chunk_capacity: u32,
    /// Slots of the arena that the requester has for this peer. 0 in an answer.
    pub(super) slots: u16,
    /// How often the requester wants a sign of life while it waits. 0 in an answer.
    pub(super) heartbeat: Duration,
    pub(super) endpoint: Endpoint,
}

/// How to reach the sender of a greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// The requester connects, so its offer has no address.
    TcpRequester,
    /// Where to connect, and the ticket to show there.
    TcpServer {
        address: SocketAddr,
        ticket: [u8; TICKET_BYTES],
    },
    /// The queue pair to connect with.
    Verbs(verbs::Endpoint),
}

/// Why a greeting can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    /// These are not such bytes.
    #[error("it is no greeting of a fabric, or was cut or altered on its way")]
    Garbled,
    /// Made by another release.
    #[error("its layout is version {0}, ours is {LAYOUT}: run the same release on both nodes")]
    Layout(u8),
    /// The other transport.
    #[error("the peer uses another transport than {0}: set the same fabric on both nodes")]
    Transport(FabricKind),
    /// Slots of another size.
    #[error(
        "the peer's chunks have up to {theirs} bytes, ours {ours}: set the same size on both nodes"
    )]
    ChunkCapacity {
        /// The peer's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// An arena with no slots, or too many.
    #[error("an arena of {0} slots is empty or larger than a peer may have")]
    Slots(u16),
}

impl Greeting {
    /// The bytes to carry to the peer.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; GREETING_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = LAYOUT;
        bytes[5] = self.role as u8;
        bytes[8..12].copy_from_slice(&self.chunk_capacity.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.slots.to_le_bytes());
        let heartbeat = u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX);
        bytes[16..20].copy_from_slice(&heartbeat.to_le_bytes());
        match &self.endpoint {
            Endpoint::TcpRequester => bytes[6] = 1,
            Endpoint::TcpServer { address, ticket } => {
                bytes[6] = 2;
                let ip = match address.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                bytes[24..40].copy_from_slice(&ip.octets());
                bytes[40..42].copy_from_slice(&address.port().to_le_bytes());
                bytes[42..74].copy_from_slice(ticket);
            }
            Endpoint::Verbs(endpoint) => {
                bytes[6] = 3;
                bytes[24..56].copy_from_slice(&endpoint.encode());
            }
        }
        let crc = crc32c::crc32c(&bytes[..88]);
        bytes[88..92].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a greeting of that role.
    pub(super) fn decode(bytes: &[u8], role: Role) -> Result<Greeting, GreetingError> {
        let bytes: &[u8; GREETING_BYTES] = bytes.try_into().map_err(|_| GreetingError::Garbled)?;
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        if bytes[0..4] != MAGIC || crc32c::crc32c(&bytes[..88]) != u32_at(88) {
            return Err(GreetingError::Garbled);
        }
        if bytes[4] != LAYOUT {
            return Err(GreetingError::Layout(bytes[4]));
        }
        if bytes[5] != role as u8 {
            return Err(GreetingError::Garbled);
        }
        let endpoint = match bytes[6] {
            1 => Endpoint::TcpRequester,
            2 => {
                let mut ip = [0; 16];
                ip.copy_from_slice(&bytes[24..40]);
                let mut ticket = [0; TICKET_BYTES];
                ticket.copy_from_slice(&bytes[42..74]);
                let ip = Ipv6Addr::from(ip).to_canonical();
                Endpoint::TcpServer {
                    address: SocketAddr::new(ip, u16_at(40)),
                    ticket,
                }
            }
            3 => Endpoint::Verbs(
                verbs::Endpoint::decode(&bytes[24..56]).map_err(|_| GreetingError::Garbled)?,
            ),
            _ => return Err(GreetingError::Garbled),
        };
        Ok(Greeting {
            role,
            chunk_capacity: u32_at(8),
            slots: u16_at(12),
            heartbeat: Duration::from_millis(u64::from(u32_at(16))),
            endpoint,
        })
    }

    /// Checks that both sides have slots of one size.
    pub(super) fn check_capacity(&self, ours: u32) -> Result<(), GreetingError> {
        if self.chunk_capacity == ours {
            Ok(())
        } else {
            Err(GreetingError::ChunkCapacity {
                theirs: self.chunk_capacity,
                ours,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoints() -> impl Strategy<Value = Endpoint> {
        prop_oneof![
            Just(Endpoint::TcpRequester),
            (any::<[u8; 4]>(), any::<u16>(), any::<[u8; 32]>()).prop_map(|(ip, port, ticket)| {
                Endpoint::TcpServer {
                    address: SocketAddr::from((ip, port)),
                    ticket,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_greeting_arrives_as_it_was_sent(
            chunk_capacity: u32, slots: u16, heartbeat: u32, endpoint in endpoints(), offer: bool
        ) {
            let role = if offer { Role::Offer } else { Role::Answer };
            let heartbeat = Duration::from_millis(heartbeat.into());
            let greeting = Greeting { role, chunk_capacity, slots, heartbeat, endpoint };
            prop_assert_eq!(Greeting::decode(&greeting.encode(), role), Ok(greeting));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Greeting::decode(&bytes, Role::Offer).is_err());
        }

        #[test]
        fn arbitrary_fields_under_a_valid_checksum_never_panic(mut bytes: [u8; 88]) {
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[4] = LAYOUT;
            bytes[5] = Role::Answer as u8;
            bytes[6] %= 6;
            let mut bytes = bytes.to_vec();
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            let _ = Greeting::decode(&bytes, Role::Answer);
        }
    }
}
