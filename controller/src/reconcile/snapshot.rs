//! The planner's view of a world.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::RAIL_GROUP_LABEL;
use super::config::ControllerConfig;
use super::requests::{NAME_LABEL, constraint, effect, of_node, of_pod};
use super::world::World;
use crate::api::caffe2job::Placed;
use crate::api::{RACK_LABEL, ZONE_LABEL};
use crate::job::{Job, JobKey, Member, members, pod_name, pod_view, wants_nodes};
use crate::plan::{
    Amounts, CachedDataset, DatasetNeed, Gang, HardwareId, Millis, Node as PlanNode, NodeId, Quota,
    Role, Running, Snapshot, Taint,
};

/// What the planner looks at, and which jobs it is about.
#[derive(Default)]
pub struct Picture {
    /// The cluster.
    pub snapshot: Snapshot,
    /// The gangs that wait.
    pub queue: Vec<Gang>,
    /// The job of each.
    pub keys: Vec<JobKey>,
    /// The job of each of the snapshot's running gangs.
    pub running: Vec<JobKey>,
    /// Jobs that cannot be planned for, and why.
    pub refused: Vec<(JobKey, String)>,
}

/// The picture of a world; `assumed` are placements that are on their way into jobs' statuses.
pub fn picture(
    world: &World,
    config: &ControllerConfig,
    assumed: &BTreeMap<JobKey, Vec<Placed>>,
) -> Picture {
    let mut painter = Painter {
        world,
        config,
        picture: Picture::default(),
        nodes: HashMap::new(),
        datasets: HashMap::new(),
    };
    painter.teams();
    for node in world.nodes.all() {
        painter.node(node);
    }
    for pod in world.pods.all() {
        painter.held(pod);
    }
    for job in world.jobs() {
        match assumed.get(&job.key) {
            Some(placement) => painter.running(job, placement),
            None if !job.status.placement.is_empty() => painter.running(job, &job.status.placement),
            None => painter.waiting(job),
        }
    }
    painter.picture
}

struct Painter<'w> {
    world: &'w World,
    config: &'w ControllerConfig,
    picture: Picture,
    nodes: HashMap<String, NodeId>,
    datasets: HashMap<(String, String), usize>,
}

impl Painter<'_> {
    fn teams(&mut self) {
        let snapshot = &mut self.picture.snapshot;
        for hardware in &self.config.hardware {
            snapshot.hardware(&hardware.name, hardware.speed);
        }
        for team in &self.config.teams {
            let id = snapshot.team(&team.name);
            for (hardware, quota) in &team.quotas {
                let hardware = snapshot.hardware(hardware, 1.0);
                let quota = Quota {
                    nominal: quota.nominal,
                    borrow: quota.borrow,
                };
                snapshot.teams[id.0 as usize].quotas.insert(hardware, quota);
            }
        }
    }

    fn node(&mut self, node: &Node) {
        let snapshot = &mut self.picture.snapshot;
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let room = of_node(allocatable, self.config, snapshot);
        let labels = node.labels();
        let named = labels.get(&self.config.hardware_label).map(String::as_str);
        let hardware = named.unwrap_or(if room.gpus > 0 { "unnamed" } else { "" });
        let hardware = snapshot.hardware(hardware, 1.0);
        let name = node.name_any();
        let mut planned = PlanNode::new(&name, hardware, room);
        planned.labels = labels.clone();
        planned.labels.insert(NAME_LABEL.to_owned(), name.clone());
        // A rack is known by its zone and name: two zones may call theirs alike.
        planned.rack = labels.get(RACK_LABEL).map(|rack| {
            let zone = labels.get(ZONE_LABEL).map_or("", String::as_str);
            snapshot.domain(&format!("{zone}/{rack}"))
        });
        let rails = labels.get(RAIL_GROUP_LABEL);
        planned.rail_group = rails.map(|group| snapshot.domain(&format!("rails/{group}")));
        let spec = node.spec.as_ref();
        let taints = spec
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default();
        planned.taints = taints
            .iter()
            .filter_map(|taint| {
                Some(Taint {
                    key: taint.key.clone(),
                    value: taint.value.clone().unwrap_or_default(),
                    effect: effect(&taint.effect)?,
                })
            })
            .collect();
        planned.unusable = unusable(node);
        let cache = self.world.cache_nodes.get(&(String::new(), name.clone()));
        let free = cache.and_then(|cache| cache.status.as_ref()?.free_bytes);
        planned.cache_free = free.map_or(u64::MAX, |free| u64::try_from(free).unwrap_or(0));
        let id = NodeId(snapshot.nodes.len() as u32);
        snapshot.nodes.push(planned);
        self.nodes.insert(name, id);
    }

    /// Takes from a node what a pod on it holds, whoever made that.
    fn held(&mut self, pod: &Pod) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
        let Some(id) = node.and_then(|node| self.nodes.get(node)).copied() else {
            return;
        };
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return;
        }
        let asked = of_pod(pod, self.config, &mut self.picture.snapshot);
        self.picture.snapshot.nodes[id.0 as usize]
            .free
            .take(&asked, 1);
        if pod.metadata.deletion_timestamp.is_some() {
            self.picture.snapshot.leaving.push((id, asked));
        }
    }

    /// A gang that has nodes: what it holds of each, its pods there or on their way.
    fn running(&mut self, job: &Job, placement: &[Placed]) {
        let mut holds: BTreeMap<NodeId, Amounts> = BTreeMap::new();
        let pods: HashMap<_, _> = self
            .world
            .pods_of(&job.uid)
            .map(|pod| (pod.name_any(), pod))
            .collect();
        for placed in placement {
            let (Some(id), Some(pod)) = (self.nodes.get(&placed.node), pods.get(&placed.pod))
            else {
                continue;
            };
            let view = pod_view(pod);
            if view.is_over() {
                continue;
            }
            let asked = of_pod(pod, self.config, &mut self.picture.snapshot);
            if view.node.is_none() {
                let node = &mut self.picture.snapshot.nodes[id.0 as usize];
                node.free.take(&asked, 1);
            }
            holds.entry(*id).or_default().give(&asked, 1);
        }
        let first = holds.keys().next();
        let hardware = first.map_or(HardwareId(0), |id| self.picture.snapshot.node(*id).hardware);
        if self.picture.snapshot.hardware.is_empty() {
            self.picture.snapshot.hardware("", 1.0);
        }
        let team = self.picture.snapshot.team(team_of(job));
        let status = &job.status;
        let began = status.start_time.as_ref().or(status.placed_at.as_ref());
        let started = began.map_or(0, |began| began.0.as_millisecond());
        self.picture.running.push(job.key.clone());
        self.picture.snapshot.running.push(Running {
            name: job.key.to_string(),
            team,
            priority: job.spec.priority,
            hardware,
            started,
            ends: run_time(job).map(|run_time| started.saturating_add(run_time)),
            holds: holds.into_iter().collect(),
            reclaimable: true,
        });
    }

    fn waiting(&mut self, job: &Job) {
        let seen = self.world.observed(job);
        if !wants_nodes(job, &seen) {
            return;
        }
        if let Some(why) = self.config.unknown_team(team_of(job)) {
            return self.picture.refused.push((job.key.clone(), why));
        }
        let avoid: Vec<_> = job
            .status
            .mistrusted
            .iter()
            .map(|it| it.node.clone())
            .collect();
        let pods: HashMap<_, _> = self
            .world
            .pods_of(&job.uid)
            .map(|pod| (pod.name_any(), pod))
            .collect();
        let mut roles = Vec::new();
        for role in &job.spec.roles {
            let first = Member {
                role,
                index: 0,
                shard: 0,
            };
            // As it was admitted, which may be more than its template.
            let pod = pods.get(&pod_name(&job.key, job.status.attempt, &first));
            let Some((pod, spec)) = pod.and_then(|pod| Some((pod, pod.spec.as_ref()?))) else {
                return;
            };
            roles.push(Role {
                name: role.name.clone(),
                count: role.replicas.unsigned_abs(),
                request: of_pod(pod, self.config, &mut self.picture.snapshot),
                constraint: constraint(spec, &avoid),
            });
        }
        let team = self.picture.snapshot.team(team_of(job));
        let queued = job.status.queued_at.as_ref();
        let submitted = queued.map_or(0, |queued| queued.0.as_millisecond());
        let mut gang = Gang::new(&job.key.to_string(), team, submitted, roles);
        gang.priority = job.spec.priority;
        gang.run_time = run_time(job);
        gang.dataset = self.dataset(job);
        self.picture.queue.push(gang);
        self.picture.keys.push(job.key.clone());
    }

    fn dataset(&mut self, job: &Job) -> Option<DatasetNeed> {
        let dataset = self.world.dataset_of(job)?;
        let wanted = job.spec.dataset.as_ref()?;
        let name = (dataset.namespace().unwrap_or_default(), dataset.name_any());
        let known = self.datasets.get(&name).copied();
        let index = known.unwrap_or_else(|| {
            let status = dataset.status.as_ref();
            let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
            let on = status.into_iter().flat_map(|status| &status.nodes);
            let on = on.filter_map(|on| Some((*self.nodes.get(&on.node)?, bytes(on.bytes))));
            let share = status.and_then(|status| status.cached_percent).unwrap_or(0);
            let datasets = &mut self.picture.snapshot.datasets;
            datasets.push(CachedDataset {
                name: format!("{}/{}", name.0, name.1),
                bytes: status.and_then(|status| status.bytes).map_or(0, bytes),
                on: on.collect(),
                cached_share: f64::from(share) / 100.0,
                origin: None,
                warming: dataset.spec.warm_up.is_some(),
            });
            self.datasets.insert(name, datasets.len() - 1);
            datasets.len() - 1
        });
        Some(DatasetNeed {
            dataset: index,
            warm_share: f64::from(wanted.warm_share) / 100.0,
        })
    }
}

/// Why a node takes no pods, if it takes none.
fn unusable(node: &Node) -> Option<String> {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Some("it is cordoned".to_owned());
    }
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|it| it.type_ == "Ready");
    match ready {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(format!(
            "it is not ready: {}",
            ready.message.as_deref().unwrap_or("it does not say why")
        )),
        None => Some("it has not said that it is ready".to_owned()),
    }
}

fn team_of(job: &Job) -> &str {
    job.spec.team.as_deref().unwrap_or(&job.key.namespace)
}

fn run_time(job: &Job) -> Option<Millis> {
    job.spec
        .expected_run_time_seconds
        .map(|seconds| seconds.saturating_mul(1000))
}

impl Picture {
    /// A node for each member's pod, of an admission of the planner.
    pub fn nodes(&self, admission: &crate::plan::Admission) -> Vec<String> {
        let ids = admission.nodes.iter().flatten();
        ids.map(|id| self.snapshot.node(*id).name.clone()).collect()
    }
}

/// The placement that nodes for a job's pods make.
pub(super) fn placed(job: &Job, nodes: &[String]) -> Vec<Placed> {
    let names = members(job).map(|member| pod_name(&job.key, job.status.attempt, &member));
    let placed = names.zip(nodes).map(|(pod, node)| Placed {
        pod,
        node: node.clone(),
    });
    placed.collect()
}
