//! What the two ends tell each other over TCP, besides the measurement itself.

use serde::{Deserialize, Serialize};

use super::plan::Length;
use super::{Cpu, Plan, Row};
use crate::verbs::{Endpoint, GidKind, RemoteMemory};

/// Spoken versions: raised when a message changes its meaning.
pub(super) const VERSION: u32 = 2;
/// Each end begins with this.
pub(super) const PREAMBLE: [u8; 16] = *b"trackbed bench\r\n";
/// No message is longer: the results of many sizes, or the addresses of many queue pairs.
pub(super) const LONGEST: usize = 4 << 20;
/// What we are.
pub(super) const SOFTWARE: &str = concat!("trackbed ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// First of the client.
    Hello {
        version: u32,
        software: String,
        end: Name,
        plan: Box<Plan>,
        gid_kind: String,
        address: Address,
    },
    /// The server takes part.
    Welcome { end: Name, address: Address },
    /// The sender doesn't or no longer take part.
    Refuse { reason: String },
    /// The sender is ready for what was announced.
    Ready,
    /// The sender is busy measuring.
    Alive,
    /// Messages of this size come next; their bytes follow from the seed.
    Begin { bytes: u64, seed: u64 },
    /// The server takes part in moving messages, as long as this says.
    Transfer { until: Until },
    /// The sender's messages of a transfer are all done.
    Sent {
        messages: u64,
        seconds: f64,
        cpu: Cpu,
    },
    /// The last messages are there: compare. So many went over each queue pair.
    Check { messages: Vec<u64> },
    /// What comparing gave, and how many went over each queue pair the other way.
    Checked { intact: bool, messages: Vec<u64> },
    /// All is measured.
    Finished { rows: Vec<Row> },
}

/// How long an end sends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Until {
    /// As long as is measured.
    Length(Length),
    /// Until the rate is steady.
    Settled {
        /// Messages at least.
        messages: u64,
        /// Time at most; 0 is not to look at the rate.
        milliseconds: u64,
    },
    /// Until the peer says that it is done.
    Peer,
}

/// Who an end is, for reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Name {
    pub(super) host: String,
    pub(super) device: String,
}

impl Name {
    /// What a peer says, cut to what a report can show.
    pub(super) fn bounded(&self) -> Name {
        let cut = |text: &str| {
            let plain = text.chars().filter(|letter| !letter.is_control());
            plain.take(64).collect()
        };
        Name {
            host: cut(&self.host),
            device: cut(&self.device),
        }
    }
}

/// Where queue pairs and their window are, in the encodings of the verbs layer, as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Address {
    endpoints: Vec<String>,
    window: Option<String>,
}

impl Address {
    pub(super) fn new(endpoints: &[Endpoint], window: Option<&RemoteMemory>) -> Address {
        Address {
            endpoints: endpoints
                .iter()
                .map(|endpoint| to_hex(&endpoint.encode()))
                .collect(),
            window: window.map(|window| to_hex(&window.encode())),
        }
    }

    /// What a peer sent, or why it can't be used.
    pub(super) fn decode(&self) -> Result<(Vec<Endpoint>, Option<RemoteMemory>), String> {
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for text in &self.endpoints {
            let bytes = from_hex(text).ok_or("its endpoint is not hexadecimal")?;
            endpoints.push(Endpoint::decode(&bytes).map_err(|error| error.to_string())?);
        }
        let window = match &self.window {
            Some(text) => {
                let decoded = from_hex(text).and_then(|bytes| RemoteMemory::decode(&bytes));
                Some(decoded.ok_or("its memory window is no range of addresses")?)
            }
            None => None,
        };
        Ok((endpoints, window))
    }
}

impl Message {
    pub(super) fn hello(plan: &Plan, kind: GidKind, end: Name, address: Address) -> Message {
        Message::Hello {
            version: VERSION,
            software: SOFTWARE.to_owned(),
            end,
            plan: Box::new(plan.clone()),
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
            Message::Transfer { .. } => "transfer",
            Message::Sent { .. } => "sent",
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
            endpoints: vec!["00".repeat(32)],
            window: Some("00".repeat(20)),
        }
    }

    #[test]
    fn a_hello_of_another_version_is_named_as_such() {
        let plan = Plan::new(Verb::Write, Measure::Bandwidth);
        let hello = Message::hello(&plan, GidKind::RoceV2Ipv4, Name::default(), address());
        assert_eq!(Message::decode(&hello.encode()), Ok(hello.clone()));
        let text = String::from_utf8(hello.encode()).expect("JSON");
        let newer = text.replace("\"version\":2", "\"version\":7");
        let error = Message::decode(newer.as_bytes()).expect_err("another version");
        assert!(error.contains("speaks version 7"), "{error}");
    }

    #[test]
    fn an_address_that_makes_no_sense_is_refused() {
        assert!(address().decode().is_err(), "an MTU of 0");
        let odd = |text: &str| Address {
            endpoints: vec![text.to_owned()],
            window: None,
        };
        assert!(odd("zz").decode().is_err() && odd("0").decode().is_err());
        assert!(odd("é").decode().is_err());
        let no_range = Address {
            endpoints: Vec::new(),
            window: Some("ff".repeat(20)),
        };
        assert!(no_range.decode().is_err());
    }

    #[test]
    fn a_peers_name_cannot_fill_or_garble_a_report() {
        let name = Name {
            host: "\u{1b}[31m".repeat(100),
            device: "mlx5_0\n".to_owned(),
        };
        let bounded = name.bounded();
        assert!(bounded.host.chars().count() <= 64 && !bounded.host.contains('\u{1b}'));
        assert_eq!(bounded.device, "mlx5_0");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            Message::decode(&bytes).ok();
        }

        #[test]
        fn arbitrary_addresses_never_panic(endpoint in ".{0,80}", window in ".{0,80}") {
            Address { endpoints: vec![endpoint], window: Some(window) }.decode().ok();
        }
    }
}
