//! The role `trackbed device-plugin`: virtual functions and shared adapters for kubelet.

mod functions;
mod lock;
mod run;
mod show;

use crate::exit::Failure;
use crate::output::Output;
use crate::traces::TracesArgs;
use clap::{Args, Subcommand};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use trackbed_deviceplugin::config::{Config, MAX_FILE_BYTES};

/// Where the plugin keeps what it has given away: in memory, as kubelet knows it after a reboot.
const STATE_DIR: &str = "/run/trackbed/device-plugin";

/// Hand out SR-IOV virtual functions and RDMA adapters that work, to pods
///
/// Each pool of the configuration is a resource that a container can ask for, such as
/// `trackbed.io/vf: 2`. docs/device-plugin.md has the configuration and an example.
#[derive(Args)]
pub(crate) struct DevicePluginArgs {
    #[command(subcommand)]
    command: DevicePluginCommand,
}

#[derive(Subcommand)]
enum DevicePluginCommand {
    Run(run::RunArgs),
    Status(StatusArgs),
    Replay(ReplayArgs),
    Plan(functions::FunctionsArgs),
    Apply(functions::FunctionsArgs),
}

/// Show this node's devices as the plugin that runs has them: which are fit, and which pod has which
///
/// Ends with 1 if one is unfit.
#[derive(Args)]
struct StatusArgs {
    /// Folder of the plugin that runs
    #[arg(long, env = "TRACKBED_STATE_DIR", value_name = "FOLDER", default_value = STATE_DIR)]
    state_dir: PathBuf,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// Show what a configuration offers of this machine, or of one that was recorded; nothing is changed
#[derive(Args)]
struct ReplayArgs {
    /// The configuration to try
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Folder below which /sys of the machine lies
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

impl DevicePluginArgs {
    /// Whether it runs until it is ended.
    pub(crate) fn serves(&self) -> bool {
        matches!(self.command, DevicePluginCommand::Run(_))
    }

    /// Where its traces go, if it does.
    pub(crate) fn traces(&self) -> Option<&TracesArgs> {
        match &self.command {
            DevicePluginCommand::Run(args) => Some(args.traces()),
            _ => None,
        }
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: DevicePluginArgs) -> Result<(), Failure> {
    match args.command {
        DevicePluginCommand::Run(args) => run::run(args),
        DevicePluginCommand::Status(args) => show::status(&args.state_dir, args.output),
        DevicePluginCommand::Plan(args) => functions::plan(&args),
        DevicePluginCommand::Apply(args) => functions::apply(&args),
        DevicePluginCommand::Replay(args) => {
            show::replay(&read_config(&args.config)?, &args.root, args.output)
        }
    }
}

fn read_config(path: &Path) -> Result<Config, Failure> {
    let refuse = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("configuration {}: {why}", path.display()))
    };
    let mut text = String::new();
    let most = MAX_FILE_BYTES as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(most).read_to_string(&mut text))
        .map_err(|error| refuse(&error))?;
    Config::parse(&text).map_err(|error| refuse(&error))
}
