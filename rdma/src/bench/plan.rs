//! What is to be measured: decided by the client, checked by both ends.

mod check;
mod sizes;

use serde::{Deserialize, Serialize};

use crate::verbs::{ConnectOptions, Mtu};

pub use check::PlanError;
pub use sizes::Sizes;

/// The operation measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// RDMA WRITE.
    Write,
    /// SEND into receives of the other end.
    Send,
    /// RDMA READ.
    Read,
    /// Atomic operations on 8 bytes.
    Atomic,
}

impl Verb {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Write => "write",
            Verb::Send => "send",
            Verb::Read => "read",
            Verb::Atomic => "atomic",
        }
    }

    /// Whether the answer comes from the other end's adapter, so that the completion ends a round trip.
    pub fn is_fetch(self) -> bool {
        matches!(self, Verb::Read | Verb::Atomic)
    }
}

/// What of it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// How much, with many messages on their way.
    Bandwidth,
    /// How soon, with one message on its way.
    Latency,
}

/// Which atomic operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtomicKind {
    /// Adds one.
    FetchAdd,
    /// Replaces a number by the next one.
    CompareSwap,
}

/// How long each size is measured, in each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// This many messages.
    Iterations(u64),
    /// For this many milliseconds.
    Milliseconds(u64),
}

/// A limit that the sender keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Payload bits a second.
    BitsPerSecond(u64),
    /// Messages a second.
    MessagesPerSecond(u64),
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The operation.
    pub verb: Verb,
    /// What of it.
    pub measure: Measure,
    /// Which atomic operation, for [`Verb::Atomic`].
    pub atomic: AtomicKind,
    /// Message sizes in bytes, measured one after another.
    pub sizes: Vec<u64>,
    /// Queue pairs that carry the messages, in turn.
    pub queue_pairs: u32,
    /// Messages of a queue pair on their way at most.
    pub depth: u32,
    /// Receives that a queue pair has posted, for [`Verb::Send`].
    pub receive_depth: u32,
    /// Messages posted with one doorbell.
    pub post_list: u32,
    /// One message in this many asks for a completion.
    pub signal_every: u32,
    /// Messages up to this size are copied into the work request.
    pub inline: u32,
    /// Both ends send at the same time.
    pub bidirectional: bool,
    /// Sleep until a completion is notified, rather than poll.
    pub events: bool,
    /// A limit that each sender keeps to.
    pub rate: Option<Rate>,
    /// An upper bound on the path MTU, in bytes.
    pub mtu: Option<u32>,
    /// InfiniBand service level, 0 to 15.
    pub service_level: u8,
    /// IP traffic class of RoCE (DSCP and ECN bits).
    pub traffic_class: u8,
    /// Wait for an acknowledgement, 4.096 us times 2 to this power (1 to 31).
    pub timeout: u8,
    /// How often to send again before giving up, 0 to 7.
    pub retries: u8,
    /// How long each size is measured, in each run.
    pub length: Length,
    /// How often each size is measured.
    pub runs: u32,
    /// Messages sent before the clock starts.
    pub warmup: u64,
    /// For how long at most to go on warming up until the rate is steady; 0 is not at all.
    pub settle_milliseconds: u64,
}

impl Plan {
    /// The usual measurement: 64 KiB, 128 deep, lists of 16, one signal in 64, two seconds; for latency
    /// 2 bytes, 2000 round trips. Atomic operations have 8 bytes.
    pub fn new(verb: Verb, measure: Measure) -> Plan {
        let (size, length, inline) = match measure {
            Measure::Bandwidth => (64 << 10, Length::Milliseconds(2000), 60),
            Measure::Latency => (2, Length::Iterations(2000), 220),
        };
        let path = ConnectOptions::default();
        Plan {
            verb,
            measure,
            atomic: AtomicKind::FetchAdd,
            sizes: vec![if verb == Verb::Atomic { 8 } else { size }],
            queue_pairs: 1,
            depth: 128,
            receive_depth: 512,
            post_list: 16,
            signal_every: 64,
            inline,
            bidirectional: false,
            events: false,
            rate: None,
            mtu: None,
            service_level: path.service_level,
            traffic_class: path.traffic_class,
            timeout: path.timeout,
            retries: path.retries,
            length,
            runs: 1,
            warmup: 256,
            settle_milliseconds: Self::usual_settle(measure, length),
        }
    }

    /// How long a rate is given to settle: a second where time is measured, not at all where messages
    /// are counted, as those are to be all there are.
    pub fn usual_settle(measure: Measure, length: Length) -> u64 {
        match (measure, length) {
            (Measure::Bandwidth, Length::Milliseconds(_)) => 1000,
            _ => 0,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        let measure = match self.measure {
            Measure::Bandwidth => "bandwidth",
            Measure::Latency => "latency",
        };
        format!("{} {measure}", self.verb.name())
    }

    /// The largest message.
    pub fn largest(&self) -> u64 {
        self.sizes.iter().copied().max().unwrap_or(0)
    }

    /// What both ends must agree on, by the name of the option that says it.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let length = |wanted: bool, value: u64| {
            if wanted {
                value.to_string()
            } else {
                "not given".to_owned()
            }
        };
        let (by_count, count) = match self.length {
            Length::Iterations(count) => (true, count),
            Length::Milliseconds(time) => (false, time),
        };
        let rate = match self.rate {
            Some(Rate::BitsPerSecond(bits)) => format!("{} Gb/s", bits as f64 / 1e9),
            Some(Rate::MessagesPerSecond(messages)) => format!("{messages} messages/s"),
            None => "without limit".to_owned(),
        };
        let atomic = match self.atomic {
            AtomicKind::FetchAdd => "fetch-add",
            AtomicKind::CompareSwap => "compare-swap",
        };
        let mtu = self
            .mtu
            .map_or_else(|| "the largest".to_owned(), |mtu| mtu.to_string());
        let duration = format!("{} ms", length(!by_count, count));
        vec![
            ("size", Sizes(self.sizes.clone()).to_string()),
            ("atomic", atomic.to_owned()),
            ("queue-pairs", self.queue_pairs.to_string()),
            ("depth", self.depth.to_string()),
            ("receive-depth", self.receive_depth.to_string()),
            ("post-list", self.post_list.to_string()),
            ("signal-every", self.signal_every.to_string()),
            ("inline", self.inline.to_string()),
            ("bidirectional", self.bidirectional.to_string()),
            ("events", self.events.to_string()),
            ("rate", rate),
            ("mtu", mtu),
            ("service-level", self.service_level.to_string()),
            ("traffic-class", self.traffic_class.to_string()),
            ("timeout", self.timeout.to_string()),
            ("retries", self.retries.to_string()),
            ("iterations", length(by_count, count)),
            ("duration", duration),
            ("runs", self.runs.to_string()),
            ("warmup", self.warmup.to_string()),
            ("settle", format!("{} ms", self.settle_milliseconds)),
        ]
    }

    pub(super) fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            timeout: self.timeout,
            retries: self.retries,
            // A receiver that is slower than the sender is what a bandwidth of sends is about: the
            // adapters wait for it, and nothing at all for seconds is found out elsewhere.
            not_ready_retries: 7,
            mtu: self.mtu(),
            traffic_class: self.traffic_class,
            service_level: self.service_level,
            ..ConnectOptions::default()
        }
    }

    pub(super) fn mtu(&self) -> Mtu {
        self.mtu.and_then(Mtu::from_bytes).unwrap_or(Mtu::Bytes4096)
    }
}
