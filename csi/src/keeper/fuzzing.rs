//! What agent and keeper say to each other. See [`crate::fuzzing`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bits::{self, Bits};
use super::frame::{self, Frame, Head};
use super::message::{Answer, Ask, FailureState, MountState, Tell};
use crate::fuzzing::Target;

/// Frames, as they come over the socket.
pub(crate) const FRAME: Target = Target {
    name: "keeper-frame",
    seeds: || {
        let written = |ask, body: &[u8]| {
            let mut bytes = Vec::new();
            let head = Head {
                ask,
                answer: ask.map(|number: u64| number + 1),
                what: serde_json::json!({"hello": {"protocol": 1, "build": "0.1"}}),
            };
            frame::write(&mut bytes, &head, body).expect("it fits");
            bytes
        };
        let (first, second) = (written(Some(1), b"bytes"), written(None, b""));
        vec![[&first[..], &second].concat(), second]
    },
    check: frames,
};

/// A frame's head says one of these.
pub(crate) const MESSAGE: Target = Target {
    name: "keeper-message",
    seeds: message_seeds,
    check: |bytes| {
        message::<Ask>(bytes);
        message::<Answer>(bytes);
        message::<Tell>(bytes);
    },
};

/// A frame's bytes that say which chunks are held.
pub(crate) const BITS: Target = Target {
    name: "keeper-bits",
    seeds: || vec![bits::encode(&[1 << 4, 0, 3]), vec![0xff; 100], vec![1]],
    check: held,
};

fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(read)) = frame::read(&mut rest) {
        let mut written = Vec::new();
        frame::write(&mut written, &read.head, &read.body).expect("it was a frame");
        let again: Option<Frame> = frame::read(&mut &written[..]).expect("its own bytes");
        assert_eq!(again, Some(read));
    }
}

fn message<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&message).expect("it was JSON");
        let again: T = serde_json::from_slice(&again).expect("its own text");
        assert_eq!(again, message);
    }
}

fn message_seeds() -> Vec<Vec<u8>> {
    let version = || "00112233".repeat(8);
    let state = || MountState {
        mount: 7,
        version: version(),
        target: "/pods/1".into(),
        device: (0, 45),
        alive: true,
        way: "fuse".to_owned(),
        failure: Some(FailureState {
            age_ms: 12,
            what: "a.jpg: no space".to_owned(),
        }),
    };
    let asks = [
        Ask::Mount {
            version: version(),
            directory: "/cache".into(),
            target: "/pods/1".into(),
            dataset: "cats".to_owned(),
            passthrough: true,
        },
        Ask::Adopt { mount: 7 },
        Ask::List,
        Ask::Bring {
            version: version(),
            entry: 3,
            offset: 1 << 40,
            len: 1 << 17,
            suspect: false,
        },
    ];
    let answers = [
        Answer::Welcome {
            protocol: 1,
            oldest: 1,
            build: "0.1".to_owned(),
        },
        Answer::Mounts {
            mounts: vec![state()],
        },
        Answer::Brought {
            on_disk: true,
            bytes: false,
        },
        Answer::Done,
    ];
    let tells = [Tell::Held { version: version() }, Tell::State(state())];
    let asks = asks.iter().map(serde_json::to_vec);
    let all = asks.chain(answers.iter().map(serde_json::to_vec));
    let all = all.chain(tells.iter().map(serde_json::to_vec));
    all.map(|text| text.expect("JSON")).collect()
}

fn held(bytes: &[u8]) {
    const CHUNKS: u32 = 130;
    let said = |chunk: u32| {
        let byte = bytes.get(chunk as usize / 8);
        byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
    };
    let bits = Bits::new(CHUNKS);
    let before = [3, 64, 129];
    before.iter().for_each(|&chunk| bits.set(chunk));
    let mut gone = Vec::new();
    bits.replace(bytes, |chunk| gone.push(chunk));
    assert!((0..CHUNKS).all(|chunk| bits.has(chunk) == said(chunk)));
    let lost: Vec<u32> = before.into_iter().filter(|&chunk| !said(chunk)).collect();
    assert_eq!(gone, lost);
}
