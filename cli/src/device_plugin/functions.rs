//! `trackbed device-plugin plan` and `apply`: how many virtual functions ports have.

use super::{STATE_DIR, read_config};
use crate::exit::Failure;
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::Args;
use std::path::{Path, PathBuf};
use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::journal::Journal;
use trackbed_deviceplugin::sriov::{self, PlanError, Step, Sysfs};

/// How many virtual functions the configuration wants of ports (`virtual-functions`), beside what they have
///
/// `plan` shows what would be done, `apply` does it, to all ports at once or to none. A port is refused to be
/// changed while a pod has one of its virtual functions, as all of them go when their number changes.
#[derive(Args)]
pub(super) struct FunctionsArgs {
    /// The configuration
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Folder of the plugin that runs, which knows what pods have
    #[arg(long, env = "TRACKBED_STATE_DIR", value_name = "FOLDER", default_value = STATE_DIR)]
    state_dir: PathBuf,

    /// Folder below which /sys lies
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

pub(super) fn plan(args: &FunctionsArgs) -> Result<(), Failure> {
    let steps = steps(&read_config(&args.config)?, &args.root, &args.state_dir)?;
    show(&steps, args.output)
}

pub(super) fn apply(args: &FunctionsArgs) -> Result<(), Failure> {
    let config = read_config(&args.config)?;
    let done = make(&config, &args.root, &args.state_dir)?;
    show(&done, args.output)
}

/// Plans and carries out; what was done.
pub(super) fn make(config: &Config, root: &Path, state_dir: &Path) -> Result<Vec<Step>, Failure> {
    let steps = steps(config, root, state_dir)?;
    let switch = Sysfs {
        root: root.to_owned(),
    };
    sriov::apply(&steps, &switch).map_err(|error| {
        Failure::failed(format!(
            "{error}: the kernel's log (`dmesg`) has the driver's reason"
        ))
    })?;
    Ok(steps)
}

fn steps(config: &Config, root: &Path, state_dir: &Path) -> Result<Vec<Step>, Failure> {
    let found = Discovery::new(root).look().map_err(Failure::unable)?;
    let held = Journal::read(state_dir).map_err(Failure::failed)?;
    sriov::plan(&config.virtual_functions, &found, &held).map_err(|error| match error {
        PlanError::Held { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    })
}

fn show(steps: &[Step], output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return print_json(&steps);
    }
    if steps.is_empty() {
        return print("every port is as it is to be");
    }
    let mut shown = table(&["PORT", "HAS", "IS TO HAVE"]);
    for step in steps {
        let (from, to) = (step.from.to_string(), step.to.to_string());
        shown.add_row([step.physical.to_string(), from, to]);
    }
    print(&shown.to_string())
}
