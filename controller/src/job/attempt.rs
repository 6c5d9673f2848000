//! The life of an attempt: made, queued, placed, bound, running, taken down.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::members::{self, members, pod_name};
use super::step::{Stepping, TURN, gang, lacks_data};
use super::{Action, Decision, PodPhase, PodView, pods, rendezvous};
use crate::api::caffe2job::{JobPhase, Mistrusted, Placed};

/// The most nodes that are avoided at a time: the newest.
const MAX_MISTRUSTED: usize = 256;

/// Why an attempt does not go on.
enum Trouble {
    /// A pod failed by its own fault: what backoffLimit bounds.
    Failed(String),
    /// A pod is gone, or was ended by somebody.
    Disrupted(String),
}

impl Stepping<'_> {
    /// The attempt has its pods behind their gates, and waits for the planner.
    pub(super) fn queued(&mut self, decision: &Decision) {
        let pods = gang(self.job, self.seen);
        if self.status.attempt_generation != Some(self.job.generation) {
            // Its pods are of an earlier spec.
            return self.take_down();
        }
        if let Some(loose) = pods
            .iter()
            .flatten()
            .find(|pod| !pod.gated && !pod.deleting)
        {
            let why = format!(
                "pod {} has lost its gate before its gang had nodes",
                loose.name
            );
            self.tell(true, "GateRemoved", why);
            return self.take_down();
        }
        let data = lacks_data(self.job, self.seen);
        self.warm_up();
        if !self.make_pods(&pods) {
            return;
        }
        let complete = pods.iter().all(|pod| pod.is_some_and(|pod| !pod.deleting));
        match (decision, data) {
            (_, Some(why)) => self.enter(JobPhase::Queued, "WaitsForData", &why),
            (Decision::Place(nodes), None) if complete && nodes.len() == pods.len() => {
                self.place(nodes, &pods);
            }
            (Decision::Wait(reasons), None) if !reasons.is_empty() => {
                self.enter(JobPhase::Queued, "WaitsForNodes", &reasons.join("; "));
            }
            _ => self.enter(JobPhase::Queued, "WaitsForNodes", TURN),
        }
    }

    /// Makes what the attempt lacks; says whether it can be made.
    fn make_pods(&mut self, pods: &[Option<&PodView>]) -> bool {
        if !self.seen.taken.is_empty() {
            let why = format!(
                "names of its pods are taken, by {}: delete those, or give the job another name",
                self.seen.taken.join(", ")
            );
            self.enter(JobPhase::Queued, "NamesTaken", &why);
            return false;
        }
        if !self.seen.service {
            self.actions.push(Action::CreateService);
        }
        let (job, attempt) = (self.job, self.status.attempt);
        let run_id = self.status.run_id.clone().unwrap_or_default();
        for (member, _) in members(job).zip(pods).filter(|(_, pod)| pod.is_none()) {
            match pods::gated_pod(job, attempt, &run_id, self.status.rdma, &member) {
                Ok(pod) => self.actions.push(Action::CreatePod(Box::new(pod))),
                Err(error) => {
                    self.enter(JobPhase::Queued, "InvalidTemplate", &error.to_string());
                    return false;
                }
            }
        }
        true
    }

    /// Has the dataset warmed while the job queues, if nobody has said what to warm.
    fn warm_up(&mut self) {
        let (Some(wanted), Some(found)) = (&self.job.spec.dataset, self.seen.dataset) else {
            return;
        };
        if wanted.warm_share > found.cached_percent && !found.warms {
            let namespace = wanted.namespace.as_ref().unwrap_or(&self.job.key.namespace);
            self.actions.push(Action::WarmUp {
                namespace: namespace.clone(),
                dataset: wanted.name.clone(),
                percent: wanted.warm_share,
            });
        }
    }

    /// Commits to the planner's nodes: with this in the status, pods are let go.
    fn place(&mut self, nodes: &[String], pods: &[Option<&PodView>]) {
        let placed = pods.iter().flatten().zip(nodes);
        self.status.placement = placed
            .map(|(pod, node)| Placed {
                pod: pod.name.clone(),
                node: node.clone(),
            })
            .collect();
        self.status.placed_at = Some(Time(self.now));
        self.status.bound = false;
        self.enter(
            JobPhase::Admitted,
            "Placed",
            "its pods are on their way to their nodes",
        );
        let mut distinct = nodes.to_vec();
        distinct.sort();
        distinct.dedup();
        let message = format!("{} pods go to {} nodes", nodes.len(), distinct.len());
        self.tell(false, "Placed", message);
        self.release(pods);
    }

    /// The attempt has nodes.
    pub(super) fn placed(&mut self, decision: &Decision) {
        let pods = gang(self.job, self.seen);
        let chief = pods.get(members::chief(self.job)).copied().flatten();
        if chief.is_some_and(|pod| pod.phase == PodPhase::Succeeded) {
            return self.conclude(JobPhase::Succeeded, "Completed", "its chief has ended well");
        }
        if let Some(trouble) = self.trouble(&pods) {
            return self.restart(trouble);
        }
        if let Decision::Preempt(why) = decision {
            self.tell(false, "Preempted", why.clone());
            self.take_down();
            return self.enter(JobPhase::Queued, "Preempted", why);
        }
        if !self.status.bound {
            return self.bind(&pods);
        }
        let started = pods
            .iter()
            .flatten()
            .all(|pod| pod.phase != PodPhase::Pending);
        match (started, self.status.phase) {
            (true, Some(JobPhase::Running)) => {}
            (true, _) => {
                self.enter(JobPhase::Running, "Running", "");
                self.tell(false, "Running", "all its pods run");
            }
            (false, _) => {
                let why = "its pods are on their nodes and start";
                self.enter(JobPhase::Admitted, "Bound", why);
            }
        }
    }

    fn trouble(&self, pods: &[Option<&PodView>]) -> Option<Trouble> {
        let failed = pods.iter().flatten().find_map(|pod| {
            let failure = pod.failure.as_ref()?;
            let why = format!("pod {}: {}", pod.name, failure.why);
            Some(match failure.disrupted {
                true => Trouble::Disrupted(why),
                false => Trouble::Failed(why),
            })
        });
        let missing = || {
            let named =
                members(self.job).map(|it| pod_name(&self.job.key, self.status.attempt, &it));
            let (name, _) = named
                .zip(pods)
                .find(|(_, pod)| pod.is_none_or(|pod| pod.deleting))?;
            Some(Trouble::Disrupted(format!("pod {name} was deleted")))
        };
        failed.or_else(missing)
    }

    /// Sees to it that all pods get to their nodes, or gives the nodes back when the timer ends.
    fn bind(&mut self, pods: &[Option<&PodView>]) {
        if pods.iter().flatten().all(|pod| pod.node.is_some()) {
            self.status.bound = true;
            self.status.bind_failures = 0;
            if self.status.start_time.is_none() {
                self.status.start_time = Some(Time(self.now));
            }
            self.tell(false, "Bound", "all its pods are on their nodes");
            return self.enter(
                JobPhase::Admitted,
                "Bound",
                "its pods are on their nodes and start",
            );
        }
        let began = self.status.placed_at.clone();
        let spent = began.map_or(i64::MAX, |began| self.since(&began));
        let limit = self.bind_limit();
        if spent < limit {
            self.again_in(limit - spent);
            self.enter(
                JobPhase::Admitted,
                "Placed",
                "its pods are on their way to their nodes",
            );
            return self.release(pods);
        }
        // Who was let go and did not arrive was not taken by its node.
        let refused = |pod: &&&PodView| pod.node.is_none() && !pod.gated;
        let refused: Vec<_> = pods
            .iter()
            .flatten()
            .filter(refused)
            .map(|pod| &pod.name)
            .collect();
        let failures = self.status.bind_failures.saturating_add(1);
        let seconds = self
            .settings
            .mistrust_seconds
            .saturating_mul(failures.min(10).into());
        let until = Time(self.after(seconds));
        let mut nodes: Vec<_> = self
            .status
            .placement
            .iter()
            .filter(|placed| refused.contains(&&placed.pod))
            .map(|placed| placed.node.clone())
            .collect();
        nodes.sort();
        nodes.dedup();
        let message = match nodes.is_empty() {
            true => format!("its redis was not ready within {limit} s"),
            false => format!(
                "nodes {} did not take its pods within {limit} s and are avoided for {seconds} s",
                nodes.join(", ")
            ),
        };
        self.status
            .mistrusted
            .retain(|it| !nodes.contains(&it.node));
        let mistrusted = nodes.into_iter().map(|node| Mistrusted {
            node,
            until: until.clone(),
        });
        self.status.mistrusted.extend(mistrusted);
        let surplus = self.status.mistrusted.len().saturating_sub(MAX_MISTRUSTED);
        self.status.mistrusted.drain(..surplus);
        self.status.bind_failures = failures;
        self.tell(true, "NotBound", message.clone());
        self.take_down();
        self.enter(JobPhase::Queued, "NotBound", &message);
    }

    /// How long pods may take to get to their nodes.
    fn bind_limit(&self) -> i64 {
        let settings = self.settings;
        doubled(
            settings.bind_seconds,
            self.status.bind_failures,
            settings.bind_most_seconds,
        )
    }

    /// Lets the pods that are still held go, once they can meet.
    fn release(&mut self, pods: &[Option<&PodView>]) {
        if pods.iter().flatten().all(|pod| !pod.gated) || !self.can_meet() {
            return;
        }
        let held = pods.iter().flatten().filter(|pod| pod.gated);
        for pod in held {
            let placed = self
                .status
                .placement
                .iter()
                .find(|placed| placed.pod == pod.name);
            if let Some(placed) = placed {
                self.actions.push(Action::Release {
                    pod: placed.pod.clone(),
                    node: placed.node.clone(),
                });
            }
        }
    }

    /// Whether the redis, if one is started for the job, is ready; sees to it that it will be.
    fn can_meet(&mut self) -> bool {
        if !rendezvous::is_started(self.job) {
            return true;
        }
        let attempt = self.status.attempt;
        let mut pods = self.seen.pods.iter();
        let redis = pods.find(|pod| pod.rendezvous && pod.attempt == attempt);
        match redis {
            None => {
                let pod = rendezvous::pod(self.job, attempt, self.settings);
                self.actions.push(Action::CreatePod(Box::new(pod)));
                false
            }
            Some(redis) if redis.is_over() && !redis.deleting => {
                self.actions.push(Action::DeletePod {
                    pod: redis.name.clone(),
                    uid: redis.uid.clone(),
                });
                false
            }
            Some(redis) => redis.ready && !redis.deleting,
        }
    }

    fn restart(&mut self, trouble: Trouble) {
        let limit = self.job.spec.run_policy.backoff_limit;
        let (why, counted) = match trouble {
            Trouble::Failed(why) => (why, true),
            Trouble::Disrupted(why) => (why, false),
        };
        if counted && self.status.restarts >= limit {
            let why = format!("{why}; runPolicy.backoffLimit allows {limit} restarts");
            return self.conclude(JobPhase::Failed, "BackoffLimitExceeded", &why);
        }
        let settings = self.settings;
        let before = self.status.restarts;
        self.status.restarts += i32::from(counted);
        let wait = match counted {
            true => doubled(settings.retry_seconds, before, settings.retry_most_seconds),
            false => settings.retry_seconds,
        };
        self.status.retry_at = Some(Time(self.after(wait)));
        let reason = if counted { "PodFailed" } else { "PodLost" };
        self.tell(true, reason, format!("{why}: all its pods start anew"));
        self.take_down();
        self.enter(JobPhase::Restarting, reason, &why);
    }

    /// The attempt is over: it has no nodes any more, and its pods are to go.
    pub(super) fn take_down(&mut self) {
        self.status.attempt_live = false;
        self.status.placement.clear();
        self.status.placed_at = None;
        self.status.bound = false;
    }

    /// Begins the next attempt if nothing of the last one is left, and its time has come.
    pub(super) fn next_attempt(&mut self, gone: bool) {
        if !gone {
            let left = self.seen.pods.iter().find(|pod| pod.node.is_some());
            let why = match left {
                Some(pod) => format!(
                    "pod {} of an earlier attempt ends on node {}: if that node is gone for good, delete the \
                     node or the pod by force",
                    pod.name,
                    pod.node.as_deref().unwrap_or_default()
                ),
                None => "pods of an earlier attempt end".to_owned(),
            };
            if self
                .status
                .phase
                .is_none_or(|phase| phase == JobPhase::Suspended)
            {
                self.enter(JobPhase::Queued, "WaitsForPods", &why);
            } else {
                self.status.message = Some(why);
            }
            return;
        }
        if let Some(retry) = self
            .status
            .retry_at
            .clone()
            .filter(|retry| retry.0 > self.now)
        {
            return self.again_in(retry.0.as_second() - self.now.as_second());
        }
        self.status.retry_at = None;
        self.status.attempt += 1;
        self.status.attempt_live = true;
        self.status.attempt_generation = Some(self.job.generation);
        self.status.run_id = Some(self.run_id());
        self.status.rdma = pods::uses_rdma(self.job, self.seen.rdma);
        self.enter(JobPhase::Queued, "WaitsForNodes", TURN);
        let none: Vec<Option<&PodView>> = members(self.job).map(|_| None).collect();
        self.warm_up();
        self.make_pods(&none);
    }

    /// What no other attempt of any job has, for stores that outlive attempts.
    fn run_id(&self) -> String {
        let job = self.job;
        let prefix = job.run_id_prefix.as_ref().unwrap_or(&job.key.name);
        let short = job.uid.get(..8).unwrap_or(&job.uid);
        format!("{prefix}-{short}-{}", self.status.attempt)
    }
}

/// A time that doubles with each of `times`, up to the most.
fn doubled(seconds: i64, times: i32, most: i64) -> i64 {
    let factor = 1i64 << times.clamp(0, 30);
    seconds.saturating_mul(factor).min(most)
}
