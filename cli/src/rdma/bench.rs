//! `trackbed rdma bench`.

use super::{print, print_json, table};
use crate::Output;
use crate::exit::Failure;
use clap::{Args, ValueEnum};
use std::net::IpAddr;
use std::time::Duration;
use trackbed_rdma::bench::{
    self, BenchError, DEFAULT_PORT, DeviceChoice, Length, Measure, Plan, Progress, Report, Row,
    Serve, Sizes, Target, Verb,
};
use trackbed_rdma::verbs::{GidChoice, GidKind};

const AFTER_HELP: &str = "\
Examples:
  node-1$ trackbed rdma bench write bandwidth
  node-2$ trackbed rdma bench write bandwidth node-1 --size 64K,1M
  trackbed rdma bench write latency --local --device mlx5_0
  trackbed rdma bench write bandwidth --device mlx5_0 --peer-device mlx5_1 --output json

Without HOST it serves one client. The client decides what is measured, and both ends use the same
kind of GID; each size of a bandwidth ends with the server comparing the bytes that arrived.
Exit status: 0 measured, 1 a transfer failed, 3 the measurement could not be set up.";

/// Measure what two devices move between them, with plain verbs
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// The operation
    #[arg(value_enum)]
    verb: VerbArg,

    /// What of it
    #[arg(value_enum)]
    measure: MeasureArg,

    /// The server to measure against; without it, be the server
    #[arg(conflicts_with_all = ["local", "peer_device"])]
    host: Option<String>,

    /// Our device [default: the first with an active port]
    #[arg(long, value_name = "NAME")]
    device: Option<String>,

    /// Its port [default: the first active one]
    #[arg(long, value_name = "NUMBER")]
    port: Option<u8>,

    /// The GID with this index; it differs from node to node
    #[arg(long, value_name = "INDEX", conflicts_with_all = ["gid_type", "gid_address"])]
    gid_index: Option<u32>,

    /// The GID of this type: infiniband, rocev1, rocev2-ipv4, rocev2-ipv6
    #[arg(long, value_name = "TYPE", conflicts_with = "gid_address")]
    gid_type: Option<GidKind>,

    /// The GID of this IP address
    #[arg(long, value_name = "ADDRESS")]
    gid_address: Option<IpAddr>,

    /// Both ends in this process, on one device
    #[arg(long)]
    local: bool,

    /// Both ends in this process, the other one on this device
    #[arg(long, value_name = "NAME")]
    peer_device: Option<String>,

    /// Message sizes: 64K or 1,4K,1M or 1..1M for powers of two [default: 64K; latency: 2]
    #[arg(long, value_name = "SIZES")]
    size: Option<Sizes>,

    /// Messages on their way at most [default: 128]
    #[arg(long, value_name = "COUNT")]
    depth: Option<u32>,

    /// Messages posted with one doorbell [default: 16]
    #[arg(long, value_name = "COUNT")]
    post_list: Option<u32>,

    /// Ask for one completion in this many messages [default: 64]
    #[arg(long, value_name = "COUNT")]
    signal_every: Option<u32>,

    /// Copy messages up to this size into the work request; 0 turns it off [default: 60]
    #[arg(long, value_name = "BYTES")]
    inline: Option<u32>,

    /// Path MTU at most: 256, 512, 1024, 2048 or 4096 [default: what both ports use]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,

    /// Messages measured of each size [latency: 2000]
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    iterations: Option<u64>,

    /// Seconds measured of each size [default: 2]
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,

    /// Messages before the clock starts [default: 256]
    #[arg(long, value_name = "COUNT")]
    warmup: Option<u64>,

    /// TCP port on which the two ends meet
    #[arg(long, default_value_t = DEFAULT_PORT, value_name = "PORT")]
    tcp_port: u16,

    /// Seconds that a server waits for its client
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    wait: u64,

    /// The form of what is printed
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum VerbArg {
    /// RDMA WRITE
    Write,
}

#[derive(Clone, Copy, ValueEnum)]
enum MeasureArg {
    /// How much, with many messages on their way
    Bandwidth,
    /// How soon, one message to and fro
    Latency,
}

pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    let target = target(&args);
    let mut progress = |progress: Progress<'_>| match progress {
        Progress::Listening(address) => {
            eprintln!("waiting for a client on TCP port {}", address.port());
        }
        Progress::Measured(row) => eprintln!("{}", sentence(row)),
    };
    let outcome = if let Some(host) = &args.host {
        bench::run(&target, &plan(&args)?, host, args.tcp_port, &mut progress)
    } else if args.local || args.peer_device.is_some() {
        let peer = args.peer_device.clone().map_or_else(
            || target.clone(),
            |name| Target {
                device: DeviceChoice::Named(name),
                ..Target::default()
            },
        );
        bench::run_local(&target, &peer, &plan(&args)?, &mut progress)
    } else {
        let patience = Duration::from_secs(args.wait);
        bench::serve(
            &target,
            &serve(&args)?,
            args.tcp_port,
            patience,
            &mut progress,
        )
    };
    let report = outcome.map_err(failure)?;
    match args.output {
        Output::Json => print_json(&report),
        Output::Table => print(&text(&report)),
    }
}

fn failure(error: BenchError) -> Failure {
    if error.is_setup() {
        Failure::unable(error)
    } else {
        Failure::failed(error)
    }
}

fn target(args: &BenchArgs) -> Target {
    let gid = match (args.gid_index, args.gid_type, args.gid_address) {
        (Some(index), _, _) => GidChoice::Index(index),
        (_, Some(kind), _) => GidChoice::Kind(kind),
        (_, _, Some(address)) => GidChoice::Address(address),
        _ => GidChoice::Automatic,
    };
    let device = args
        .device
        .clone()
        .map_or(DeviceChoice::Any, DeviceChoice::Named);
    Target {
        device,
        port: args.port,
        gid,
    }
}

fn plan(args: &BenchArgs) -> Result<Plan, Failure> {
    let usual = Plan::new(verb(args), measure(args));
    let length = match (args.iterations, args.duration) {
        (Some(count), _) => Length::Iterations(count),
        (None, Some(seconds)) => Length::Milliseconds(milliseconds(seconds)?),
        (None, None) => usual.length,
    };
    let depth = args.depth.unwrap_or(usual.depth);
    let plan = Plan {
        sizes: args
            .size
            .as_ref()
            .map_or(usual.sizes, |sizes| sizes.0.clone()),
        depth,
        // What was not asked for follows the depth; what was is checked against it.
        post_list: args.post_list.unwrap_or(usual.post_list.min(depth)),
        signal_every: args.signal_every.unwrap_or(usual.signal_every.min(depth)),
        inline: args.inline.unwrap_or(usual.inline),
        mtu: args.mtu,
        length,
        warmup: args.warmup.unwrap_or(usual.warmup),
        ..usual
    };
    plan.check().map_err(Failure::usage)?;
    Ok(plan)
}

fn serve(args: &BenchArgs) -> Result<Serve, Failure> {
    let given = |name: &str| match name {
        "size" => args.size.is_some(),
        "depth" => args.depth.is_some(),
        "mtu" => args.mtu.is_some(),
        _ => false,
    };
    Ok(Serve::insist(&plan(args)?, given))
}

fn verb(args: &BenchArgs) -> Verb {
    match args.verb {
        VerbArg::Write => Verb::Write,
    }
}

fn measure(args: &BenchArgs) -> Measure {
    match args.measure {
        MeasureArg::Bandwidth => Measure::Bandwidth,
        MeasureArg::Latency => Measure::Latency,
    }
}

fn milliseconds(seconds: f64) -> Result<u64, Failure> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|time| u64::try_from(time.as_millis()).ok())
        .ok_or_else(|| Failure::usage(format!("--duration {seconds} is no number of seconds")))
}

fn text(report: &Report) -> String {
    let head = format!(
        "{}, {}: {} port {} at {} (index {}) {} {}, MTU {}, depth {}",
        report.bench,
        report.role,
        report.device,
        report.port,
        report.gid,
        report.gid_index,
        if report.role == "server" {
            "from"
        } else {
            "to"
        },
        report.peer_gid,
        report.mtu,
        report.plan.depth,
    );
    format!("{head}\n\n{}", rows(&report.rows))
}

fn rows(rows: &[Row]) -> String {
    if rows.iter().any(|row| row.latency.is_some()) {
        let mut table = table(&[
            "BYTES", "ROUNDS", "MIN us", "P50 us", "MEAN us", "P99 us", "P99.9 us", "MAX us",
        ]);
        for row in rows {
            let Some(latency) = row.latency else { continue };
            let mut cells = vec![row.bytes.to_string(), row.messages.to_string()];
            cells.extend(
                [
                    latency.min_us,
                    latency.p50_us,
                    latency.mean_us,
                    latency.p99_us,
                    latency.p999_us,
                    latency.max_us,
                ]
                .map(|time| format!("{time:.2}")),
            );
            table.add_row(cells);
        }
        return table.to_string();
    }
    let mut table = table(&[
        "BYTES",
        "MESSAGES",
        "SECONDS",
        "MiB/s",
        "Gb/s",
        "MESSAGES/s",
    ]);
    for row in rows {
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        table.add_row([
            row.bytes.to_string(),
            row.messages.to_string(),
            format!("{:.3}", row.seconds),
            number(row.mib_per_second),
            number(row.gbit_per_second),
            number(row.messages_per_second),
        ]);
    }
    table.to_string()
}

/// What is told while more is measured.
fn sentence(row: &Row) -> String {
    match (row.latency, row.mib_per_second) {
        (Some(latency), _) => format!("{} bytes: {:.2} us", row.bytes, latency.p50_us),
        (None, speed) => format!("{} bytes: {:.2} MiB/s", row.bytes, speed.unwrap_or(0.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parsed(line: &str) -> Result<BenchArgs, clap::Error> {
        Command::try_parse_from(line.split_whitespace()).map(|command| command.args)
    }

    #[test]
    fn options_become_the_plan_and_the_target() {
        let line = "bench write bandwidth node-1 --device rxe0 --gid-type rocev2-ipv4 \
                    --size 1K,64K --depth 8 --duration 0.5 --mtu 1024";
        let args = parsed(line).expect("a good line");
        let plan = plan(&args).expect("a plan");
        assert_eq!((plan.sizes.as_slice(), plan.depth), (&[1024, 65536][..], 8));
        assert_eq!((plan.post_list, plan.signal_every), (8, 8));
        assert_eq!(
            (plan.length, plan.mtu),
            (Length::Milliseconds(500), Some(1024))
        );
        assert_eq!(target(&args).gid, GidChoice::Kind(GidKind::RoceV2Ipv4));
    }

    #[test]
    fn a_server_insists_only_on_what_it_was_told() {
        let args = parsed("bench write bandwidth --mtu 4096").expect("a good line");
        let serve = serve(&args).expect("a plan");
        assert_eq!(serve.options, [("mtu", "4096".to_owned())]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "bench read bandwidth",
            "bench write bandwidth host --local",
            "bench write bandwidth --size 1T",
            "bench write bandwidth --gid-index 1 --gid-type rocev1",
            "bench write bandwidth --gid-type rocev3",
            "bench write bandwidth host --iterations 5 --duration 1",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        for line in [
            "--duration=-1",
            "--duration NaN",
            "--depth 0",
            "--mtu 1500",
            "--post-list 200",
        ] {
            let args = parsed(&format!("bench write bandwidth host {line}")).expect("parsed");
            assert_eq!(plan(&args).expect_err("refused").code(), 2, "{line}");
        }
    }

    #[test]
    fn results_are_printed_with_their_units() {
        let row = Row {
            mib_per_second: Some(31.25),
            gbit_per_second: Some(0.262),
            messages_per_second: Some(500.0),
            ..Row::new(65536, 1000, 2.0)
        };
        let text = rows(&[row]);
        assert!(text.contains("MiB/s") && text.contains("31.25"), "{text}");
    }
}
