//! `trackbed queue`: which jobs wait, which run, and why.

use crate::exit::Failure;
use crate::node::kubernetes::{connect, reason};
use crate::output::{Output, print};
use crate::rdma::{print_json, table};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
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
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) team: String,
    pub(crate) priority: i32,
    pub(crate) phase: Option<JobPhase>,
    pub(crate) attempt: i64,
    pub(crate) pods: usize,
    pub(crate) active: i32,
    pub(crate) queued_at: Option<String>,
    pub(crate) message: Option<String>,
    /// Since when it waits, in seconds since 1970, while it does.
    #[serde(skip)]
    pub(crate) waits_since: Option<i64>,
}

impl Shown {
    /// Its phase; one that no controller has looked at yet is unseen.
    pub(crate) fn phase(&self) -> String {
        self.phase
            .map_or("Unseen".to_owned(), |phase| format!("{phase:?}"))
    }

    /// For how long it has waited, if it waits.
    pub(crate) fn waits(&self) -> String {
        let now = Timestamp::now().as_second();
        self.waits_since
            .map_or(String::new(), |since| age(now - since))
    }
}

/// Asks, and shows.
pub(crate) fn run(args: &QueueArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let jobs = runtime.block_on(async { jobs(&connect().await?).await })?;
    let jobs = in_order(jobs, args.namespace.as_deref(), args.all);
    match args.output {
        Output::Json => print_json(&jobs),
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
            for job in jobs {
                let (phase, waits) = (job.phase(), job.waits());
                table.add_row([
                    job.namespace,
                    job.name,
                    job.team,
                    job.priority.to_string(),
                    phase,
                    job.attempt.to_string(),
                    format!("{}/{}", job.active, job.pods),
                    waits,
                    job.message.unwrap_or_default(),
                ]);
            }
            print(&table.to_string())
        }
    }
}

/// All jobs of all namespaces.
pub(crate) async fn jobs(client: &Client) -> Result<Vec<Job>, Failure> {
    let failed = |error: kube::Error| Failure::failed(format!("listing jobs: {}", reason(&error)));
    let ours: Vec<Caffe2Job> = list_all(client).await.map_err(failed)?;
    let theirs: Vec<KubeflowCaffe2Job> = list_all(client).await.map_err(failed)?;
    let theirs = theirs.iter().map(kubeflow_job_of);
    Ok(ours.iter().map(job_of).chain(theirs).collect())
}

/// Those of a namespace, or of all; those that run, then those that wait, and if wanted those that have ended.
/// Whoever has waited longest comes first.
pub(crate) fn in_order(mut jobs: Vec<Job>, namespace: Option<&str>, ended: bool) -> Vec<Shown> {
    jobs.retain(|job| {
        namespace.is_none_or(|wanted| *wanted == job.key.namespace)
            && (ended || !job.status.phase.is_some_and(JobPhase::is_final))
    });
    jobs.sort_by_key(|job| {
        let waits = job.status.placement.is_empty();
        (waits, since(job), job.key.clone())
    });
    jobs.iter().map(shown).collect()
}

fn since(job: &Job) -> Timestamp {
    job.status.queued_at.as_ref().map_or(job.created, |at| at.0)
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
        waits_since: match status.phase {
            Some(JobPhase::Queued) | None => Some(since(job).as_second()),
            _ => None,
        },
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
