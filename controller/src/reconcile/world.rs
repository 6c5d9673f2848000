//! What the API server has said, and what was written since. No time passes in here, and nothing is asked.
//!
//! What the controller has written itself is known from the answer, before the watch has caught up with it:
//! so a step never sees less than what the steps before it did. What has gone does not come back by an
//! answer or an event that was late: its uid is remembered.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::{Resource, ResourceExt};

use super::version;
use crate::api::caffe2job::converted;
use crate::api::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job, READY};
use crate::job::{
    DatasetView, FINALIZER, JOB_UID_LABEL, Job, JobKey, JobKind, Observed, members, pod_name,
    pod_view, service_name,
};

/// A namespace, empty for what has none, and a name.
pub(super) type Name = (String, String);

/// How many of what has gone are remembered, of each kind: far more than are late at a time.
const REMEMBERED: usize = 20_000;

/// Objects of a kind.
pub(super) struct Kept<T> {
    objects: BTreeMap<Name, (T, Option<Instant>)>,
    /// The uids of what has gone, and in which order it did.
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
    listed: bool,
    /// When the list that is being read was asked for, and what it had so far.
    listing: Option<(Instant, Vec<T>)>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept {
            objects: BTreeMap::new(),
            gone: HashSet::new(),
            gone_order: VecDeque::new(),
            listed: false,
            listing: None,
        }
    }
}

impl<T: Resource + Clone> Kept<T> {
    pub(super) fn get(&self, name: &Name) -> Option<&T> {
        self.objects.get(name).map(|(object, _)| object)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.objects.values().map(|(object, _)| object)
    }

    /// Takes an object that is newer than what is known. Says whether it is.
    fn take(&mut self, object: T, written: Option<Instant>) -> bool {
        if object.uid().is_some_and(|uid| self.gone.contains(&uid)) {
            return false;
        }
        let name = name_of(&object);
        let known = self.objects.get(&name);
        let newer = known.is_none_or(|(known, _)| {
            version(&object) > version(known) || known.uid() != object.uid()
        });
        if newer {
            self.objects.insert(name, (object, written));
        }
        newer
    }

    /// An object has gone. Gives what was known of it.
    fn drop(&mut self, object: &T) -> Option<T> {
        self.bury(object.uid());
        let name = name_of(object);
        let same = self
            .get(&name)
            .is_some_and(|known| known.uid() == object.uid());
        let known = same.then(|| self.objects.remove(&name)).flatten();
        known.map(|(known, _)| known)
    }

    fn bury(&mut self, uid: Option<String>) {
        let Some(uid) = uid else { return };
        if self.gone.insert(uid.clone()) {
            self.gone_order.push_back(uid);
        }
        if self.gone_order.len() > REMEMBERED
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }

    fn begin_list(&mut self) {
        self.listing = Some((Instant::now(), Vec::new()));
    }

    fn list_one(&mut self, object: T) {
        if let Some((_, found)) = &mut self.listing {
            found.push(object);
        }
    }

    /// What the list has is there, and nothing else but what was written since it was asked for.
    fn end_list(&mut self) -> Vec<T> {
        let Some((began, found)) = self.listing.take() else {
            return Vec::new();
        };
        let names: BTreeSet<_> = found.iter().map(name_of).collect();
        let mut changed = Vec::new();
        self.objects.retain(|name, (object, written)| {
            let kept = names.contains(name) || written.is_some_and(|written| written >= began);
            if !kept {
                changed.push(object.clone());
            }
            kept
        });
        for object in &changed {
            self.bury(object.uid());
        }
        for object in found {
            if self.take(object.clone(), None) {
                changed.push(object);
            }
        }
        self.listed = true;
        changed
    }
}

pub(super) fn name_of(object: &impl Resource) -> Name {
    let metadata = object.meta();
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Something of a watch or of an answer.
pub(super) enum Change<T> {
    ListBegins,
    Listed(T),
    ListEnds,
    There(T),
    Gone(T),
    /// As the answer to a write has it.
    Written(T),
}

/// The objects of a cluster, as far as jobs are concerned.
#[derive(Default)]
pub struct World {
    jobs: BTreeMap<JobKey, Job>,
    trackbed: Kept<Caffe2Job>,
    kubeflow: Kept<KubeflowCaffe2Job>,
    pub(super) pods: Kept<Pod>,
    pub(super) nodes: Kept<Node>,
    pub(super) datasets: Kept<Dataset>,
    pub(super) cache_nodes: Kept<CacheNode>,
    services: Kept<Service>,
    /// By a job's uid: its pods.
    pods_of: HashMap<String, BTreeSet<Name>>,
    by_uid: HashMap<String, JobKey>,
    /// Jobs to look at.
    dirty: BTreeSet<JobKey>,
    /// The planner has something new to look at.
    changed: bool,
}

/// Kinds of objects that a world keeps.
pub(super) trait Kind: Resource<DynamicType = ()> + Clone + Send + Sync + 'static {
    fn kept(world: &mut World) -> &mut Kept<Self>;

    /// It is there now, has changed or is gone.
    fn touched(world: &mut World, object: &Self, there: bool);
}

impl World {
    pub(super) fn apply<T: Kind>(&mut self, change: Change<T>) {
        let kept = T::kept(self);
        let touched = match change {
            Change::ListBegins => {
                kept.begin_list();
                Vec::new()
            }
            Change::Listed(object) => {
                kept.list_one(object);
                Vec::new()
            }
            Change::ListEnds => {
                let touched = kept.end_list();
                self.changed = true;
                touched
            }
            Change::There(object) => match kept.take(object.clone(), None) {
                true => vec![object],
                false => Vec::new(),
            },
            Change::Written(object) => match kept.take(object.clone(), Some(Instant::now())) {
                true => vec![object],
                false => Vec::new(),
            },
            Change::Gone(object) => kept.drop(&object).into_iter().collect(),
        };
        for object in touched {
            let name = name_of(&object);
            let there = T::kept(self)
                .get(&name)
                .is_some_and(|known| known.uid() == object.uid());
            T::touched(self, &object, there);
        }
    }

    /// Whether all kinds were listed once.
    pub(super) fn is_whole(&self) -> bool {
        self.trackbed.listed
            && self.kubeflow.listed
            && self.pods.listed
            && self.nodes.listed
            && self.datasets.listed
            && self.cache_nodes.listed
            && self.services.listed
    }

    /// All jobs.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// A job.
    pub fn job(&self, key: &JobKey) -> Option<&Job> {
        self.jobs.get(key)
    }

    /// The version of a job's object.
    pub(super) fn job_version(&self, key: &JobKey) -> Option<String> {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            JobKind::Trackbed => self.trackbed.get(&name)?.resource_version(),
            JobKind::Kubeflow => self.kubeflow.get(&name)?.resource_version(),
        }
    }

    /// Jobs to look at, none of which is left.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<JobKey> {
        std::mem::take(&mut self.dirty)
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// This job is to be looked at.
    pub(super) fn touch(&mut self, key: &JobKey) {
        if self.jobs.contains_key(key) {
            self.dirty.insert(key.clone());
        }
    }

    /// Whether the planner has something new to look at; not any more.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// A pod of a job, of the list of those that it has.
    pub(super) fn pods_of(&self, uid: &str) -> impl Iterator<Item = &Pod> {
        let names = self.pods_of.get(uid).into_iter().flatten();
        names.filter_map(|name| self.pods.get(name))
    }

    /// What is seen of a job's surroundings.
    pub fn observed(&self, job: &Job) -> Observed {
        let namespace = &job.key.namespace;
        let taken = || {
            let names = members(job).map(|member| pod_name(&job.key, job.status.attempt, &member));
            let others = names.filter_map(|name| {
                let pod = self.pods.get(&(namespace.clone(), name))?;
                (pod.labels().get(JOB_UID_LABEL) != Some(&job.uid))
                    .then(|| format!("pod {}", pod.name_any()))
            });
            others.take(3).collect()
        };
        let queued = job.status.attempt_live && job.status.placement.is_empty();
        let begins =
            !job.status.attempt_live || job.status.attempt_generation != Some(job.generation);
        let service = (namespace.clone(), service_name(job));
        let resource = &job.spec.network.resource;
        let has_resource = |node: &Node| {
            let allocatable = node
                .status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref());
            let amount = allocatable.and_then(|allocatable| allocatable.get(resource));
            amount.is_some_and(|amount| amount.0 != "0")
        };
        Observed {
            pods: self.pods_of(&job.uid).map(pod_view).collect(),
            taken: if queued { taken() } else { Vec::new() },
            service: self.services.get(&service).is_some(),
            dataset: self.dataset_of(job).map(dataset_view),
            // Asked only when an attempt may begin, as it looks at every node.
            rdma: begins && self.nodes.all().any(has_resource),
        }
    }

    /// The dataset that a job wants, if it is there.
    pub(super) fn dataset_of(&self, job: &Job) -> Option<&Dataset> {
        let wanted = job.spec.dataset.as_ref()?;
        let namespace = wanted.namespace.as_ref().unwrap_or(&job.key.namespace);
        let dataset = self
            .datasets
            .get(&(namespace.clone(), wanted.name.clone()))?;
        // One that is not shared with the job's namespace is as good as none.
        let shared = *namespace == job.key.namespace
            || dataset.spec.shared_with.contains(&job.key.namespace);
        shared.then_some(dataset)
    }

    fn job_changed(&mut self, job: Job, there: bool) {
        self.changed = true;
        if there {
            self.dirty.insert(job.key.clone());
            self.by_uid.insert(job.uid.clone(), job.key.clone());
            self.jobs.insert(job.key.clone(), job);
        } else {
            self.by_uid.remove(&job.uid);
            let same = self
                .jobs
                .get(&job.key)
                .is_some_and(|known| known.uid == job.uid);
            if same {
                self.jobs.remove(&job.key);
                self.dirty.remove(&job.key);
            }
        }
    }

    fn touch_uid(&mut self, uid: Option<&String>) {
        if let Some(key) = uid.and_then(|uid| self.by_uid.get(uid)) {
            self.dirty.insert(key.clone());
        }
    }
}

fn dataset_view(dataset: &Dataset) -> DatasetView {
    let status = dataset.status.as_ref();
    let conditions = status
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    DatasetView {
        ready: conditions
            .iter()
            .any(|it| it.type_ == READY && it.status == "True"),
        cached_percent: status.and_then(|status| status.cached_percent).unwrap_or(0),
        warms: dataset.spec.warm_up.is_some(),
    }
}

impl Kind for Caffe2Job {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.trackbed
    }

    fn touched(world: &mut World, object: &Self, there: bool) {
        world.job_changed(job_of(object), there);
    }
}

impl Kind for KubeflowCaffe2Job {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.kubeflow
    }

    fn touched(world: &mut World, object: &Self, there: bool) {
        world.job_changed(kubeflow_job_of(object), there);
    }
}

impl Kind for Pod {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.pods
    }

    fn touched(world: &mut World, object: &Self, there: bool) {
        world.changed = true;
        let Some(uid) = object.labels().get(JOB_UID_LABEL).cloned() else {
            return;
        };
        let names = world.pods_of.entry(uid.clone()).or_default();
        if there {
            names.insert(name_of(object));
        } else {
            names.remove(&name_of(object));
            if names.is_empty() {
                world.pods_of.remove(&uid);
            }
        }
        world.touch_uid(Some(&uid));
    }
}

impl Kind for Service {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.services
    }

    fn touched(world: &mut World, object: &Self, _: bool) {
        world.touch_uid(object.labels().get(JOB_UID_LABEL));
    }
}

impl Kind for Node {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.nodes
    }

    fn touched(world: &mut World, _: &Self, _: bool) {
        world.changed = true;
    }
}

impl Kind for CacheNode {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.cache_nodes
    }

    // What is cached where is looked at with the next plan, and not a reason for one.
    fn touched(_: &mut World, _: &Self, _: bool) {}
}

impl Kind for Dataset {
    fn kept(world: &mut World) -> &mut Kept<Self> {
        &mut world.datasets
    }

    fn touched(world: &mut World, object: &Self, _: bool) {
        let wants = |job: &&Job| {
            let wanted = job.spec.dataset.as_ref();
            wanted.is_some_and(|wanted| wanted.name == object.name_any())
        };
        let keys: Vec<_> = world
            .jobs
            .values()
            .filter(wants)
            .map(|job| job.key.clone())
            .collect();
        world.changed |= !keys.is_empty();
        world.dirty.extend(keys);
    }
}

/// The job that an object of `trackbed.io/v1` is.
pub fn job_of(object: &Caffe2Job) -> Job {
    let spec = object.spec.clone();
    job(object, JobKind::Trackbed, spec, None, object.status.clone())
}

/// The job that an object of `kubeflow.org/v1alpha1` is.
pub fn kubeflow_job_of(object: &KubeflowCaffe2Job) -> Job {
    let prefix = object.spec.wanted_run_id().map(str::to_owned);
    let spec = converted(&object.spec);
    job(
        object,
        JobKind::Kubeflow,
        spec,
        prefix,
        object.status.clone(),
    )
}

fn job(
    object: &impl Resource,
    kind: JobKind,
    spec: crate::api::Caffe2JobSpec,
    run_id_prefix: Option<String>,
    status: Option<crate::api::Caffe2JobStatus>,
) -> Job {
    let metadata = object.meta();
    let (namespace, name) = name_of(object);
    Job {
        key: JobKey {
            kind,
            namespace,
            name,
        },
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or(1),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0)
            .unwrap_or_default(),
        deleting: metadata.deletion_timestamp.is_some(),
        has_finalizer: object.finalizers().iter().any(|it| it == FINALIZER),
        spec,
        run_id_prefix,
        status: status.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        let metadata = json!({ "name": name, "namespace": "a", "uid": uid,
            "resourceVersion": version.to_string(), "labels": { JOB_UID_LABEL: "job" } });
        serde_json::from_value(json!({ "metadata": metadata })).expect("a pod")
    }

    fn versions(world: &World) -> Vec<(String, u64)> {
        let pods = world.pods_of("job");
        pods.map(|pod| (pod.uid().unwrap_or_default(), version(pod)))
            .collect()
    }

    #[test]
    fn what_was_written_is_known_at_once_and_late_news_change_nothing() {
        let mut world = World::default();
        world.apply(Change::Written(pod("p", "1", 7)));
        world.apply(Change::There(pod("p", "1", 5)));
        assert_eq!(versions(&world), [("1".to_owned(), 7)]);
        // It goes, and an answer and an event that were on their way come after that.
        world.apply(Change::Gone(pod("p", "1", 9)));
        world.apply(Change::Written(pod("p", "1", 8)));
        world.apply(Change::There(pod("p", "1", 8)));
        assert!(versions(&world).is_empty());
        world.apply(Change::There(pod("p", "2", 10)));
        // That the first one went, said again, is not about the second.
        world.apply(Change::Gone(pod("p", "1", 9)));
        assert_eq!(versions(&world), [("2".to_owned(), 10)]);
    }

    #[test]
    fn a_list_that_was_asked_for_before_a_write_does_not_undo_it() {
        let mut world = World::default();
        world.apply(Change::There(pod("old", "1", 1)));
        world.apply::<Pod>(Change::ListBegins);
        world.apply(Change::Written(pod("new", "2", 5)));
        world.apply(Change::Listed(pod("other", "3", 2)));
        world.apply::<Pod>(Change::ListEnds);
        let uids: Vec<_> = versions(&world).into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(
            uids,
            ["2", "3"],
            "what the list does not have has gone, but what is newer"
        );
    }
}
