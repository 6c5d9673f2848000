//! `trackbed device-plugin plan` and `apply`: how many virtual functions ports have, and what they are set to.

use super::lock::{User, lock};
use super::{STATE_DIR, read_config};
use crate::exit::Failure;
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::Args;
use std::path::{Path, PathBuf};
use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::journal::Journal;
use trackbed_deviceplugin::sriov::{self, Kernel, PlanError, Step};

/// The virtual functions that the configuration wants of ports (`virtual-functions`), beside what there is
///
/// `plan` shows what would be done, `apply` does it, to all ports at once or to none, while no plugin runs.
/// A virtual function that a pod has is not changed, and neither is the number of a port's while a pod has
/// one of them, as all of them go then: it is refused, with the pod's name.
#[derive(Args)]
pub(super) struct FunctionsArgs {
    /// The configuration
    #[arg(long, env = "TRACKBED_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Folder of the plugin, which knows what pods have
    #[arg(long, env = "TRACKBED_STATE_DIR", value_name = "FOLDER", default_value = STATE_DIR)]
    state_dir: PathBuf,

    /// Folder below which /sys lies: another one than / only for trying things out
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

pub(super) fn plan(args: &FunctionsArgs) -> Result<(), Failure> {
    let config = read_config(&args.config)?;
    let steps = steps(&config, &kernel(&args.root), &args.state_dir)?;
    show(&steps.map_err(refused)?, args.output)
}

pub(super) fn apply(args: &FunctionsArgs) -> Result<(), Failure> {
    let config = read_config(&args.config)?;
    let _lock = lock(&args.state_dir, User::Apply)?;
    let kernel = kernel(&args.root);
    let steps = steps(&config, &kernel, &args.state_dir)?.map_err(refused)?;
    carry_out(&steps, &kernel)?;
    show(&steps, args.output)
}

/// Plans and carries out; where a pod is in the way, says so and leaves all as it is: a plugin that starts
/// again beside pods has to serve the others.
pub(super) fn make_unless_held(
    config: &Config,
    root: &Path,
    state_dir: &Path,
) -> Result<(), Failure> {
    let kernel = kernel(root);
    match steps(config, &kernel, state_dir)? {
        Ok(steps) => carry_out(&steps, &kernel),
        Err(error @ PlanError::Held { .. }) => {
            tracing::error!(%error, "virtual functions are left as they are");
            Ok(())
        }
        Err(error) => Err(refused(error)),
    }
}

fn kernel(root: &Path) -> Kernel {
    Kernel {
        root: root.to_owned(),
    }
}

fn steps(
    config: &Config,
    kernel: &Kernel,
    state_dir: &Path,
) -> Result<Result<Vec<Step>, PlanError>, Failure> {
    let found = Discovery::new(&kernel.root)
        .look()
        .map_err(Failure::unable)?;
    let held = Journal::read(state_dir).map_err(Failure::failed)?;
    let wanted = &config.virtual_functions;
    let ports = sriov::look(wanted, &found, kernel);
    Ok(ports.and_then(|ports| sriov::plan(wanted, &found, &held, &ports)))
}

fn refused(error: PlanError) -> Failure {
    match error {
        PlanError::Held { .. } | PlanError::Unreadable { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    }
}

fn carry_out(steps: &[Step], kernel: &Kernel) -> Result<(), Failure> {
    sriov::apply(steps, kernel).map_err(|error| {
        Failure::failed(format!(
            "{error}: the kernel's log (`dmesg`) has the driver's reason"
        ))
    })
}

fn show(steps: &[Step], output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return print_json(&steps);
    }
    if steps.is_empty() {
        return print("every port is as it is to be");
    }
    let mut shown = table(&["PORT", "FUNCTION", "SETTING", "IS", "IS TO BE"]);
    for step in steps {
        let physical = step.physical.to_string();
        if step.from != step.to {
            let (from, to) = (step.from.to_string(), step.to.to_string());
            let number = [physical.clone(), "all".to_owned(), "number".to_owned()];
            shown.add_row(number.into_iter().chain([from, to]));
        }
        for change in &step.changes {
            let from = change.from.map_or("-".to_owned(), |it| it.to_string());
            shown.add_row([
                physical.clone(),
                change.function.to_string(),
                change.setting.to_owned(),
                from,
                change.to.to_string(),
            ]);
        }
    }
    print(&shown.to_string())
}
