//! The step: from a job and what is seen to its status and what is to be done.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::conditions::{enter, same_but_for_words};
use super::members::members;
use super::{
    Action, DatasetView, Decision, Event, Job, Observed, PodPhase, PodView, Settings, Step,
};
use crate::api::Caffe2JobStatus;
use crate::api::caffe2job::{CleanPodPolicy, DatasetUse, JobPhase, ReplicaStatus, RoleStatus};

/// How often a status is written in which only words have changed.
const WORDS_EVERY: i64 = 30;

/// What is said of a job that waits and of which nothing more is known yet.
pub(super) const TURN: &str = "it waits for its turn";

/// What a job's status should be, and what is to be done, at this time. `now` may jump.
pub fn step(
    job: &Job,
    seen: &Observed,
    decision: &Decision,
    settings: &Settings,
    now: Timestamp,
) -> Step {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut stepping = Stepping {
        job,
        seen,
        settings,
        now,
        status: job.status.clone(),
        actions: Vec::new(),
        events: Vec::new(),
        again: None,
    };
    stepping.settle_times();
    let over = job.status.phase.is_some_and(JobPhase::is_final);
    if job.deleting {
        stepping.end();
    } else if over {
        stepping.after_the_end();
    } else if !job.has_finalizer {
        // Nothing is made that might be left behind.
        stepping.actions.push(Action::Hold);
    } else {
        stepping.live(decision);
    }
    stepping.finish()
}

/// Whether the job has all that it needs but nodes: it is the planner's turn.
pub fn wants_nodes(job: &Job, seen: &Observed) -> bool {
    let status = &job.status;
    let waits = status.attempt_live
        && status.placement.is_empty()
        && !job.deleting
        && !job.spec.run_policy.suspend
        && status.attempt_generation == Some(job.generation)
        && !status.phase.is_some_and(JobPhase::is_final);
    waits
        && gang(job, seen).iter().all(|pod| pod.is_some_and(is_held))
        && lacks_data(job, seen).is_none()
}

fn is_held(pod: &PodView) -> bool {
    pod.gated && !pod.deleting
}

/// The members' pods, by shard; `None` where there is none.
pub(super) fn gang<'o>(job: &Job, seen: &'o Observed) -> Vec<Option<&'o PodView>> {
    let find = |name: String| {
        let mut pods = seen.pods.iter();
        pods.find(|pod| pod.name == name && pod.attempt == job.status.attempt)
    };
    let names = members(job).map(|it| super::pod_name(&job.key, job.status.attempt, &it));
    names.map(find).collect()
}

/// Why the job's dataset keeps it from starting, if it does.
pub(super) fn lacks_data(job: &Job, seen: &Observed) -> Option<String> {
    let DatasetUse {
        name,
        namespace,
        warm_share,
        ..
    } = job.spec.dataset.as_ref()?;
    let namespace = namespace.as_ref().unwrap_or(&job.key.namespace);
    let what = format!("dataset {namespace}/{name}");
    match seen.dataset {
        None => Some(format!(
            "{what} is not there: create it, or correct spec.dataset"
        )),
        Some(DatasetView { ready: false, .. }) => Some(format!(
            "{what} has no version that can be read yet: its conditions say why"
        )),
        Some(DatasetView { cached_percent, .. }) if cached_percent < *warm_share => Some(format!(
            "{what} is cached to {cached_percent}% of the {warm_share}% that spec.dataset.warmShare wants"
        )),
        Some(_) => None,
    }
}

/// A step on its way.
pub(super) struct Stepping<'s> {
    pub(super) job: &'s Job,
    pub(super) seen: &'s Observed,
    pub(super) settings: &'s Settings,
    pub(super) now: Timestamp,
    pub(super) status: Caffe2JobStatus,
    pub(super) actions: Vec<Action>,
    pub(super) events: Vec<Event>,
    again: Option<Timestamp>,
}

impl Stepping<'_> {
    pub(super) fn after(&self, seconds: i64) -> Timestamp {
        let span = SignedDuration::from_secs(seconds);
        self.now.checked_add(span).unwrap_or(Timestamp::MAX)
    }

    /// Seconds since then, none if that is yet to come.
    pub(super) fn since(&self, then: &Time) -> i64 {
        (self.now.as_second() - then.0.as_second()).max(0)
    }

    /// To be looked at again in so many seconds.
    pub(super) fn again_in(&mut self, seconds: i64) {
        let then = self.after(seconds.max(1));
        self.again = Some(self.again.map_or(then, |again| again.min(then)));
    }

    pub(super) fn tell(&mut self, warning: bool, reason: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.events.push(Event {
            warning,
            reason,
            message,
        });
    }

    pub(super) fn enter(&mut self, phase: JobPhase, reason: &str, message: &str) {
        enter(&mut self.status, phase, reason, message, self.now);
    }

    /// A clock that went back must not make what began later than now last longer: it began now.
    fn settle_times(&mut self) {
        let now = self.now;
        let status = &mut self.status;
        let began = [
            &mut status.placed_at,
            &mut status.start_time,
            &mut status.completion_time,
        ];
        for time in began.into_iter().flatten().filter(|time| time.0 > now) {
            *time = Time(now);
        }
        let latest = self.after(self.settings.retry_most_seconds);
        let retry = self.status.retry_at.as_mut();
        for time in retry.into_iter().filter(|time| time.0 > latest) {
            *time = Time(latest);
        }
        let latest = self.after(self.settings.mistrust_seconds.saturating_mul(10));
        self.status.mistrusted.retain(|it| it.until.0 > now);
        for it in &mut self.status.mistrusted {
            it.until.0 = it.until.0.min(latest);
        }
    }

    /// The job is deleted: its pods and its Service go before it does.
    fn end(&mut self) {
        let gone = self.delete_pods(|_| true);
        if self.seen.service {
            self.actions.push(Action::DeleteService);
        } else if gone && self.job.has_finalizer {
            self.actions.push(Action::LetGo);
        }
    }

    /// The job has ended: what is to be cleaned up is, and the job itself when its time is over.
    fn after_the_end(&mut self) {
        let (policy, attempt) = (
            self.job.spec.run_policy.clean_pod_policy,
            self.status.attempt,
        );
        self.delete_pods(|pod| match policy {
            // Nobody who reads logs wants the redis, nor what earlier attempts left.
            _ if pod.rendezvous || pod.attempt != attempt => true,
            CleanPodPolicy::All => true,
            CleanPodPolicy::Running => !pod.is_over(),
            CleanPodPolicy::None => false,
        });
        let used = self.seen.pods.iter().any(|pod| !pod.is_over());
        if self.seen.service && !used {
            self.actions.push(Action::DeleteService);
        }
        let kept = self.job.spec.run_policy.ttl_seconds_after_finished;
        let ended = self.status.completion_time.clone();
        if let (Some(kept), Some(ended)) = (kept, ended) {
            match kept - self.since(&ended) {
                left if left <= 0 => self.actions.push(Action::DeleteJob),
                left => self.again_in(left),
            }
        }
    }

    fn live(&mut self, decision: &Decision) {
        if self.job.spec.run_policy.suspend {
            return self.suspend();
        }
        if self.status.queued_at.is_none() {
            let first = self.status.phase.is_none();
            // A job that nobody saw for a while has queued since it was made.
            let since = if first { self.job.created } else { self.now };
            self.status.queued_at = Some(Time(since));
            self.tell(
                false,
                "Queued",
                "it waits for nodes for all its pods at once",
            );
        }
        if self.is_past_its_deadline() {
            return;
        }
        if self.status.attempt_live {
            match self.status.placement.is_empty() {
                true => self.queued(decision),
                false => self.placed(decision),
            }
        }
        if self.status.phase.is_some_and(JobPhase::is_final) {
            return;
        }
        let (attempt, live) = (self.status.attempt, self.status.attempt_live);
        let gone = self.delete_pods(|pod| !live || pod.attempt != attempt);
        if !live {
            self.next_attempt(gone);
        }
    }

    fn suspend(&mut self) {
        if self.status.phase != Some(JobPhase::Suspended) {
            self.tell(
                false,
                "Suspended",
                "it has no pods until runPolicy.suspend is taken back",
            );
        }
        self.take_down();
        self.status.queued_at = None;
        self.status.start_time = None;
        self.status.retry_at = None;
        self.enter(JobPhase::Suspended, "Suspended", "runPolicy.suspend is set");
        self.delete_pods(|_| true);
    }

    fn is_past_its_deadline(&mut self) -> bool {
        let deadline = self.job.spec.run_policy.active_deadline_seconds;
        let (Some(deadline), Some(began)) = (deadline, self.status.start_time.clone()) else {
            return false;
        };
        // Who has finished in time has, though it is seen late.
        let chief = super::members::chief(self.job);
        let done = gang(self.job, self.seen).get(chief).copied().flatten();
        if done.is_some_and(|pod| pod.phase == PodPhase::Succeeded) {
            return false;
        }
        let left = deadline - self.since(&began);
        if left > 0 {
            self.again_in(left);
            return false;
        }
        let why = format!("it ran for its {deadline} s: raise runPolicy.activeDeadlineSeconds");
        self.conclude(JobPhase::Failed, "DeadlineExceeded", &why);
        true
    }

    /// The job has ended.
    pub(super) fn conclude(&mut self, phase: JobPhase, reason: &'static str, message: &str) {
        self.count();
        self.enter(phase, reason, message);
        self.status.completion_time = Some(Time(self.now));
        self.status.placement.clear();
        self.status.placed_at = None;
        self.status.retry_at = None;
        if self.job.spec.run_policy.clean_pod_policy != CleanPodPolicy::None {
            self.status.replica_statuses.active = 0;
            self.status
                .roles
                .iter_mut()
                .for_each(|role| role.active = 0);
        }
        let warning = phase == JobPhase::Failed;
        self.tell(warning, reason, message);
        self.after_the_end();
    }

    /// Deletes the pods that are chosen; says whether none of them is left.
    pub(super) fn delete_pods(&mut self, chosen: impl Fn(&PodView) -> bool) -> bool {
        let chosen: Vec<_> = self.seen.pods.iter().filter(|pod| chosen(pod)).collect();
        let going = chosen.iter().filter(|pod| !pod.deleting);
        self.actions.extend(going.map(|pod| Action::DeletePod {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
        }));
        chosen.is_empty()
    }

    /// Counts the attempt's pods.
    fn count(&mut self) {
        let pods = gang(self.job, self.seen);
        let mut pods = pods.iter();
        self.status.roles = self
            .job
            .spec
            .roles
            .iter()
            .map(|role| {
                let mut counted = RoleStatus {
                    name: role.name.clone(),
                    replicas: role.replicas,
                    active: 0,
                    succeeded: 0,
                    failed: 0,
                };
                for pod in pods
                    .by_ref()
                    .take(role.replicas.max(0).unsigned_abs() as usize)
                    .flatten()
                {
                    match pod.phase {
                        PodPhase::Succeeded => counted.succeeded += 1,
                        PodPhase::Failed => counted.failed += 1,
                        _ if pod.node.is_some() => counted.active += 1,
                        _ => {}
                    }
                }
                counted
            })
            .collect();
        let sum = |of: fn(&RoleStatus) -> i32| self.status.roles.iter().map(of).sum();
        self.status.replica_statuses = ReplicaStatus {
            active: sum(|role| role.active),
            succeeded: sum(|role| role.succeeded),
            failed: sum(|role| role.failed),
        };
    }

    fn finish(mut self) -> Step {
        if !self.status.phase.is_some_and(JobPhase::is_final) && self.job.has_finalizer {
            self.count();
        }
        self.status.observed_generation = Some(self.job.generation);
        let before = &self.job.status;
        let written = before.last_reconcile_time.clone();
        let mut status = self.status.clone();
        status.last_reconcile_time = written.clone();
        if status != *before {
            let age = written.map_or(i64::MAX, |written| self.since(&written));
            // The first reason is told at once.
            let said_why = before.message.as_deref() != Some(TURN);
            if same_but_for_words(&status, before) && said_why && age < WORDS_EVERY {
                status = before.clone();
                self.again_in(WORDS_EVERY - age);
            } else {
                status.last_reconcile_time = Some(Time(self.now));
            }
        }
        Step {
            status,
            actions: self.actions,
            events: self.events,
            again: self.again,
        }
    }
}
