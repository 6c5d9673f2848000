//! What the two ends tell each other over TCP, besides the measurement itself.

use serde::{Deserialize, Serialize};

use super::{Plan, Row};
use crate::verbs::{Endpoint, GidKind, RemoteMemory};

/// Spoken versions: raised when a message changes its meaning.
pub(super) const VERSION: u32 = 1;
/// Each end begins with this.
pub(super) const PREAMBLE: [u8; 16] = *b"trackbed bench\r\n";
/// No message is longer.
pub(super) const LONGEST: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// First of the client.
    Hello {
        version: u32,
        software: String,
        plan: Plan,
        gid_kind: String,
        address: Address,
    },
    /// The server takes part.
    Welcome { address: Address },
    /// The sender doesn't or no longer take part.
    Refuse { reason: String },
    /// The sender's queue pair is connected.
    Ready,
    /// The client is busy measuring.
    Alive,
    /// Messages of this size come next.
    Begin { bytes: u64 },
    /// The last one is there: compare.
    Check { bytes: u64, seed: u64 },
    /// What comparing gave.
    Checked { intact: bool },
    /// All is measured.
    Finished { rows: Vec<Row> },
}

/// Where a queue pair and its window are, in the encodings of the verbs layer, as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Address {
    endpoint: String,
    window: String,
}

impl Address {
    pub(super) fn new(endpoint: &Endpoint, window: &RemoteMemory) -> Address {
        Address {
            endpoint: to_hex(&endpoint.encode()),
            window: to_hex(&window.encode()),
        }
    }

    /// What a peer sent, or why it can't be used.
    pub(super) fn decode(&self) -> Result<(Endpoint, RemoteMemory), String> {
        let endpoint = from_hex(&self.endpoint).ok_or("its endpoint is not hexadecimal")?;
        let endpoint = Endpoint::decode(&endpoint).map_err(|error| error.to_string())?;
        let window = from_hex(&self.window)
            .and_then(|bytes| RemoteMemory::decode(&bytes))
            .ok_or("its memory window is no range of addresses")?;
        Ok((endpoint, window))
    }
}

impl Message {
    pub(super) fn hello(plan: &Plan, kind: GidKind, address: Address) -> Message {
        Message::Hello {
            version: VERSION,
            software: concat!("trackbed ", env!("CARGO_PKG_VERSION")).to_owned(),
            plan: plan.clone(),
            gid_kind: kind.to_string(),
            address,
        }
    }

    /// Its name, for errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Message::Hello { .. } => "hello",
            Message::Welcome { .. } => "welcome",
            Message::Refuse { .. } => "refuse",
            Message::Ready => "ready",
            Message::Alive => "alive",
            Message::Begin { .. } => "begin",
            Message::Check { .. } => "check",
            Message::Checked { .. } => "checked",
            Message::Finished { .. } => "finished",
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings always encode")
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Message, String> {
        #[derive(Deserialize)]
        struct Spoken {
            version: u32,
            software: String,
        }
        // A version we don't speak is to be named, whatever else its hello holds.
        if let Ok(spoken) = serde_json::from_slice::<Spoken>(bytes)
            && spoken.version != VERSION
        {
            let software: String = spoken.software.chars().take(64).collect();
            return Err(format!(
                "it is {software:?} and speaks version {}, we speak {VERSION}: use the same release on both ends",
                spoken.version
            ));
        }
        serde_json::from_slice(bytes)
            .map_err(|error| format!("it sent what we can't read: {error}"))
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bench::{Measure, Verb};

    fn address() -> Address {
        Address {
            endpoint: "00".repeat(32),
            window: "00".repeat(20),
        }
    }

    #[test]
    fn a_hello_of_another_version_is_named_as_such() {
        let plan = Plan::new(Verb::Write, Measure::Bandwidth);
        let hello = Message::hello(&plan, GidKind::RoceV2Ipv4, address());
        assert_eq!(Message::decode(&hello.encode()), Ok(hello.clone()));
        let text = String::from_utf8(hello.encode()).expect("JSON");
        let newer = text.replace("\"version\":1", "\"version\":7");
        let error = Message::decode(newer.as_bytes()).expect_err("another version");
        assert!(error.contains("speaks version 7"), "{error}");
    }

    #[test]
    fn an_address_that_makes_no_sense_is_refused() {
        assert!(address().decode().is_err(), "an MTU of 0");
        let odd = Address {
            endpoint: "zz".to_owned(),
            window: "0".to_owned(),
        };
        assert!(odd.decode().is_err());
        let accents = Address {
            endpoint: "é".to_owned(),
            ..address()
        };
        assert!(accents.decode().is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            Message::decode(&bytes).ok();
        }

        #[test]
        fn arbitrary_addresses_never_panic(endpoint in ".{0,80}", window in ".{0,80}") {
            Address { endpoint, window }.decode().ok();
        }
    }
}
