//! `trackbed-bench`: measures one part beside its peers and prints the rows.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trackbed_benches::{
    BenchError, cache, controller, deviceplugin,
    paired::Verdict,
    rdma,
    row::{Row, table},
};

/// Measures a part of Trackbed beside its peers: pairs of runs in turn, and the ratio within each
/// pair. Exit status: 0 every goal met, 1 a goal missed, 2 a goal undecided, 3 not measurable here.
#[derive(Debug, Parser)]
#[command(name = "hack/bench")]
struct Arguments {
    /// What to measure.
    #[command(subcommand)]
    part: Part,
    /// Print one JSON object a line instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Run as many pairs as a narrow interval takes.
    #[arg(long, global = true)]
    long: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// A dataset's mount beside the same files read natively.
    Cache(cache::Options),
    /// The planner of gangs beside its limits, and its policy beside others.
    Controller(controller::Options),
    /// The device plugin with 1,016 virtual functions beside its limits.
    Deviceplugin(deviceplugin::Options),
    /// Verbs beside perftest on the same two devices, the shard's reads beside fio.
    Rdma(rdma::Options),
    /// A node's reader of the case `cache/nfs-rdma/shared`.
    #[command(hide = true)]
    Read(cache::ReadOptions),
    /// Our side of the case `rdma/disk-to-nic`: prints MB/s.
    #[command(hide = true)]
    DiskToNic(rdma::PumpOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Part::DiskToNic(options) = &arguments.part {
        return match rdma::pump(options) {
            Ok(rate) => {
                println!("{rate}");
                ExitCode::SUCCESS
            }
            Err(error) => not_measured(&error),
        };
    }
    if let Part::Read(options) = &arguments.part {
        return match cache::answer(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => not_measured(&error),
        };
    }
    let mut rows = Vec::new();
    let json = arguments.json;
    let mut print = |row: Row| {
        if json {
            println!(
                "{}",
                serde_json::to_string(&row).expect("a row is plain data")
            );
        }
        rows.push(row);
    };
    let measured: Result<(), BenchError> = match arguments.part {
        Part::Cache(options) => cache::measure(&options, arguments.long, &mut print),
        Part::Controller(options) => controller::measure(&options, arguments.long, &mut print),
        Part::Deviceplugin(options) => deviceplugin::measure(&options, arguments.long, &mut print),
        Part::Rdma(options) => rdma::measure(&options, arguments.long, &mut print),
        Part::DiskToNic(_) | Part::Read(_) => Ok(()),
    };
    if !json && !rows.is_empty() {
        println!("{}", table(&rows));
    }
    if let Err(error) = measured {
        return not_measured(&error);
    }
    let any = |verdict| rows.iter().any(|row| row.verdict == verdict);
    ExitCode::from(if any(Verdict::Fail) {
        1
    } else if any(Verdict::Inconclusive) {
        2
    } else {
        0
    })
}

fn not_measured(error: &BenchError) -> ExitCode {
    eprintln!("hack/bench: {error}");
    ExitCode::from(3)
}
