//! The command line of `trackbed rdma bench`.

use super::quantity::{BitRate, Time, Wanted};
use crate::Output;
use crate::rdma::tls::TlsArgs;
use clap::{Args, ValueEnum};
use std::net::IpAddr;
use trackbed_rdma::bench::{DEFAULT_PORT, Sizes};
use trackbed_rdma::verbs::GidKind;

const AFTER_HELP: &str = "\
Examples:
  node-1$ trackbed rdma bench write bandwidth
  node-2$ trackbed rdma bench write bandwidth node-1 --size 64K,1M --expect 90Gb/s
  trackbed rdma bench send latency --local --device mlx5_0 --size 2..8M
  trackbed rdma bench read bandwidth --device mlx5_0 --peer-device mlx5_1 --output json

Without HOST it serves one client. The client decides what is measured, and both ends use the same
kind of GID; each size ends with both ends comparing the bytes that arrived.
Exit status: 0 measured, and as good as expected; 1 worse than expected, or a transfer failed;
2 too uncertain to tell; 3 it could not be set up.
All options, with what perftest calls them: docs/rdma-bench.md";

/// Measure what two devices move between them, with plain verbs
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// The operation
    #[arg(value_enum)]
    pub(super) verb: VerbArg,

    /// What of it
    #[arg(value_enum)]
    pub(super) measure: MeasureArg,

    /// The server to measure against; without it, be the server
    #[arg(conflicts_with_all = ["local", "peer_device", "persistent"])]
    pub(super) host: Option<String>,

    #[command(flatten)]
    pub(super) ends: EndArgs,

    #[command(flatten)]
    pub(super) load: LoadArgs,

    #[command(flatten)]
    pub(super) time: TimeArgs,

    #[command(flatten)]
    pub(super) path: PathArgs,

    #[command(flatten)]
    pub(super) meeting: MeetingArgs,

    #[command(flatten)]
    pub(super) verdict: VerdictArgs,

    /// Tell on stderr how it goes, every so many seconds [default: a bar on a terminal]
    #[arg(long, value_name = "SECONDS", help_heading = "Output")]
    pub(super) report_interval: Option<f64>,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM", help_heading = "Output")]
    pub(super) output: Output,
}

#[derive(Args)]
#[command(next_help_heading = "Devices and memory")]
pub(super) struct EndArgs {
    /// Our device [default: the first with an active port]
    #[arg(long, value_name = "NAME")]
    pub(super) device: Option<String>,

    /// Its port [default: the first active one]
    #[arg(long, value_name = "NUMBER")]
    pub(super) port: Option<u8>,

    /// The GID with this index; it differs from node to node
    #[arg(long, value_name = "INDEX", conflicts_with_all = ["gid_type", "gid_address"])]
    pub(super) gid_index: Option<u32>,

    /// The GID of this type: infiniband, rocev1, rocev2-ipv4, rocev2-ipv6
    #[arg(long, value_name = "TYPE", conflicts_with = "gid_address")]
    pub(super) gid_type: Option<GidKind>,

    /// The GID of this IP address
    #[arg(long, value_name = "ADDRESS")]
    pub(super) gid_address: Option<IpAddr>,

    /// Both ends in this process, on one device
    #[arg(long, conflicts_with = "tls_certificate")]
    pub(super) local: bool,

    /// Both ends in this process, the other one on this device
    #[arg(long, value_name = "NAME", conflicts_with = "tls_certificate")]
    pub(super) peer_device: Option<String>,

    /// What our messages lie in
    #[arg(long, value_enum, default_value_t = MemoryArg::Anonymous, value_name = "KIND")]
    pub(super) memory: MemoryArg,

    /// Bind our memory and thread to this NUMA node
    #[arg(long, value_name = "NODE")]
    pub(super) numa: Option<u32>,
}

#[derive(Args)]
#[command(next_help_heading = "Messages")]
pub(super) struct LoadArgs {
    /// Message sizes: 64K or 1,4K,1M or 2..8M for powers of two [default: 64K; latency: 2; atomic: 8]
    #[arg(long, value_name = "SIZES")]
    pub(super) size: Option<Sizes>,

    /// Which atomic operation
    #[arg(long, value_enum, value_name = "KIND")]
    pub(super) atomic: Option<AtomicArg>,

    /// Queue pairs that carry the messages [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub(super) queue_pairs: Option<u32>,

    /// Messages of a queue pair on their way at most [default: 128]
    #[arg(long, value_name = "COUNT")]
    pub(super) depth: Option<u32>,

    /// Receives that a queue pair has posted, for sends [default: 512]
    #[arg(long, value_name = "COUNT")]
    pub(super) receive_depth: Option<u32>,

    /// Messages posted with one doorbell [default: 16]
    #[arg(long, value_name = "COUNT")]
    pub(super) post_list: Option<u32>,

    /// Ask for one completion in this many messages, and in each MiB [default: 64]
    #[arg(long, value_name = "COUNT")]
    pub(super) signal_every: Option<u32>,

    /// Copy messages up to this size into the work request; 0 turns it off [default: 60; latency: 220]
    #[arg(long, value_name = "BYTES")]
    pub(super) inline: Option<u32>,

    /// Send both ways at the same time
    #[arg(long)]
    pub(super) bidirectional: bool,

    /// Sleep until completions are notified, rather than poll for them
    #[arg(long)]
    pub(super) events: bool,

    /// Keep to this rate: 10Gb/s, or 100000messages/s
    #[arg(long, value_name = "RATE")]
    pub(super) rate: Option<Wanted>,
}

#[derive(Args)]
#[command(next_help_heading = "Time")]
pub(super) struct TimeArgs {
    /// Messages measured of each size, in each run [latency: 2000]
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    pub(super) iterations: Option<u64>,

    /// Seconds measured of each size, in each run [default: 2]
    #[arg(long, value_name = "SECONDS")]
    pub(super) duration: Option<f64>,

    /// How often each size is measured; several give an interval over runs [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub(super) runs: Option<u32>,

    /// Messages before the clock starts [default: 256]
    #[arg(long, value_name = "COUNT")]
    pub(super) warmup: Option<u64>,

    /// Seconds at most to warm up until the rate is steady [default: 1; 0 with --iterations]
    #[arg(long, value_name = "SECONDS")]
    pub(super) settle: Option<f64>,
}

#[derive(Args)]
#[command(next_help_heading = "Path")]
pub(super) struct PathArgs {
    /// Path MTU at most: 256, 512, 1024, 2048 or 4096 [default: what both ports use]
    #[arg(long, value_name = "BYTES")]
    pub(super) mtu: Option<u32>,

    /// InfiniBand service level, 0 to 15 [default: 0]
    #[arg(long, value_name = "LEVEL")]
    pub(super) service_level: Option<u8>,

    /// IP traffic class of RoCE: DSCP times 4, plus the ECN bits [default: 0]
    #[arg(long, value_name = "CLASS")]
    pub(super) traffic_class: Option<u8>,

    /// Wait for an acknowledgement 4.096 us times 2 to this power [default: 14]
    #[arg(long, value_name = "POWER")]
    pub(super) timeout: Option<u8>,

    /// How often to send again before giving up, 0 to 7 [default: 6]
    #[arg(long, value_name = "COUNT")]
    pub(super) retries: Option<u8>,
}

#[derive(Args)]
#[command(next_help_heading = "Meeting")]
pub(super) struct MeetingArgs {
    /// TCP port on which the two ends meet
    #[arg(long, default_value_t = DEFAULT_PORT, value_name = "PORT")]
    pub(super) tcp_port: u16,

    /// Seconds that a server waits for its client
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub(super) wait: u64,

    /// Serve one client after another, until interrupted
    #[arg(long, conflicts_with_all = ["local", "peer_device"])]
    pub(super) persistent: bool,

    #[command(flatten)]
    pub(super) tls: TlsArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Verdict")]
pub(super) struct VerdictArgs {
    /// Fail below this bandwidth at the best size: 90Gb/s
    #[arg(long, value_name = "RATE", conflicts_with = "expect_percent")]
    pub(super) expect: Option<BitRate>,

    /// Fail above this median latency at the best size: 3us
    #[arg(long, value_name = "TIME")]
    pub(super) expect_latency: Option<Time>,

    /// Fail below this share of the line rate
    #[arg(long, value_name = "PERCENT")]
    pub(super) expect_percent: Option<f64>,

    /// The line rate, where the port does not tell it: 100Gb/s
    #[arg(long, value_name = "RATE")]
    pub(super) line_rate: Option<BitRate>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum VerbArg {
    /// RDMA WRITE
    Write,
    /// SEND into receives of the other end
    Send,
    /// RDMA READ
    Read,
    /// Atomic operations on 8 bytes
    Atomic,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum MeasureArg {
    /// How much, with many messages on their way
    Bandwidth,
    /// How soon, one message at a time
    Latency,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum AtomicArg {
    /// Adds one
    FetchAdd,
    /// Replaces a number by the next one
    CompareSwap,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum MemoryArg {
    /// Ordinary pages
    Anonymous,
    /// Reserved huge pages of 2 MiB
    Hugepages,
}
