//! What a measurement gives: a [`Report`] with a [`Row`] for each message size.
//!
//! Reports are read back by `mesh`, `report` and `compare`, and by scripts: the names here are an
//! interface. A field that goes or changes its meaning raises [`SCHEMA`]; new ones may come.

use serde::{Deserialize, Serialize};

use super::Plan;
use super::verdict::{Figure, Verdict};

/// The version of a report's form.
pub const SCHEMA: u32 = 2;

/// What was measured, on what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// Which program that was, such as `trackbed 0.1.0`.
    pub software: String,
    /// What was measured, such as `write bandwidth`.
    pub bench: String,
    /// `client`, `server` or `local`.
    pub role: String,
    /// The name of this host.
    pub host: String,
    /// Our device.
    pub device: String,
    /// Our port on it.
    pub port: u8,
    /// Our GID.
    pub gid: String,
    /// Its index.
    pub gid_index: u8,
    /// The name of the peer's host, as it says.
    pub peer_host: String,
    /// The peer's device, as it says.
    pub peer_device: String,
    /// The peer's GID.
    pub peer_gid: String,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// Messages up to this many bytes went inline: what the device granted of what the plan asks for.
    pub inline_bytes: u32,
    /// The nominal rate of our port in Gb/s, or what was given instead; software devices have one too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line_rate_gbit_per_second: Option<f64>,
    /// When it began, in seconds since 1970.
    pub began_unix_seconds: u64,
    /// The plan, as both ends ran it.
    pub plan: Plan,
    /// A row a message size.
    pub rows: Vec<Row>,
    /// Whether what was expected was met; when something was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verdict: Option<Verdict>,
}

/// One measured message size. With several runs, figures are means over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Message size in bytes.
    pub bytes: u64,
    /// Messages measured, in all runs together; for latency, round trips.
    pub messages: u64,
    /// Time they took, from the first post to the last completion, in all runs together.
    pub seconds: f64,
    /// 2^20 bytes a second; for bandwidth. Both directions together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mib_per_second: Option<f64>,
    /// 10^9 bits a second; for bandwidth. Both directions together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gbit_per_second: Option<f64>,
    /// Messages divided by the time they took; for bandwidth. Both directions together.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub messages_per_second: Option<f64>,
    /// 10^9 bits a second that the peer sent, as it says; when measured in both directions at once.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer_gbit_per_second: Option<f64>,
    /// Time of a message; for latency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub latency: Option<Latency>,
    /// Latency by percentile, finely enough to draw its distribution.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub percentiles: Vec<Percentile>,
    /// How well the figure (Gb/s, or the median latency in microseconds) is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interval: Option<Interval>,
    /// The same figure of each run.
    #[serde(default)]
    pub runs: Vec<f64>,
    /// Whether it had settled before the clock started and stayed so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub steady: Option<Steady>,
    /// What the measuring thread used of its processor.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu: Option<Cpu>,
    /// The same of the peer's measuring thread, where it takes part in moving messages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer_cpu: Option<Cpu>,
    /// What kept it from being faster, as far as can be told; for bandwidth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<Limit>,
}

impl Row {
    /// A row without figures yet.
    pub fn new(bytes: u64, messages: u64, seconds: f64) -> Row {
        Row {
            bytes,
            messages,
            seconds,
            mib_per_second: None,
            gbit_per_second: None,
            messages_per_second: None,
            peer_gbit_per_second: None,
            latency: None,
            percentiles: Vec::new(),
            interval: None,
            runs: Vec::new(),
            steady: None,
            cpu: None,
            peer_cpu: None,
            limit: None,
        }
    }

    /// The figure that intervals, runs and comparisons are about, and whether more is better: Gb/s for
    /// bandwidth, the median in microseconds for latency.
    pub fn figure(&self) -> (f64, Figure) {
        match &self.latency {
            Some(latency) => (latency.p50_us, Figure::Latency),
            None => (self.gbit_per_second.unwrap_or(0.0), Figure::Bandwidth),
        }
    }
}

/// Latency in microseconds: half of a round trip for write and send, a whole one for read and atomic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Shortest.
    pub min_us: f64,
    /// Median.
    pub p50_us: f64,
    /// Mean.
    pub mean_us: f64,
    /// 90 of 100 are not longer.
    pub p90_us: f64,
    /// 99 of 100 are not longer.
    pub p99_us: f64,
    /// 999 of 1,000 are not longer.
    pub p999_us: f64,
    /// 9,999 of 10,000 are not longer.
    pub p9999_us: f64,
    /// Longest.
    pub max_us: f64,
}

/// A point of a distribution: this many in a hundred are not longer than this.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    /// 0 to 100.
    pub percent: f64,
    /// Microseconds.
    pub us: f64,
}

/// A confidence interval of the mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// How sure it is, such as 0.95.
    pub confidence: f64,
    /// What varied: `runs`, or `batches` of one run.
    pub over: String,
    /// How many of them.
    pub samples: u32,
}

/// Whether a rate had become constant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Steady {
    /// Whether the last intervals of the warm-up, and those measured, varied little enough.
    pub reached: bool,
    /// Time spent warming up.
    pub warmup_seconds: f64,
    /// Coefficient of variation of the rate over the intervals measured.
    pub variation: f64,
    /// Number of those intervals.
    pub intervals: u32,
    /// Intervals at the start that MSER-5 would leave out: above half of them, there was a trend.
    pub transient: u32,
}

/// Processor time of one thread, by getrusage(2). What the kernel does for a software device elsewhere
/// is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// In user mode.
    pub user_seconds: f64,
    /// In the kernel.
    pub system_seconds: f64,
    /// Share of the time measured: 1 for a thread that polls all the time.
    pub share: f64,
    /// Both, for a message.
    pub ns_per_message: f64,
    /// Both, for a byte.
    pub ns_per_byte: f64,
}

/// What limits a bandwidth, as far as the sender can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// At least 90% of the port's nominal rate.
    LineRate,
    /// The rate that was asked for.
    Rate,
    /// The sender's thread: it hardly ever had to wait for the device.
    Processor,
    /// Too few messages on their way to fill the path: a greater depth would bring more.
    Depth,
    /// Messages a second that device and path can do; larger messages would bring more.
    MessageRate,
    /// Bytes a second that device and path can do.
    Path,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::LineRate => "line rate",
            Limit::Rate => "--rate",
            Limit::Processor => "this CPU",
            Limit::Depth => "depth",
            Limit::MessageRate => "message rate",
            Limit::Path => "device or path",
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn bandwidth(bytes: u64, gbit_per_second: f64) -> Row {
        Row {
            gbit_per_second: Some(gbit_per_second),
            ..Row::new(bytes, 1000, 1.0)
        }
    }

    pub(in crate::bench) fn latency(bytes: u64, us: f64) -> Row {
        let latency = Latency {
            min_us: us,
            p50_us: us,
            mean_us: us,
            p90_us: us,
            p99_us: us,
            p999_us: us,
            p9999_us: us,
            max_us: us,
        };
        Row {
            latency: Some(latency),
            percentiles: vec![Percentile { percent: 50.0, us }],
            ..Row::new(bytes, 1000, 1.0)
        }
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        for row in [bandwidth(65536, 92.5), latency(2, 1.75)] {
            let text = serde_json::to_string(&row).expect("JSON");
            let back: Row = serde_json::from_str(&text).expect("the same form");
            assert_eq!(back, row);
        }
    }

    #[test]
    fn figures_are_of_their_kind() {
        assert_eq!(bandwidth(1, 2.0).figure(), (2.0, Figure::Bandwidth));
        assert_eq!(latency(1, 3.0).figure(), (3.0, Figure::Latency));
    }
}
