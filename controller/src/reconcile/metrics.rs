//! What a controller counts, and whether it does its work.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use super::{CallError, Picture};
use crate::api::Caffe2JobStatus;
use crate::api::caffe2job::JobPhase;
use crate::job::Step;

/// Upper bounds of waits, in seconds: from moments to days.
const WAITS: [f64; 12] = [
    0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 604_800.0,
];
/// Upper bounds of the planner's times, in seconds.
const PLANS: [f64; 8] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];
/// The phases of jobs, as they are labels; one that nobody has looked at has none yet.
const PHASES: [&str; 8] = [
    "New",
    "Queued",
    "Admitted",
    "Running",
    "Restarting",
    "Suspended",
    "Succeeded",
    "Failed",
];
/// The events by which an attempt ends and another one is to come.
const REASONS: [&str; 5] = [
    "GateRemoved",
    "NotBound",
    "PodFailed",
    "PodLost",
    "Preempted",
];
/// How calls fail.
const OUTCOMES: [&str; 3] = ["conflict", "late", "refused"];
/// A loop that has not come round for so long hangs: with nothing to do it does every minute.
const HANGS_AFTER: Duration = Duration::from_secs(150);
/// A Lease that could not be looked at for so long: the API server can't be reached.
const CUT_OFF_AFTER: Duration = Duration::from_secs(30);

/// The numbers of a controller, and the signs of life of its parts.
pub struct Metrics {
    registry: Registry,
    leading: IntGauge,
    jobs: IntGaugeVec,
    queue_seconds: Histogram,
    placement_seconds: Histogram,
    plan_seconds: Histogram,
    admitted: IntCounter,
    restarts: IntCounterVec,
    failed_calls: IntCounterVec,
    accelerators: IntGaugeVec,
    utilisation: GaugeVec,
    fragmentation: GaugeVec,
    life: Mutex<Life>,
}

struct Life {
    /// When the leader's loop last came round; `None` while another controller leads.
    turned: Option<Instant>,
    /// Whether it knows all objects of the cluster.
    knows_all: bool,
    /// When the Lease was last looked at.
    heard: Option<Instant>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let registry = Registry::new();
        let take = |collector: Box<dyn prometheus::core::Collector>| {
            let taken = registry.register(collector);
            taken.expect("each name is there once");
        };
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
            let made = Histogram::with_opts(options).expect("a valid name and rising bounds");
            take(Box::new(made.clone()));
            made
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let made = GaugeVec::new(Opts::new(name, help), labels).expect("valid names");
            take(Box::new(made.clone()));
            made
        };
        let numbers = |name: &str, help: &str, labels: &[&str]| {
            let made = IntGaugeVec::new(Opts::new(name, help), labels).expect("valid names");
            take(Box::new(made.clone()));
            made
        };
        let counters = |name: &str, help: &str, label: &str, known: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), &[label]).expect("valid names");
            take(Box::new(made.clone()));
            // 0 from the beginning, so that the first one is seen as a rise.
            known
                .iter()
                .for_each(|it| made.with_label_values(&[it]).reset());
            made
        };
        let leading = IntGauge::new(
            "trackbed_controller_leading",
            "1 for the controller of several that leads, 0 for the others",
        )
        .expect("a valid name");
        take(Box::new(leading.clone()));
        let admitted = IntCounter::new(
            "trackbed_controller_gangs_admitted_total",
            "Times that nodes were chosen for all pods of a job",
        )
        .expect("a valid name");
        take(Box::new(admitted.clone()));
        Metrics {
            leading,
            jobs: numbers("trackbed_controller_jobs", "Jobs by phase", &["phase"]),
            queue_seconds: histogram(
                "trackbed_controller_queue_seconds",
                "How long jobs had been in the queue when nodes were chosen for them",
                &WAITS,
            ),
            placement_seconds: histogram(
                "trackbed_controller_placement_seconds",
                "How long it took from the choice of a job's nodes until all its pods were on them",
                &WAITS,
            ),
            plan_seconds: histogram(
                "trackbed_controller_plan_seconds",
                "How long the planner took for a plan",
                &PLANS,
            ),
            admitted,
            restarts: counters(
                "trackbed_controller_gang_restarts_total",
                "Times that all pods of a job were taken down to be begun anew, by the reason that the job's event gives",
                "reason",
                &REASONS,
            ),
            failed_calls: counters(
                "trackbed_controller_failed_calls_total",
                "Calls to the API server that did not do what was asked: refused, conflict, late",
                "outcome",
                &OUTCOMES,
            ),
            accelerators: numbers(
                "trackbed_controller_accelerators",
                "Accelerators by hardware: busy, free, or unusable with their node",
                &["hardware", "state"],
            ),
            utilisation: gauges(
                "trackbed_controller_utilisation_ratio",
                "Busy accelerators over those of usable nodes, by hardware",
                &["hardware"],
            ),
            fragmentation: gauges(
                "trackbed_controller_fragmentation_ratio",
                "Free accelerators of nodes that are partly busy over all free ones, by hardware",
                &["hardware"],
            ),
            life: Mutex::new(Life {
                turned: None,
                knows_all: false,
                heard: None,
            }),
            registry,
        }
    }
}

impl Metrics {
    /// All numbers in Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        // Not amid a plan's numbers.
        let _whole = self.life.lock();
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        if let Err(error) = encoded {
            tracing::error!(%error, "the metrics can't be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Whether the leader's loop comes round, if this is the leader; else why not.
    pub fn is_alive(&self) -> Result<(), String> {
        let turned = self.life.lock().turned;
        match turned.map(|turned| turned.elapsed()) {
            Some(since) if since > HANGS_AFTER => Err(format!(
                "the loop has not come round for {} s",
                since.as_secs()
            )),
            _ => Ok(()),
        }
    }

    /// Whether it could lead at once, or does and knows the whole cluster; else why not.
    pub fn is_ready(&self) -> Result<(), String> {
        let life = self.life.lock();
        match life.heard.map(|heard| heard.elapsed()) {
            None => return Err("the API server has not answered yet".to_owned()),
            Some(since) if since > CUT_OFF_AFTER => {
                return Err(format!(
                    "the API server has not answered for {} s",
                    since.as_secs()
                ));
            }
            Some(_) => {}
        }
        if life.turned.is_some() && !life.knows_all {
            return Err("the objects of the cluster are still being listed".to_owned());
        }
        Ok(())
    }

    pub(super) fn heard(&self) {
        self.life.lock().heard = Some(Instant::now());
    }

    /// Leads from now on, or does not any more.
    pub(super) fn leads(&self, leads: bool) {
        self.leading.set(leads.into());
        let mut life = self.life.lock();
        life.turned = leads.then(Instant::now);
        life.knows_all = false;
        if !leads {
            // They are the other controller's to tell.
            self.jobs.reset();
            self.accelerators.reset();
            self.utilisation.reset();
            self.fragmentation.reset();
        }
    }

    pub(super) fn turned(&self, knows_all: bool) {
        let mut life = self.life.lock();
        life.turned = Some(Instant::now());
        life.knows_all = knows_all;
    }

    pub(super) fn call_failed(&self, error: &CallError) {
        let outcome = match error {
            CallError::Refused(_) if error.code() == Some(409) => "conflict",
            CallError::Refused(_) => "refused",
            CallError::Late => "late",
            CallError::NotLeading => return,
        };
        self.failed_calls.with_label_values(&[outcome]).inc();
    }

    /// A step's status was written over what it was.
    pub(super) fn wrote(&self, before: &Caffe2JobStatus, step: &Step, now: Timestamp) {
        let after = &step.status;
        if before.placement.is_empty() && !after.placement.is_empty() {
            self.admitted.inc();
            self.queue_seconds
                .observe(seconds(after.queued_at.as_ref(), now));
        }
        if !before.bound && after.bound {
            self.placement_seconds
                .observe(seconds(after.placed_at.as_ref(), now));
        }
        let reasons = step.events.iter().map(|event| event.reason);
        for reason in reasons.filter(|reason| REASONS.contains(reason)) {
            self.restarts.with_label_values(&[reason]).inc();
        }
    }

    /// A plan was made of a picture of the cluster.
    pub(super) fn planned(
        &self,
        picture: &Picture,
        phases: impl Iterator<Item = Option<JobPhase>>,
        took: Duration,
    ) {
        let _whole = self.life.lock();
        self.plan_seconds.observe(took.as_secs_f64());
        PHASES
            .iter()
            .for_each(|name| self.jobs.with_label_values(&[name]).set(0));
        for phase in phases {
            let name = phase.map_or("New".to_owned(), |phase| format!("{phase:?}"));
            self.jobs.with_label_values(&[&name]).inc();
        }
        self.accelerators.reset();
        self.utilisation.reset();
        self.fragmentation.reset();
        for (hardware, room) in rooms(picture) {
            let states = [
                ("busy", room.busy),
                ("free", room.free),
                ("unusable", room.unusable),
            ];
            for (state, number) in states {
                let number = i64::try_from(number).unwrap_or(i64::MAX);
                let gauge = self.accelerators.with_label_values(&[hardware, state]);
                gauge.set(number);
            }
            let ratio = |part: u64, whole: u64| match whole {
                0 => 0.0,
                whole => part as f64 / whole as f64,
            };
            let utilisation = self.utilisation.with_label_values(&[hardware]);
            utilisation.set(ratio(room.busy, room.busy + room.free));
            let fragmentation = self.fragmentation.with_label_values(&[hardware]);
            fragmentation.set(ratio(room.free_beside_busy, room.free));
        }
    }
}

/// Accelerators of a kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Room {
    busy: u64,
    free: u64,
    /// Of the free ones, those of nodes with busy ones.
    free_beside_busy: u64,
    unusable: u64,
}

fn rooms(picture: &Picture) -> BTreeMap<&str, Room> {
    let mut rooms: BTreeMap<&str, Room> = BTreeMap::new();
    for node in &picture.snapshot.nodes {
        let all = u64::from(node.allocatable.gpus);
        if all == 0 {
            continue;
        }
        let hardware = &picture.snapshot.hardware[node.hardware.0 as usize].name;
        let room = rooms.entry(hardware).or_default();
        if node.unusable.is_some() {
            room.unusable += all;
            continue;
        }
        let free = u64::from(node.free.gpus).min(all);
        room.free += free;
        room.busy += all - free;
        if free < all {
            room.free_beside_busy += free;
        }
    }
    rooms
}

fn seconds(since: Option<&Time>, now: Timestamp) -> f64 {
    since.map_or(0.0, |since| {
        now.duration_since(since.0).as_secs_f64().max(0.0)
    })
}
