//! What came of a simulation.

use crate::plan::Millis;
use serde::Serialize;

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobOutcome {
    /// Its name.
    pub name: String,
    /// Its accelerators.
    pub gpus: u32,
    /// When it was submitted, in milliseconds after the first job.
    pub submitted: Millis,
    /// When it started.
    pub started: Millis,
    /// When it ended.
    pub ended: Millis,
}

/// What came of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Every job, in the order in which they were submitted.
    pub jobs: Vec<JobOutcome>,
    /// The accelerators of the cluster.
    pub gpus: u64,
    /// How often the planner was asked.
    pub plans: u64,
    /// The accelerator time that jobs could have used, in milliseconds: at each moment all that running and
    /// waiting jobs asked for, at most the cluster.
    pub asked: f64,
}

impl JobOutcome {
    /// From its submission to its start.
    pub fn wait(&self) -> Millis {
        self.started - self.submitted
    }

    /// Its completion time: from its submission to its end.
    pub fn jct(&self) -> Millis {
        self.ended - self.submitted
    }
}

impl Outcome {
    /// The mean job completion time.
    pub fn mean_jct(&self) -> f64 {
        mean(self.jobs.iter().map(JobOutcome::jct))
    }

    /// The mean wait.
    pub fn mean_wait(&self) -> f64 {
        mean(self.jobs.iter().map(JobOutcome::wait))
    }

    /// The wait that this share of the jobs, from 0 to 1, does not exceed.
    pub fn wait(&self, share: f64) -> Millis {
        let mut waits: Vec<Millis> = self.jobs.iter().map(JobOutcome::wait).collect();
        waits.sort_unstable();
        let rank = (share * waits.len() as f64).ceil() as usize;
        waits.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }

    /// From the first submission to the last end.
    pub fn makespan(&self) -> Millis {
        self.jobs.iter().map(|job| job.ended).max().unwrap_or(0)
    }

    /// How much of the accelerators that jobs could have used were busy: the others stood idle while
    /// somebody waited for them. Time in which nobody waits says nothing about a scheduler and is left
    /// out, so that a last long job, which makes the makespan, changes nothing.
    pub fn utilisation(&self) -> f64 {
        let busy = |job: &JobOutcome| f64::from(job.gpus) * (job.ended - job.started) as f64;
        self.jobs.iter().map(busy).sum::<f64>() / self.asked.max(1.0)
    }
}

fn mean(values: impl ExactSizeIterator<Item = Millis>) -> f64 {
    let count = values.len().max(1) as f64;
    values.map(|value| value as f64).sum::<f64>() / count
}
