//! Plays a trace.

use super::{Cluster, Job, JobOutcome, Outcome, Policy, Trace};
use crate::plan::{
    Amounts, Discipline, Gang, HardwareId, Millis, NodeId, Role, Running, Snapshot, plan,
};
use std::{cmp::Reverse, collections::BTreeMap, collections::BinaryHeap};
use thiserror::Error;

/// Why a trace can't be played.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SimulationError {
    /// A job asks for more than there is.
    #[error("{job} asks for {gpus} GPUs, more than {cluster} has: give --cluster more nodes")]
    TooLarge {
        /// The job.
        job: String,
        /// What it asks for.
        gpus: u32,
        /// The cluster.
        cluster: String,
    },
}

/// Plays a trace on a cluster. `progress` is told how many jobs have ended, now and then.
pub fn simulate(
    trace: &Trace,
    cluster: &Cluster,
    policy: Policy,
    progress: &mut dyn FnMut(usize),
) -> Result<Outcome, SimulationError> {
    let discipline = &policy.discipline();
    let mut world = World::new(trace, cluster, policy.knows_run_times());
    for job in &trace.jobs {
        if !world.could_hold(job) {
            return Err(SimulationError::TooLarge {
                job: job.name.clone(),
                gpus: job.gpus,
                cluster: cluster.to_string(),
            });
        }
    }
    let mut next = 0;
    let mut review: Option<Millis> = None;
    let mut ended = 0;
    loop {
        let arrival = trace.jobs.get(next).map(|job| job.submitted);
        let end = world.ends.peek().map(|Reverse((at, _))| *at);
        let Some(now) = [arrival, end, review].into_iter().flatten().min() else {
            break;
        };
        world.pass(now);
        while world.ends.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            world.end();
            ended += 1;
        }
        while let Some(job) = trace.jobs.get(next).filter(|job| job.submitted <= now) {
            let gang = world.gang(next, job);
            world.queue.push(gang);
            next += 1;
        }
        review = world.plan(now, discipline).filter(|at| *at > now);
        progress(ended);
    }
    Ok(world.outcome())
}

struct World<'a> {
    trace: &'a Trace,
    told_the_truth: bool,
    node_gpus: u32,
    gpus: u64,
    snapshot: Snapshot,
    queue: Vec<Gang>,
    /// When which job ends.
    ends: BinaryHeap<Reverse<(Millis, usize)>>,
    times: Vec<(Millis, Millis)>,
    plans: u64,
    /// Accelerator time that jobs could have used so far.
    asked: f64,
    last: Millis,
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace, cluster: &Cluster, told_the_truth: bool) -> Self {
        World {
            trace,
            told_the_truth,
            node_gpus: cluster.largest_node(),
            gpus: cluster.gpus(),
            snapshot: cluster.snapshot(),
            queue: Vec::new(),
            ends: BinaryHeap::new(),
            times: vec![(0, 0); trace.jobs.len()],
            plans: 0,
            asked: 0.0,
            last: 0,
        }
    }

    /// A job fills nodes; what is left over is a smaller pod.
    fn roles(&self, job: &Job) -> Vec<Role> {
        let role = |name: &str, count, gpus| {
            Role::new(
                name,
                count,
                Amounts {
                    gpus,
                    pods: 1,
                    ..Amounts::default()
                },
            )
        };
        let (full, rest) = (job.gpus / self.node_gpus, job.gpus % self.node_gpus);
        let mut roles = Vec::new();
        if full > 0 {
            roles.push(role("worker", full, self.node_gpus));
        }
        if rest > 0 {
            roles.push(role("rest", 1, rest));
        }
        roles
    }

    fn kinds(&self) -> impl Iterator<Item = HardwareId> + use<> {
        (0..self.snapshot.hardware.len() as u16).map(HardwareId)
    }

    fn name(&self, hardware: HardwareId) -> &str {
        &self.snapshot.hardware[usize::from(hardware.0)].name
    }

    fn could_hold(&self, job: &Job) -> bool {
        let roles = self.roles(job);
        self.kinds().any(|kind| {
            let mut nodes: Vec<Amounts> = self
                .snapshot
                .nodes
                .iter()
                .filter(|node| node.hardware == kind)
                .map(|node| node.allocatable.clone())
                .collect();
            roles.iter().all(|role| {
                let mut left = role.count;
                for node in &mut nodes {
                    let times = node.times(&role.request, left);
                    node.take(&role.request, times);
                    left -= times;
                }
                left == 0
            })
        })
    }

    fn gang(&mut self, index: usize, job: &Job) -> Gang {
        let team = self.snapshot.team(&job.team);
        let mut gang = Gang::new(&index.to_string(), team, job.submitted, self.roles(job));
        let factor = if self.told_the_truth { 1.0 } else { job.said };
        let said =
            |kind: HardwareId| ((job.run_time(self.name(kind)) as f64 * factor) as Millis).max(1);
        gang.run_time_on = self.kinds().map(|kind| (kind, said(kind))).collect();
        gang
    }

    /// Notes what jobs could have used until now.
    fn pass(&mut self, now: Millis) {
        let held = self
            .snapshot
            .running
            .iter()
            .flat_map(|running| &running.holds);
        let busy: u64 = held.map(|(_, held)| u64::from(held.gpus)).sum();
        let queued: u64 = self.queue.iter().map(Gang::gpus).sum();
        self.asked += (busy + queued).min(self.gpus) as f64 * (now - self.last) as f64;
        self.last = now;
    }

    /// Ends the job that ends next.
    fn end(&mut self) {
        let Some(Reverse((_, job))) = self.ends.pop() else {
            return;
        };
        let name = job.to_string();
        let index = self
            .snapshot
            .running
            .iter()
            .position(|running| running.name == name);
        let running = self
            .snapshot
            .running
            .swap_remove(index.expect("what ends has been started"));
        for (node, held) in running.holds {
            self.snapshot.nodes[node.0 as usize].free.give(&held, 1);
        }
    }

    /// Starts what the planner starts. Says when it wants to be asked again.
    fn plan(&mut self, now: Millis, discipline: &Discipline) -> Option<Millis> {
        self.plans += 1;
        let plan = plan(&self.snapshot, &self.queue, now, discipline);
        let mut started = Vec::new();
        for admission in &plan.admissions {
            let gang = &self.queue[admission.gang];
            let job: usize = gang
                .name
                .parse()
                .expect("a gang is named by its job's place");
            let mut holds: BTreeMap<NodeId, Amounts> = BTreeMap::new();
            for (role, nodes) in gang.roles.iter().zip(&admission.nodes) {
                for node in nodes {
                    holds.entry(*node).or_default().give(&role.request, 1);
                    self.snapshot.nodes[node.0 as usize]
                        .free
                        .take(&role.request, 1);
                }
            }
            let truth = self.trace.jobs[job].run_time(self.name(admission.hardware));
            let said = gang.run_time_on(admission.hardware, 1.0);
            self.times[job] = (now, now + truth);
            self.ends.push(Reverse((now + truth, job)));
            self.snapshot.running.push(Running {
                name: gang.name.clone(),
                team: gang.team,
                priority: gang.priority,
                hardware: admission.hardware,
                started: now,
                ends: said.map(|said| now + said),
                holds: holds.into_iter().collect(),
                reclaimable: false,
            });
            started.push(admission.gang);
        }
        started.sort_unstable();
        for index in started.into_iter().rev() {
            self.queue.swap_remove(index);
        }
        plan.review_at
    }

    fn outcome(self) -> Outcome {
        let jobs = self
            .trace
            .jobs
            .iter()
            .zip(&self.times)
            .map(|(job, (started, ended))| JobOutcome {
                name: job.name.clone(),
                gpus: job.gpus,
                submitted: job.submitted,
                started: *started,
                ended: *ended,
            });
        Outcome {
            jobs: jobs.collect(),
            gpus: self.gpus,
            asked: self.asked,
            plans: self.plans,
        }
    }
}
