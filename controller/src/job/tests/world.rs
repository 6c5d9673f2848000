//! A job and its pods, as an API server, a scheduler and kubelets would have them.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::job::*;

/// A job, its pods, and the time.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) job: Job,
    pub(super) seen: Observed,
    pub(super) now: i64,
    pub(super) settings: Settings,
    pub(super) events: Vec<Event>,
    /// The finalizer was taken off: the job is no more.
    pub(super) gone: bool,
    made: u64,
}

pub(super) fn template() -> Value {
    json!({ "spec": { "containers": [{ "name": "caffe2", "image": "caffe2" }] } })
}

pub(super) fn job(mut spec: Value) -> Job {
    if spec["roles"].is_null() {
        spec["roles"] = json!([{ "name": "worker", "replicas": 3, "template": template() }]);
    }
    if spec["rendezvous"].is_null() {
        spec["rendezvous"] = json!({ "type": "ExistingRedis", "host": "redis" });
    }
    Job {
        key: JobKey {
            kind: JobKind::Trackbed,
            namespace: "a".to_owned(),
            name: "resnet".to_owned(),
        },
        uid: "0f0e0d0c-1111-4000-8000-000000000001".to_owned(),
        generation: 1,
        created: Timestamp::from_second(990).expect("a time"),
        deleting: false,
        has_finalizer: false,
        spec: serde_json::from_value(spec).expect("a spec"),
        run_id_prefix: None,
        status: Default::default(),
    }
}

impl World {
    pub(super) fn new(spec: Value) -> World {
        World {
            job: job(spec),
            seen: Observed::default(),
            now: 1000,
            settings: Settings::default(),
            events: Vec::new(),
            gone: false,
            made: 0,
        }
    }

    pub(super) fn look(&self, decision: &Decision) -> Step {
        let now = Timestamp::from_second(self.now).expect("a time");
        step(&self.job, &self.seen, decision, &self.settings, now)
    }

    /// A step whose status is written, and of whose actions the first so many are carried out before the
    /// controller dies.
    pub(super) fn step_until(&mut self, decision: &Decision, actions: usize) {
        if self.gone {
            return;
        }
        let step = self.look(decision);
        self.job.status = step.status;
        self.events.extend(step.events);
        for action in step.actions.into_iter().take(actions) {
            self.carry_out(action);
        }
    }

    pub(super) fn step(&mut self, decision: &Decision) {
        self.step_until(decision, usize::MAX);
    }

    /// Steps until nothing changes by itself.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            self.step(&Decision::Wait(Vec::new()));
        }
    }

    /// A node for each pod.
    pub(super) fn place(&mut self) {
        self.settle();
        self.step(&Decision::Place(self.nodes()));
    }

    pub(super) fn nodes(&self) -> Vec<String> {
        let count = members(&self.job).count();
        (0..count).map(|at| format!("node-{at}")).collect()
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Hold => self.job.has_finalizer = true,
            Action::LetGo => self.gone = true,
            Action::DeleteJob => self.job.deleting = true,
            Action::CreateService => self.seen.service = true,
            Action::DeleteService => self.seen.service = false,
            Action::WarmUp { percent, .. } => {
                let dataset = self.seen.dataset.as_mut().expect("a dataset to warm");
                assert!(percent > 0 && !dataset.warms);
                dataset.warms = true;
            }
            Action::CreatePod(pod) => self.create(*pod),
            Action::Release { pod, node } => {
                let committed = &self.job.status.placement;
                assert!(
                    committed.iter().any(|it| it.pod == pod && it.node == node),
                    "a pod is let go only to where the status says"
                );
                let pods = self.seen.pods.iter_mut();
                for pod in pods.filter(|it| it.name == pod && !it.deleting) {
                    pod.gated = false;
                }
            }
            Action::DeletePod { uid, .. } => self.delete(&uid),
        }
    }

    fn create(&mut self, mut pod: Value) {
        let name = pod["metadata"]["name"].clone();
        if self.seen.pods.iter().any(|it| name == it.name.as_str()) {
            return;
        }
        self.made += 1;
        pod["metadata"]["uid"] = self.made.to_string().into();
        let view = pod_view(&serde_json::from_value(pod).expect("a pod"));
        let older = self.seen.pods.iter().find(|it| it.attempt != view.attempt);
        assert!(older.is_none(), "{view:?} is made beside {older:?}");
        self.seen.pods.push(view);
    }

    /// Deletes a pod as the API server does: at once if no kubelet has it.
    pub(super) fn delete(&mut self, uid: &str) {
        let bound = |pod: &PodView| pod.node.is_some() && !pod.is_over();
        self.seen.pods.retain(|pod| pod.uid != uid || bound(pod));
        for pod in self.seen.pods.iter_mut().filter(|pod| pod.uid == uid) {
            pod.deleting = true;
        }
    }

    /// The scheduler binds a pod that it may.
    pub(super) fn bind(&mut self, at: usize) {
        let placement = self.job.status.placement.clone();
        if let Some(pod) = self.pod(at)
            && !pod.gated
            && !pod.deleting
            && pod.node.is_none()
        {
            let placed = placement.iter().find(|it| it.pod == pod.name);
            pod.node = Some(placed.map_or("elsewhere".to_owned(), |it| it.node.clone()));
        }
    }

    /// Kubelet says how a pod is.
    pub(super) fn becomes(&mut self, at: usize, phase: PodPhase) {
        if let Some(pod) = self.pod(at)
            && pod.node.is_some()
            && !pod.is_over()
        {
            pod.phase = phase;
            pod.ready = phase == PodPhase::Running;
            if phase == PodPhase::Failed {
                pod.failure = Some(crate::job::observe::Failure {
                    disrupted: false,
                    why: "container caffe2 ended with 1".to_owned(),
                });
            }
        }
    }

    /// Kubelet has ended what was deleted.
    pub(super) fn end_deleted(&mut self) {
        self.seen.pods.retain(|pod| !pod.deleting);
    }

    fn pod(&mut self, at: usize) -> Option<&mut PodView> {
        let count = self.seen.pods.len().max(1);
        self.seen.pods.get_mut(at % count)
    }

    /// All pods get to their nodes and run.
    pub(super) fn run(&mut self) {
        self.place();
        self.everybody(PodPhase::Running);
    }

    pub(super) fn everybody(&mut self, phase: PodPhase) {
        for at in 0..self.seen.pods.len() {
            self.bind(at);
            self.becomes(at, phase);
        }
        self.settle();
    }

    pub(super) fn told(&self, reason: &str) -> usize {
        let events = self.events.iter();
        events.filter(|event| event.reason == reason).count()
    }

    pub(super) fn holds(&self, kind: &str) -> Option<bool> {
        let mut conditions = self.job.status.conditions.iter();
        conditions
            .find(|it| it.type_ == kind)
            .map(|it| it.status == "True")
    }
}
