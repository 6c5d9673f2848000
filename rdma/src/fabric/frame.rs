//! What travels between peers, the same over TCP and verbs.
//!
//! A frame is a header of 32 bytes, little-endian, and for some kinds a body:
//!
//! | bytes | hello | requests | reply |
//! |---|---|---|---|
//! | 0..4 | magic `TBF1` | | |
//! | 4 | layout version, 1 | | |
//! | 5 | kind | | |
//! | 6..8 | 0 | number of entries | 0 |
//! | 8..12 | bytes of the body: 32 | 56 an entry | 0 |
//! | 12..16 | 0 | 0 | data bytes of the payload, or whom to ask instead |
//! | 16..18 | 0 | 0 | slot |
//! | 18..20 | 0 | 0 | status |
//! | 20..24 | 0 | 0 | tag of the request |
//! | 24..28 | crc32c of the body | | |
//! | 28..32 | crc32c of bytes 0..28 | | |
//!
//! The body of a hello is a ticket. An entry of a request names a chunk and the place in the
//! requester's arena: version (32), chunk (4), slot (2), flags (2), address (8), rkey (4), tag (4).
//! The tag returns with the reply, so that an answer to an earlier use of a slot is told apart.
//! After a reply of status 0 come the data bytes and [`TRAILER_BYTES`] of trailer.

use super::{ChunkRequest, Refusal};

/// Bytes of a header, which is all of a reply.
pub(super) const HEADER_BYTES: usize = 32;

/// Bytes of an entry of a request.
pub(super) const ENTRY_BYTES: usize = 56;

/// The most entries of a request frame.
pub(super) const MAX_ENTRIES: usize = 32;

/// The largest frame there is.
pub(super) const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_ENTRIES * ENTRY_BYTES;

/// Bytes of a ticket.
pub(super) const TICKET_BYTES: usize = 32;

/// Bytes of a payload's trailer that travel.
pub const TRAILER_BYTES: usize = 512;

const MAGIC: [u8; 4] = *b"TBF1";
const LAYOUT: u8 = 1;
const KIND_HELLO: u8 = 1;
const KIND_REQUESTS: u8 = 2;
const KIND_REPLY: u8 = 3;

const STATUS_PAYLOAD: u16 = 0;
const STATUS_WORKING: u16 = 0xff;

/// What a decoder refuses, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("it does not begin with a frame of this protocol")]
    Magic,
    #[error("its layout is version {0}, ours is {LAYOUT}: run the same release on both nodes")]
    Layout(u8),
    #[error("the checksum of its {0} is wrong")]
    Checksum(&'static str),
    #[error("kind {0} is unknown")]
    Kind(u8),
    #[error("status {0} is unknown")]
    Status(u16),
    #[error("{0} entries are none or too many")]
    Count(u16),
    #[error("its length does not fit its kind")]
    Length,
}

/// A header that was found valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// The first frame of a data connection; a ticket follows.
    Hello(BodyCheck),
    /// Entries follow.
    Requests(BodyCheck),
    /// A reply; the payload follows if there is one.
    Reply(Reply),
}

/// What the body that follows must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BodyCheck {
    len: usize,
    crc: u32,
}

impl BodyCheck {
    /// Bytes of the body.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// The body, if it is the one the header spoke of.
    pub(super) fn check(self, body: &[u8]) -> Result<&[u8], FrameError> {
        if body.len() != self.len {
            return Err(FrameError::Length);
        }
        if crc32c::crc32c(body) != self.crc {
            return Err(FrameError::Checksum("body"));
        }
        Ok(body)
    }
}

/// The answer to one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) slot: u16,
    pub(super) tag: u32,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A payload with that many data bytes.
    Payload(u32),
    /// No payload, and why.
    Refused(Refusal),
    /// To no request: the peer is alive and works on what it was asked. Also the answer to a hello.
    Working,
}

/// One request, and where its answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) request: ChunkRequest,
    pub(super) slot: u16,
    pub(super) tag: u32,
    /// Address of the slot in the requester's memory; 0 over TCP.
    pub(super) address: u64,
    /// Key of the requester's arena; 0 over TCP.
    pub(super) rkey: u32,
}

fn put_header(
    kind: u8,
    count: u16,
    body: &[u8],
    payload: u32,
    slot: u16,
    status: u16,
    tag: u32,
) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = LAYOUT;
    header[5] = kind;
    header[6..8].copy_from_slice(&count.to_le_bytes());
    header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    header[12..16].copy_from_slice(&payload.to_le_bytes());
    header[16..18].copy_from_slice(&slot.to_le_bytes());
    header[18..20].copy_from_slice(&status.to_le_bytes());
    header[20..24].copy_from_slice(&tag.to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..32].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The first frame of a data connection.
pub(super) fn encode_hello(ticket: &[u8; TICKET_BYTES]) -> Vec<u8> {
    let mut frame = put_header(KIND_HELLO, 0, ticket, 0, 0, 0, 0).to_vec();
    frame.extend_from_slice(ticket);
    frame
}

/// A frame of 1 to [`MAX_ENTRIES`] requests.
pub(super) fn encode_requests(entries: &[Entry]) -> Vec<u8> {
    debug_assert!((1..=MAX_ENTRIES).contains(&entries.len()));
    let mut frame = vec![0; HEADER_BYTES];
    frame.reserve_exact(entries.len() * ENTRY_BYTES);
    for entry in entries {
        frame.extend_from_slice(&entry.request.version);
        frame.extend_from_slice(&entry.request.chunk.to_le_bytes());
        frame.extend_from_slice(&entry.slot.to_le_bytes());
        frame.extend_from_slice(&entry.request.flags.to_le_bytes());
        frame.extend_from_slice(&entry.address.to_le_bytes());
        frame.extend_from_slice(&entry.rkey.to_le_bytes());
        frame.extend_from_slice(&entry.tag.to_le_bytes());
    }
    let header = put_header(
        KIND_REQUESTS,
        entries.len() as u16,
        &frame[HEADER_BYTES..],
        0,
        0,
        0,
        0,
    );
    frame[..HEADER_BYTES].copy_from_slice(&header);
    frame
}

/// A reply.
pub(super) fn encode_reply(reply: &Reply) -> [u8; HEADER_BYTES] {
    let (payload, status) = match reply.outcome {
        Outcome::Payload(len) => (len, STATUS_PAYLOAD),
        Outcome::Refused(refusal) => {
            let (status, beside) = refusal.to_wire();
            (beside, u16::from(status))
        }
        Outcome::Working => (0, STATUS_WORKING),
    };
    put_header(KIND_REPLY, 0, &[], payload, reply.slot, status, reply.tag)
}

/// Reads a header. Bytes after it are not looked at.
pub(super) fn decode_header(bytes: &[u8]) -> Result<Header, FrameError> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(FrameError::Length)?;
    if header[0..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    if crc32c::crc32c(&header[..28]) != u32_at(header, 28) {
        return Err(FrameError::Checksum("header"));
    }
    if header[4] != LAYOUT {
        return Err(FrameError::Layout(header[4]));
    }
    let count = u16_at(header, 6);
    let body = BodyCheck {
        len: u32_at(header, 8) as usize,
        crc: u32_at(header, 24),
    };
    match header[5] {
        KIND_HELLO if body.len == TICKET_BYTES => Ok(Header::Hello(body)),
        KIND_REQUESTS => {
            if count == 0 || usize::from(count) > MAX_ENTRIES {
                return Err(FrameError::Count(count));
            }
            if body.len != usize::from(count) * ENTRY_BYTES {
                return Err(FrameError::Length);
            }
            Ok(Header::Requests(body))
        }
        KIND_REPLY if body.len == 0 => {
            let payload = u32_at(header, 12);
            let outcome = match u16_at(header, 18) {
                STATUS_PAYLOAD => Outcome::Payload(payload),
                STATUS_WORKING if payload == 0 => Outcome::Working,
                status => Outcome::Refused(
                    Refusal::from_wire(status, payload).ok_or(FrameError::Status(status))?,
                ),
            };
            Ok(Header::Reply(Reply {
                slot: u16_at(header, 16),
                tag: u32_at(header, 20),
                outcome,
            }))
        }
        KIND_HELLO | KIND_REPLY => Err(FrameError::Length),
        kind => Err(FrameError::Kind(kind)),
    }
}

/// Reads the entries of a request's body, which [`BodyCheck::check`] gave out.
pub(super) fn decode_entries(body: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    body.chunks_exact(ENTRY_BYTES).map(|entry| {
        let mut version = [0; 32];
        version.copy_from_slice(&entry[..32]);
        let mut address = [0; 8];
        address.copy_from_slice(&entry[40..48]);
        Entry {
            request: ChunkRequest {
                version,
                chunk: u32_at(entry, 32),
                flags: u16_at(entry, 38),
            },
            slot: u16_at(entry, 36),
            address: u64::from_le_bytes(address),
            rkey: u32_at(entry, 48),
            tag: u32_at(entry, 52),
        }
    })
}

/// Little-endian, at an offset the caller knows to be inside.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Little-endian, at an offset the caller knows to be inside.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            any::<u32>().prop_map(Outcome::Payload),
            (1u16..=5).prop_map(|status| Outcome::Refused(Refusal::plain(status).unwrap())),
            any::<u32>().prop_map(|whom| Outcome::Refused(Refusal::AskInstead(whom))),
            Just(Outcome::Working),
        ]
    }

    fn entries() -> impl Strategy<Value = Entry> {
        (any::<[u8; 32]>(), any::<(u32, u16, u16, u64, u32, u32)>()).prop_map(
            |(version, (chunk, slot, flags, address, rkey, tag))| Entry {
                request: ChunkRequest {
                    version,
                    chunk,
                    flags,
                },
                slot,
                tag,
                address,
                rkey,
            },
        )
    }

    proptest! {
        #[test]
        fn a_request_arrives_as_it_was_sent(sent in prop::collection::vec(entries(), 1..=MAX_ENTRIES)) {
            let frame = encode_requests(&sent);
            prop_assert!(frame.len() <= MAX_FRAME_BYTES);
            let Ok(Header::Requests(check)) = decode_header(&frame) else { panic!("no requests") };
            let body = check.check(&frame[HEADER_BYTES..]).unwrap();
            prop_assert_eq!(decode_entries(body).collect::<Vec<_>>(), sent);
        }

        #[test]
        fn a_reply_arrives_as_it_was_sent(slot: u16, tag: u32, outcome in outcomes()) {
            let reply = Reply { slot, tag, outcome };
            prop_assert_eq!(decode_header(&encode_reply(&reply)), Ok(Header::Reply(reply)));
        }

        #[test]
        fn a_hello_arrives_as_it_was_sent(ticket: [u8; TICKET_BYTES]) {
            let frame = encode_hello(&ticket);
            let Ok(Header::Hello(check)) = decode_header(&frame) else { panic!("no hello") };
            prop_assert_eq!(check.check(&frame[HEADER_BYTES..]).unwrap(), &ticket);
        }

        #[test]
        fn a_flipped_bit_anywhere_is_noticed(
            sent in prop::collection::vec(entries(), 1..4), bit in any::<prop::sample::Index>()
        ) {
            let mut frame = encode_requests(&sent);
            let bit = bit.index(frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            let noticed = match decode_header(&frame) {
                Ok(Header::Requests(check)) => check.check(&frame[HEADER_BYTES..]).is_err(),
                Ok(_) => false,
                Err(_) => true,
            };
            prop_assert!(noticed);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), seal: bool
        ) {
            // Half of them with a valid checksum, so that the fields behind it are reached.
            if seal && bytes.len() >= HEADER_BYTES {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = LAYOUT;
                bytes[5] %= 5;
                let crc = crc32c::crc32c(&bytes[..28]);
                bytes[28..32].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(Header::Requests(check) | Header::Hello(check)) = decode_header(&bytes) {
                prop_assert!(check.len() <= MAX_FRAME_BYTES);
                if let Ok(body) = check.check(&bytes[HEADER_BYTES..]) {
                    decode_entries(body).for_each(drop);
                }
            }
            decode_entries(&bytes).for_each(drop);
        }
    }
}
