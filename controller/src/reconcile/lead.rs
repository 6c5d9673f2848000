//! The leader's loop: looks at what has changed, steps, plans, and has the results carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::act::Actor;
use super::clock::SteadyClock;
use super::config::ControllerConfig;
use super::explain::explain;
use super::lease::{Elector, Leadership, LeaseSettings};
use super::metrics::Metrics;
use super::snapshot::{picture, placed};
use super::world::World;
use super::{CallError, watch};
use crate::api::caffe2job::Placed;
use crate::job::{Decision, Job, JobKey, Settings, step};
use crate::plan::{Discipline, plan};

/// The least from one plan to the next, so that what comes together is planned together.
const PLAN_EVERY: Duration = Duration::from_millis(100);

/// How many jobs are acted on at a time.
const JOBS_AT_ONCE: usize = 64;

/// How long after something went wrong it is tried again, at first and at most.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the loop, the watches and those who act share.
pub(super) struct Shared {
    world: Mutex<World>,
    changed: Notify,
    pub(super) leadership: Arc<Leadership>,
    pub(super) clock: SteadyClock,
    pub(super) metrics: Arc<Metrics>,
}

impl Shared {
    /// Changes the world, and wakes the loop if that has something to do by it.
    pub(super) fn change(&self, change: impl FnOnce(&mut World)) {
        let mut world = self.world.lock();
        change(&mut world);
        if world.is_dirty() || world.has_changed() {
            self.changed.notify_one();
        }
    }

    /// Looks at the world.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.lock())
    }
}

/// Takes part until `stop` comes: waits to be the leader, leads, and waits again if it loses that.
pub async fn run(
    client: Client,
    config: ControllerConfig,
    lease: LeaseSettings,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let clock = SteadyClock::start();
    let leadership = Arc::new(Leadership::default());
    let mut elector = Elector::new(client.clone(), lease, metrics.clone());
    let mut stop = std::pin::pin!(stop);
    loop {
        let term = tokio::select! {
            term = elector.win(&leadership) => term,
            () = &mut stop => return,
        };
        tracing::info!(term, "leading");
        metrics.leads(true);
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            changed: Notify::new(),
            leadership: leadership.clone(),
            clock,
            metrics: metrics.clone(),
        });
        // Whoever acts is a task of the loop, and ends with it.
        let leader = Leader::new(client.clone(), config.clone(), shared, term);
        tokio::select! {
            () = elector.hold(&leadership) => tracing::warn!(term, "not leading any more"),
            () = leader.lead() => {}
            () = &mut stop => {
                elector.resign(&leadership).await;
                return;
            }
        }
        metrics.leads(false);
    }
}

/// What became of acting on a job.
type Outcome = (JobKey, Result<(), CallError>);

struct Leader {
    client: Client,
    config: ControllerConfig,
    settings: Settings,
    shared: Arc<Shared>,
    term: i64,
    /// Who is acted on now, and who is to be looked at after that.
    busy: BTreeSet<JobKey>,
    later: BTreeSet<JobKey>,
    acting: JoinSet<Outcome>,
    /// When to look at whom though nothing has changed.
    timers: BTreeSet<(Timestamp, JobKey)>,
    /// Placements on their way into statuses.
    assumed: BTreeMap<JobKey, Vec<Placed>>,
    /// What keeps jobs waiting, as the last plan said.
    reasons: BTreeMap<JobKey, String>,
    /// What went wrong with jobs: how often in a row, what, and when it is tried again.
    troubles: BTreeMap<JobKey, (u32, String, Instant)>,
    planned: Option<Instant>,
    review: Option<Timestamp>,
    /// A placement was not written: its nodes are free.
    replan: bool,
}

impl Leader {
    fn new(client: Client, config: ControllerConfig, shared: Arc<Shared>, term: i64) -> Leader {
        Leader {
            client,
            settings: config.settings(),
            config,
            shared,
            term,
            busy: BTreeSet::new(),
            later: BTreeSet::new(),
            acting: JoinSet::new(),
            timers: BTreeSet::new(),
            assumed: BTreeMap::new(),
            reasons: BTreeMap::new(),
            troubles: BTreeMap::new(),
            planned: None,
            review: None,
            replan: false,
        }
    }

    async fn lead(mut self) {
        let _watches = watch::all(&self.client, &self.shared);
        let mut plan_wanted = true;
        loop {
            let whole = self.shared.look(|world| world.is_whole());
            self.shared.metrics.turned(whole);
            if whole {
                self.look_at_changes();
                plan_wanted |= self.shared.look(World::take_changed);
                plan_wanted |= std::mem::take(&mut self.replan);
                plan_wanted |= self
                    .review
                    .is_some_and(|review| review <= self.shared.clock.now());
                let since = self.planned.map(|planned| planned.elapsed());
                if plan_wanted && since.is_none_or(|since| since >= PLAN_EVERY) {
                    plan_wanted = false;
                    self.plan();
                }
            }
            let wait = self.wait(plan_wanted);
            tokio::select! {
                () = self.shared.changed.notified() => {}
                Some(done) = self.acting.join_next() => {
                    if let Ok((key, done)) = done {
                        self.done(key, done);
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long nothing is to be done if nothing happens.
    fn wait(&self, plan_wanted: bool) -> Duration {
        let now = self.shared.clock.now();
        let until = |time: Timestamp| {
            Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO)
        };
        let timer = self.timers.first().map(|(at, _)| until(*at));
        let review = self.review.map(until);
        let plan = plan_wanted.then(|| {
            self.planned.map_or(PLAN_EVERY, |planned| {
                PLAN_EVERY.saturating_sub(planned.elapsed())
            })
        });
        let troubles = self
            .troubles
            .values()
            .map(|(.., again)| again.saturating_duration_since(Instant::now()));
        let waits = [
            timer,
            review,
            plan,
            troubles.filter(|it| !it.is_zero()).min(),
        ];
        let least = waits.into_iter().flatten().min();
        least
            .unwrap_or(Duration::from_secs(60))
            .max(Duration::from_millis(1))
    }

    /// Looks at every job of which something has changed, or whose time has come.
    fn look_at_changes(&mut self) {
        let mut keys = self.shared.look(World::take_dirty);
        let now = self.shared.clock.now();
        while let Some((at, key)) = self.timers.pop_first() {
            if at > now {
                self.timers.insert((at, key));
                break;
            }
            keys.insert(key);
        }
        let due = self
            .troubles
            .iter()
            .filter(|(_, (.., again))| *again <= Instant::now());
        keys.extend(
            due.map(|(key, _)| key.clone())
                .filter(|key| self.later.contains(key)),
        );
        for key in keys {
            let waits = self
                .troubles
                .get(&key)
                .is_some_and(|(.., again)| *again > Instant::now());
            if waits || self.busy.contains(&key) || self.busy.len() >= JOBS_AT_ONCE {
                self.later.insert(key);
            } else {
                self.begin(&key, None);
            }
        }
    }

    /// Steps a job, and has someone act if there is something to do. Says whether there is.
    fn begin(&mut self, key: &JobKey, decision: Option<Decision>) -> bool {
        self.later.remove(key);
        let decision = decision.unwrap_or_else(|| {
            let trouble = self.troubles.get(key).map(|(_, what, _)| what.clone());
            let reasons = trouble.into_iter().chain(self.reasons.get(key).cloned());
            Decision::Wait(reasons.collect())
        });
        let now = self.shared.clock.now();
        let found = self.shared.look(|world| {
            let job = world.job(key)?.clone();
            let version = world.job_version(key);
            let step = step(&job, &world.observed(&job), &decision, &self.settings, now);
            Some((job, version, step))
        });
        let Some((job, version, mut step)) = found else {
            self.reasons.remove(key);
            self.troubles.remove(key);
            return false;
        };
        if let Some(again) = step.again {
            self.timers.retain(|(_, waiting)| waiting != key);
            self.timers.insert((again, key.clone()));
        }
        if step.status == job.status && step.actions.is_empty() {
            return false;
        }
        if step.status != job.status {
            step.status.term = self.term;
        }
        self.busy.insert(key.clone());
        let (client, shared) = (self.client.clone(), self.shared.clone());
        self.acting.spawn(async move {
            let actor = Actor {
                client: &client,
                shared: &shared,
                job: &job,
                version,
            };
            let done = actor.act(step).await;
            (job.key, done)
        });
        true
    }

    fn done(&mut self, key: JobKey, done: Result<(), CallError>) {
        self.busy.remove(&key);
        self.assumed.remove(&key);
        let again = self.later.remove(&key);
        match done {
            Ok(()) => {
                self.troubles.remove(&key);
                if again {
                    self.shared.change(|world| world.touch(&key));
                }
            }
            // Somebody else wrote first: what they wrote comes by the watch.
            Err(error) if error.code() == Some(409) => {
                tracing::debug!(job = %key, %error, "looked at again");
                let soon = self.shared.clock.now() + SignedDuration::from_secs(1);
                self.timers.insert((soon, key));
                self.replan = true;
            }
            Err(error) => {
                tracing::warn!(job = %key, %error, "not all that was to be done for the job was");
                let times = self.troubles.get(&key).map_or(0, |(times, ..)| *times);
                let wait = AGAIN_AFTER
                    .0
                    .saturating_mul(1 << times.min(6))
                    .min(AGAIN_AFTER.1);
                let trouble = (times + 1, error.to_string(), Instant::now() + wait);
                self.troubles.insert(key.clone(), trouble);
                self.later.insert(key);
                self.replan = true;
            }
        }
        // Who had to wait for a place among those that are acted on.
        let free = JOBS_AT_ONCE.saturating_sub(self.busy.len());
        let ready = self
            .later
            .iter()
            .filter(|key| !self.busy.contains(key) && !self.troubles.contains_key(key));
        let ready: Vec<_> = ready.take(free).cloned().collect();
        for key in ready {
            self.begin(&key, None);
        }
    }

    #[tracing::instrument(target = "trackbed_traces", name = "plan", skip_all)]
    fn plan(&mut self) {
        let began = Instant::now();
        self.planned = Some(began);
        let now = self.shared.clock.now();
        let picture = self
            .shared
            .look(|world| picture(world, &self.config, &self.assumed));
        let plan = plan(
            &picture.snapshot,
            &picture.queue,
            now.as_millisecond(),
            &Discipline::default(),
        );
        self.shared.look(|world| {
            let phases = world.jobs().map(|job| job.status.phase);
            let metrics = &self.shared.metrics;
            metrics.planned(&picture, phases, began.elapsed());
        });
        self.review = plan
            .review_at
            .and_then(|at| Timestamp::from_millisecond(at).ok());
        let mut reasons: BTreeMap<JobKey, String> = picture.refused.iter().cloned().collect();
        for (gang, blocked) in &plan.blocked {
            let why = explain(&picture, *gang, blocked, plan.reservation.as_ref());
            reasons.insert(picture.keys[*gang].clone(), why);
        }
        for admission in &plan.admissions {
            let key = &picture.keys[admission.gang];
            let nodes = picture.nodes(admission);
            if self.busy.contains(key) {
                // Its turn comes with the next plan.
                self.replan = true;
                continue;
            }
            let job = self.shared.look(|world| world.job(key).cloned());
            let placement = job.as_ref().map(|job: &Job| placed(job, &nodes));
            if self.begin(key, Some(Decision::Place(nodes)))
                && let Some(placement) = placement
            {
                self.assumed.insert(key.clone(), placement);
            }
        }
        for reclaim in &plan.reclaims {
            let key = &picture.running[reclaim.running];
            let for_whom = &picture.queue[reclaim.gang].name;
            let why = format!("its team borrowed what {for_whom} has a right to");
            if !self.busy.contains(key) {
                self.begin(key, Some(Decision::Preempt(why)));
            }
        }
        let before = std::mem::replace(&mut self.reasons, reasons);
        let changed = self
            .reasons
            .iter()
            .filter(|(key, why)| before.get(*key) != Some(*why));
        for (key, _) in changed {
            self.shared.change(|world| world.touch(key));
        }
    }
}
