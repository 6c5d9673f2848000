//! What peers send each other. See [`crate::fuzzing`].

use std::time::Duration;

use super::frame::{
    ENTRY_BYTES, Entry, HEADER_BYTES, Header, MAX_ENTRIES, Outcome, Reply, TICKET_BYTES,
    decode_entries, decode_header, encode_hello, encode_reply, encode_requests,
};
use super::meeting::{Endpoint, GREETING_BYTES, Greeting, Role};
use super::{ChunkRequest, Refusal};
use crate::fuzzing::{Target, endpoints};

/// A frame of a data connection, or of a queue pair.
pub(crate) const FRAME: Target = Target {
    name: "fabric-frame",
    seeds: frame_seeds,
    check: frame,
};

/// An offer or an answer, which the control plane carries.
pub(crate) const GREETING: Target = Target {
    name: "fabric-greeting",
    seeds: greeting_seeds,
    check: greeting,
};

/// Once as they came, once with their checksums put right: else nothing behind those is reached.
fn frame(bytes: &[u8]) {
    read_frame(bytes);
    let mut sealed = bytes.to_vec();
    if let Some((header, body)) = sealed.split_first_chunk_mut::<HEADER_BYTES>() {
        header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let crc = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&crc.to_le_bytes());
        read_frame(&sealed);
    }
}

fn read_frame(bytes: &[u8]) {
    let Ok(header) = decode_header(bytes) else {
        return;
    };
    let after = &bytes[HEADER_BYTES..];
    match header {
        Header::Hello(check) => {
            assert_eq!(check.len(), TICKET_BYTES);
            let body = after.get(..check.len()).map(|body| check.check(body));
            if let Some(Ok(ticket)) = body {
                let ticket = ticket.try_into().expect("of a ticket's length");
                assert_eq!(decode_header(&encode_hello(ticket)), Ok(header));
            }
        }
        Header::Requests(check) => {
            assert!(check.len() <= MAX_ENTRIES * ENTRY_BYTES);
            let body = after.get(..check.len()).map(|body| check.check(body));
            if let Some(Ok(body)) = body {
                let entries: Vec<Entry> = decode_entries(body).collect();
                let again = encode_requests(&entries);
                assert_eq!(&again[HEADER_BYTES..], body);
                assert_eq!(decode_header(&again), Ok(header));
            }
        }
        Header::Reply(reply) => assert_eq!(decode_header(&encode_reply(&reply)), Ok(header)),
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let entry = |slot| Entry {
        request: ChunkRequest {
            version: [7; 32],
            chunk: 5,
            flags: ChunkRequest::FORWARDED,
        },
        slot,
        tag: 9,
        address: 0x7f00_0000_0000,
        rkey: 77,
    };
    let reply = |outcome| {
        let (slot, tag) = (3, 9);
        encode_reply(&Reply { slot, tag, outcome }).to_vec()
    };
    vec![
        encode_hello(&[1; TICKET_BYTES]),
        encode_requests(&[entry(0)]),
        encode_requests(&[entry(0), entry(1), entry(65_535)]),
        reply(Outcome::Payload(4 << 20)),
        reply(Outcome::Refused(Refusal::Busy)),
        reply(Outcome::Refused(Refusal::AskInstead(0x1234_5678))),
        reply(Outcome::Working),
    ]
}

fn greeting(bytes: &[u8]) {
    read_greeting(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(GREETING_BYTES, 0);
    let crc = crc32c::crc32c(&sealed[..GREETING_BYTES - 4]);
    sealed[GREETING_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    read_greeting(&sealed);
}

fn read_greeting(bytes: &[u8]) {
    for role in [Role::Offer, Role::Answer] {
        if let Ok(greeting) = Greeting::decode(bytes, role) {
            assert_eq!(greeting.role, role);
            assert_eq!(Greeting::decode(&greeting.encode(), role), Ok(greeting));
        }
    }
}

fn greeting_seeds() -> Vec<Vec<u8>> {
    let greeting = |role, endpoint| {
        let greeting = Greeting {
            role,
            chunk_capacity: 4 << 20,
            slots: 8,
            heartbeat: Duration::from_millis(2500),
            endpoint,
        };
        greeting.encode()
    };
    let server = |address: &str| Endpoint::TcpServer {
        address: address.parse().expect("an address"),
        ticket: [2; TICKET_BYTES],
    };
    vec![
        greeting(Role::Offer, Endpoint::TcpRequester),
        greeting(Role::Answer, server("10.0.0.1:7421")),
        greeting(Role::Answer, server("[fd00::1]:7421")),
        greeting(Role::Offer, Endpoint::Verbs(endpoints()[0])),
        greeting(Role::Answer, Endpoint::Verbs(endpoints()[1])),
    ]
}
