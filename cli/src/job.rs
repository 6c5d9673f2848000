//! `trackbed job why`: what keeps a job from starting, by how much, and where it would fit.

use crate::controller::read_config;
use crate::exit::Failure;
use crate::node::kubernetes::{connect, reason};
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::{Args, Subcommand};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use trackbed_controller::api::caffe2job::{JobPhase, Mistrusted};
use trackbed_controller::job::{Job, JobKey, JobKind};
use trackbed_controller::plan::{Discipline, plan};
use trackbed_controller::reconcile::{ControllerConfig, RoleRoom, World, explain, picture, rooms};

/// Look at one Caffe2 job
#[derive(Args)]
pub(crate) struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Subcommand)]
enum JobCommand {
    Why(WhyArgs),
}

const AFTER_HELP: &str = "\
Examples:
  trackbed job why resnet50
  trackbed job why resnet50 --namespace vision --output json

A job that waits is put to the planner with the cluster as it is now; so this needs to list nodes and pods
of all namespaces. Where a role would fit is said for each kind of hardware: how many of its pods there is
room for now, and if nothing else were there. All pods of a job start on one kind of hardware.";

/// Say what keeps a job from starting, by how much, and where it would fit
///
/// Asks the API server, as KUBECONFIG says.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
struct WhyArgs {
    /// The job
    #[arg(value_name = "NAME")]
    name: String,

    /// Its namespace [default: the one that KUBECONFIG has]
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// The controller's configuration, for its teams and hardware [default: none has a quota]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// What is said of a job.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Why {
    namespace: String,
    name: String,
    phase: Option<JobPhase>,
    attempt: i64,
    restarts: i32,
    /// What its status says.
    message: Option<String>,
    /// What the planner says now, if it waits for nodes.
    planner: Option<String>,
    /// Where its roles would find room.
    room: Vec<RoleRoom>,
    /// Nodes that it avoids.
    mistrusted: Vec<Mistrusted>,
}

pub(crate) fn run(args: &JobArgs) -> Result<(), Failure> {
    let JobCommand::Why(args) = &args.command;
    let config = read_config(args.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let (world, namespace) = runtime.block_on(async {
        let client = connect().await?;
        let own = client.default_namespace().to_owned();
        let world = World::fetch(&client).await;
        let world = world.map_err(|error| {
            Failure::failed(format!("looking at the cluster: {}", reason(&error)))
        })?;
        Ok::<_, Failure>((world, args.namespace.clone().unwrap_or(own)))
    })?;
    let kinds = [JobKind::Trackbed, JobKind::Kubeflow];
    let mut found = kinds.into_iter().filter_map(|kind| {
        world.job(&JobKey {
            kind,
            namespace: namespace.clone(),
            name: args.name.clone(),
        })
    });
    let job = found.next().ok_or_else(|| {
        Failure::usage(format!(
            "there is no Caffe2Job {namespace}/{}: `trackbed queue --all` names those there are",
            args.name
        ))
    })?;
    let why = why(&world, job, &config);
    match args.output {
        Output::Json => print_json(&why),
        Output::Table => print(&words(&why)),
    }
}

fn why(world: &World, job: &Job, config: &ControllerConfig) -> Why {
    let picture = picture(world, config, &BTreeMap::new());
    let now = Timestamp::now().as_millisecond();
    let decided = plan(
        &picture.snapshot,
        &picture.queue,
        now,
        &Discipline::default(),
    );
    let gang = picture.keys.iter().position(|key| *key == job.key);
    let refused = picture.refused.iter().find(|(key, _)| *key == job.key);
    let planner = match gang {
        Some(gang) => {
            let blocked = decided.blocked.iter().find(|(at, _)| *at == gang);
            Some(match blocked {
                Some((_, blocked)) => {
                    explain(&picture, gang, blocked, decided.reservation.as_ref())
                }
                None => "it fits, and starts now".to_owned(),
            })
        }
        None => refused.map(|(_, why)| why.clone()),
    };
    Why {
        namespace: job.key.namespace.clone(),
        name: job.key.name.clone(),
        phase: job.status.phase,
        attempt: job.status.attempt,
        restarts: job.status.restarts,
        message: job.status.message.clone(),
        planner,
        room: gang.map_or(Vec::new(), |gang| rooms(&picture, &picture.queue[gang])),
        mistrusted: job.status.mistrusted.clone(),
    }
}

fn words(why: &Why) -> String {
    let phase = match why.phase {
        Some(phase) => format!("{phase:?}"),
        None => "seen by no controller yet: is one running?".to_owned(),
    };
    let mut lines = vec![format!(
        "{}/{}: {phase}, attempt {}, {} restarts",
        why.namespace, why.name, why.attempt, why.restarts
    )];
    lines.extend(
        why.message
            .as_ref()
            .map(|message| format!("status:  {message}")),
    );
    lines.extend(
        why.planner
            .as_ref()
            .map(|planner| format!("planner: {planner}")),
    );
    for avoided in &why.mistrusted {
        let until = avoided.until.0.strftime("%FT%TZ");
        lines.push(format!(
            "avoids:  {} until {until}, as it did not take a pod in time",
            avoided.node
        ));
    }
    if !why.room.is_empty() {
        let mut table = table(&[
            "ROLE",
            "PODS",
            "HARDWARE",
            "NODES",
            "ROOM NOW",
            "ROOM WHEN EMPTY",
        ]);
        for role in &why.room {
            for room in &role.hardware {
                let hardware = if room.hardware.is_empty() {
                    "none"
                } else {
                    &room.hardware
                };
                table.add_row([
                    role.role.clone(),
                    role.wanted.to_string(),
                    hardware.to_owned(),
                    room.nodes.to_string(),
                    room.pods.to_string(),
                    room.pods_when_empty.to_string(),
                ]);
            }
        }
        lines.push(table.to_string());
    }
    lines.join("\n")
}
