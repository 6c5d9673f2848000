//! `trackbed queue`: which jobs wait, which run, and why.

use crate::exit::Failure;
use crate::node::kubernetes::{connect, reason};
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use trackbed_controller::api::caffe2job::JobPhase;
use trackbed_controller::api::{Caffe2Job, KubeflowCaffe2Job};
use trackbed_controller::job::{Job, JobKind, members};
use trackbed_controller::reconcile::{job_of, kubeflow_job_of, list_all};

const AFTER_HELP: &str = "\
Examples:
  trackbed queue                    jobs of all namespaces that wait or run
  trackbed queue --namespace vision --all
  trackbed queue --output json | jq '.[] | select(.phase == \"Queued\")'

`trackbed job why NAME` says more of one.";

/// Show which Caffe2 jobs wait and run, those that have waited longest first
///
/// Asks the API server, as KUBECONFIG says.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct QueueArgs {
    /// Only jobs of this namespace
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Also those that have ended
    #[arg(long)]
    all: bool,

    /// What to print
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

/// A job, as it is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    namespace: String,
    name: String,
    kind: &'static str,
    team: String,
    priority: i32,
    phase: Option<JobPhase>,
    attempt: i64,
    pods: usize,
    active: i32,
    queued_at: Option<String>,
    message: Option<String>,
}

/// Asks, and shows.
pub(crate) fn run(args: &QueueArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let mut jobs = runtime.block_on(jobs())?;
    jobs.retain(|job| {
        let wanted = args.namespace.as_ref();
        wanted.is_none_or(|wanted| *wanted == job.key.namespace)
            && (args.all || !job.status.phase.is_some_and(JobPhase::is_final))
    });
    let since = |job: &Job| job.status.queued_at.as_ref().map_or(job.created, |at| at.0);
    jobs.sort_by_key(|job| {
        let runs = job.status.placement.is_empty();
        (runs, since(job), job.key.clone())
    });
    match args.output {
        Output::Json => print_json(&jobs.iter().map(shown).collect::<Vec<_>>()),
        Output::Table if jobs.is_empty() => print("no job waits or runs"),
        Output::Table => {
            let header = [
                "NAMESPACE",
                "NAME",
                "TEAM",
                "PRIORITY",
                "PHASE",
                "ATTEMPT",
                "ACTIVE",
                "WAITS",
                "WHY",
            ];
            let mut table = table(&header);
            let now = Timestamp::now();
            for job in &jobs {
                let it = shown(job);
                let phase = it
                    .phase
                    .map_or("Unseen".to_owned(), |phase| format!("{phase:?}"));
                let waits = match job.status.phase {
                    Some(JobPhase::Queued) | None => age(now.as_second() - since(job).as_second()),
                    _ => String::new(),
                };
                let cells = [
                    it.namespace,
                    it.name,
                    it.team,
                    it.priority.to_string(),
                    phase,
                    it.attempt.to_string(),
                    format!("{}/{}", it.active, it.pods),
                    waits,
                    it.message.unwrap_or_default(),
                ];
                table.add_row(cells);
            }
            print(&table.to_string())
        }
    }
}

async fn jobs() -> Result<Vec<Job>, Failure> {
    let client = connect().await?;
    let failed = |error: kube::Error| Failure::failed(format!("listing jobs: {}", reason(&error)));
    let ours: Vec<Caffe2Job> = list_all(&client).await.map_err(failed)?;
    let theirs: Vec<KubeflowCaffe2Job> = list_all(&client).await.map_err(failed)?;
    let theirs = theirs.iter().map(kubeflow_job_of);
    Ok(ours.iter().map(job_of).chain(theirs).collect())
}

fn shown(job: &Job) -> Shown {
    let status = &job.status;
    Shown {
        namespace: job.key.namespace.clone(),
        name: job.key.name.clone(),
        kind: match job.key.kind {
            JobKind::Trackbed => "trackbed.io",
            JobKind::Kubeflow => "kubeflow.org",
        },
        team: job
            .spec
            .team
            .clone()
            .unwrap_or_else(|| job.key.namespace.clone()),
        priority: job.spec.priority,
        phase: status.phase,
        attempt: status.attempt,
        pods: members(job).count(),
        active: status.replica_statuses.active,
        queued_at: status
            .queued_at
            .as_ref()
            .map(|at| at.0.strftime("%FT%TZ").to_string()),
        message: status.message.clone(),
    }
}

/// Seconds as people say them.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
