//! The role `trackbed rdma`: what RDMA hardware is here, and what it moves.

mod bench;
pub(crate) mod check;
mod compare;
mod devices;
mod input;
mod mesh;
mod report;
mod tls;

use crate::exit::Failure;
use crate::output::print;
use clap::{Args, Subcommand};

/// Look at RDMA devices and measure them
#[derive(Args)]
pub(crate) struct RdmaArgs {
    #[command(subcommand)]
    command: RdmaCommand,
}

#[derive(Subcommand)]
enum RdmaCommand {
    Devices(devices::DevicesArgs),
    Bench(Box<bench::BenchArgs>),
    Check(Box<check::CheckArgs>),
    Mesh(Box<mesh::MeshArgs>),
    Report(report::ReportArgs),
    Compare(compare::CompareArgs),
}

/// Runs the subcommand.
pub(crate) fn run(args: RdmaArgs) -> Result<(), Failure> {
    match args.command {
        RdmaCommand::Devices(args) => devices::run(args),
        RdmaCommand::Bench(args) => bench::run(*args),
        RdmaCommand::Check(args) => check::run(*args),
        RdmaCommand::Mesh(args) => mesh::run(*args),
        RdmaCommand::Report(args) => report::run(args),
        RdmaCommand::Compare(args) => compare::run(args),
    }
}

/// This node's name, as the kernel has it.
pub(crate) fn node_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Prints a value as one JSON object.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
    print(&text)
}

/// A table without rulings inside, as `ip` and `kubectl` print theirs.
pub(crate) fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    table
}
