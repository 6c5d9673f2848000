//! The readers of bytes that others write, each with what must hold whatever it is given. A fuzzer
//! looks for bytes that break it, and the ordinary tests try some thousands of them.
//!
//! A crate keeps its list, [`TARGETS`], in a module of this name; the targets themselves stand beside
//! their readers, which stay private.

use crate::verbs::{Endpoint, RemoteMemory};
use crate::{bench, fabric, mesh};

/// A reader, and what must hold.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its program in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// What the real writers write: where a search begins.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads the bytes. Panics where something does not hold that must.
    pub check: fn(&[u8]),
}

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    fabric::fuzzing::FRAME,
    fabric::fuzzing::GREETING,
    ENDPOINT,
    bench::fuzzing::MESSAGE,
    mesh::fuzzing::MESSAGE,
    mesh::fuzzing::JOURNAL,
];

/// One end of a connection and a window of memory, as a peer describes them.
const ENDPOINT: Target = Target {
    name: "verbs-endpoint",
    seeds: endpoint_seeds,
    check: endpoint,
};

fn endpoint(bytes: &[u8]) {
    if let Ok(endpoint) = Endpoint::decode(bytes) {
        assert!(endpoint.qp_number < 1 << 24 && endpoint.packet_sequence < 1 << 24);
        assert_eq!(Endpoint::decode(&endpoint.encode()), Ok(endpoint));
    }
    if let Some(memory) = RemoteMemory::decode(bytes) {
        assert_eq!(memory.encode(), bytes);
        for (offset, len) in [(0, memory.len), (memory.len, 0), (memory.len / 2, 1)] {
            if let Some(there) = memory.at(offset, len) {
                let end = there.address.checked_add(len);
                assert!(end.is_some_and(|end| end <= memory.address + memory.len));
            }
        }
        assert_eq!(memory.at(memory.len, 1), None);
        assert_eq!(memory.at(1, u64::MAX), None);
    }
}

/// Two ends that meet over soft-RoCE.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut bytes = [0; Endpoint::ENCODED_BYTES];
    bytes[0] = 17;
    bytes[4] = 99;
    bytes[10..12].copy_from_slice(&4096_u16.to_le_bytes());
    bytes[12] = 16;
    bytes[16..].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 88, 0, 1]);
    let one = Endpoint::decode(&bytes).expect("an endpoint");
    vec![
        one,
        Endpoint {
            qp_number: (1 << 24) - 1,
            lid: 3,
            ..one
        },
    ]
}

/// A window of a page.
pub(crate) fn window() -> RemoteMemory {
    RemoteMemory {
        address: 0x7f00_0000_1000,
        len: 4096,
        rkey: 0x1234,
    }
}

fn endpoint_seeds() -> Vec<Vec<u8>> {
    let ends = endpoints().into_iter();
    ends.map(|end| end.encode().to_vec())
        .chain([window().encode().to_vec()])
        .collect()
}
