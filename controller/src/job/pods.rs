//! The pods of an attempt, as they are made, and what lets them go.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use serde_json::{Map, Value, json};

use super::members::{Member, address, host_name, members, pod_name, service_name};
use super::{
    ATTEMPT_LABEL, GATE, INDEX_LABEL, JOB_NAME_LABEL, JOB_UID_LABEL, Job, JobKind, Labels,
    ROLE_LABEL, rendezvous,
};
use crate::api::caffe2job::NetworkMode;

/// The port in CAFFE2_CONFIG.
const CAFFE2_PORT: u16 = 2222;

/// The CSI driver of datasets.
const DRIVER: &str = "csi.trackbed.io";

/// The volume of the job's dataset.
const DATASET_VOLUME: &str = "trackbed-dataset";

/// A template of which no pod can be made.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// It is no PodTemplateSpec.
    #[error("the template of role {role} is no PodTemplateSpec: {why}: correct spec.roles")]
    NoTemplate {
        /// The role.
        role: String,
        /// What is wrong.
        why: String,
    },
    /// It has nothing to run.
    #[error("the template of role {role} has no container: give it one")]
    NoContainer {
        /// The role.
        role: String,
    },
    /// The dataset's volume or mount path is in use.
    #[error(
        "the template of role {role} has a volume named {DATASET_VOLUME} or something mounted at {path}, \
         where the job's dataset is to be: take it out, or choose another spec.dataset.mountPath"
    )]
    MountTaken {
        /// The role.
        role: String,
        /// Where.
        path: String,
    },
}

/// What the pods of an attempt are told, as far as it is the same for all.
pub(super) struct Attempt<'j> {
    pub(super) job: &'j Job,
    pub(super) number: i64,
    pub(super) run_id: &'j str,
    /// Whether they use RDMA.
    pub(super) rdma: bool,
}

/// The reference by which the API server deletes what a job that is gone leaves behind.
pub(super) fn owner(job: &Job) -> Value {
    json!({ "apiVersion": job.key.kind.api_version(), "kind": "Caffe2Job", "name": job.key.name,
        "uid": job.uid, "controller": true })
}

/// What every pod of an attempt is labelled with.
pub(super) fn labels(job: &Job, attempt: i64) -> Labels {
    let labels = [
        (JOB_UID_LABEL, job.uid.clone()),
        (JOB_NAME_LABEL, job.key.name.clone()),
        (ATTEMPT_LABEL, attempt.to_string()),
    ];
    labels.map(|(name, value)| (name.to_owned(), value)).into()
}

/// The headless Service by which the pods' hosts resolve, before they are ready too.
pub fn service(job: &Job) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(job),
            "namespace": job.key.namespace,
            "labels": { JOB_UID_LABEL: job.uid, JOB_NAME_LABEL: job.key.name },
            "ownerReferences": [owner(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": { JOB_UID_LABEL: job.uid },
            "ports": [{ "name": "caffe2", "port": CAFFE2_PORT, "protocol": "TCP" }],
        },
    })
}

/// Whether a job's pods use RDMA, in a cluster that has the resource or not.
pub(super) fn uses_rdma(job: &Job, available: bool) -> bool {
    match job.spec.network.mode {
        NetworkMode::Rdma => true,
        NetworkMode::Tcp => false,
        NetworkMode::Auto => available,
    }
}

/// A member's pod, behind the gate, with RDMA devices or without.
pub fn gated_pod(
    job: &Job,
    attempt: i64,
    run_id: &str,
    rdma: bool,
    member: &Member<'_>,
) -> Result<Value, PodError> {
    let attempt = Attempt {
        job,
        number: attempt,
        run_id,
        rdma,
    };
    attempt.pod(member)
}

impl Attempt<'_> {
    fn pod(&self, member: &Member<'_>) -> Result<Value, PodError> {
        let role = || member.role.name.clone();
        let template = &member.role.template;
        let typed: Result<PodTemplateSpec, _> = serde_json::from_value(template.clone());
        let typed = typed.map_err(|error| PodError::NoTemplate {
            role: role(),
            why: error.to_string(),
        })?;
        if typed.spec.is_none_or(|spec| spec.containers.is_empty()) {
            return Err(PodError::NoContainer { role: role() });
        }
        // What this build does not know of pods is kept, which the typed template would drop.
        let mut spec = template["spec"].clone();
        spec["restartPolicy"] = "Never".into();
        spec["hostname"] = host_name(&member.role.name, member.index).into();
        spec["subdomain"] = service_name(self.job).into();
        // Hosts of the cluster resolve for pods on the host's network only so.
        if spec["hostNetwork"] == true && spec["dnsPolicy"].is_null() {
            spec["dnsPolicy"] = "ClusterFirstWithHostNet".into();
        }
        list(&mut spec, "schedulingGates").push(json!({ "name": GATE }));
        let environment = self.environment(member);
        each_container(&mut spec, |container| tell(container, &environment));
        if self.rdma {
            self.give_rdma(&mut spec);
        }
        self.mount(&mut spec, member)?;
        let mut metadata = template["metadata"].clone();
        if !metadata.is_object() {
            metadata = json!({});
        }
        for field in ["generateName", "finalizers"] {
            metadata.as_object_mut().map(|fields| fields.remove(field));
        }
        metadata["name"] = pod_name(&self.job.key, self.number, member).into();
        metadata["namespace"] = self.job.key.namespace.clone().into();
        metadata["ownerReferences"] = json!([owner(self.job)]);
        for (name, value) in self.labels(member) {
            metadata["labels"][name] = value.into();
        }
        Ok(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
    }

    fn labels(&self, member: &Member<'_>) -> Labels {
        let mut labels = labels(self.job, self.number);
        labels.insert(ROLE_LABEL.to_owned(), member.role.name.clone());
        labels.insert(INDEX_LABEL.to_owned(), member.index.to_string());
        if self.job.key.kind == JobKind::Kubeflow {
            let run_id = self.job.run_id_prefix.as_deref().unwrap_or(self.run_id);
            let theirs = [
                ("group_name", "kubeflow.org".to_owned()),
                (
                    "caffe2_job_key",
                    format!("{}-{}", self.job.key.namespace, self.job.key.name),
                ),
                ("runtime_id", run_id.to_owned()),
                ("caffe2_replica_type", member.role.name.to_uppercase()),
                ("caffe2_replica_index", member.index.to_string()),
            ];
            let theirs = theirs.into_iter().filter(|(_, value)| is_label(value));
            labels.extend(theirs.map(|(name, value)| (name.to_owned(), value)));
        }
        labels
    }

    fn environment(&self, member: &Member<'_>) -> Vec<(&'static str, String)> {
        let mut environment: Vec<_> = rendezvous::environment(self.job).into();
        let transport = if self.rdma { "ibverbs" } else { "tcp" };
        environment.extend([
            ("SHARD_ID", member.shard.to_string()),
            ("NUM_SHARDS", members(self.job).count().to_string()),
            ("RUN_ID", self.run_id.to_owned()),
            ("DISTRIBUTED_TRANSPORT", transport.to_owned()),
            ("CAFFE2_CONFIG", self.config(member).to_string()),
        ]);
        environment
    }

    /// Who is where, and which of them a pod is.
    fn config(&self, member: &Member<'_>) -> Value {
        let mut cluster = Map::new();
        for other in members(self.job) {
            let host = address(self.job, &host_name(&other.role.name, other.index));
            let hosts = cluster
                .entry(other.role.name.clone())
                .or_insert_with(|| json!([]));
            if let Some(hosts) = hosts.as_array_mut() {
                hosts.push(format!("{host}:{CAFFE2_PORT}").into());
            }
        }
        json!({ "cluster": cluster,
            "task": { "type": member.role.name, "index": member.index } })
    }

    /// Devices for the pod, and the right to lock memory, without which none can be registered. Who asks for
    /// devices in the template gets those.
    fn give_rdma(&self, spec: &mut Value) {
        let network = &self.job.spec.network;
        let containers = list(spec, "containers");
        let asks = |container: &Value| {
            let resources = &container["resources"];
            let asked = |part: &str| resources[part].get(&network.resource).is_some();
            asked("limits") || asked("requests")
        };
        let asking = containers.iter().position(asks);
        let Some(container) = containers.get_mut(asking.unwrap_or(0)) else {
            return;
        };
        if asking.is_none() {
            let amount = network.devices_per_pod.to_string();
            for part in ["limits", "requests"] {
                container["resources"][part][&network.resource] = amount.clone().into();
            }
        }
        let capabilities = &mut container["securityContext"]["capabilities"];
        let added = list(capabilities, "add");
        if !added.iter().any(|name| name == "IPC_LOCK") {
            added.push("IPC_LOCK".into());
        }
    }

    fn mount(&self, spec: &mut Value, member: &Member<'_>) -> Result<(), PodError> {
        let Some(dataset) = &self.job.spec.dataset else {
            return Ok(());
        };
        let path = dataset.mount_path.trim_end_matches('/');
        let taken = || PodError::MountTaken {
            role: member.role.name.clone(),
            path: path.to_owned(),
        };
        let volumes = list(spec, "volumes");
        if volumes
            .iter()
            .any(|volume| volume["name"] == DATASET_VOLUME)
        {
            return Err(taken());
        }
        let namespace = dataset
            .namespace
            .as_ref()
            .unwrap_or(&self.job.key.namespace);
        volumes.push(
            json!({ "name": DATASET_VOLUME, "csi": { "driver": DRIVER, "readOnly": true,
            "volumeAttributes": { "dataset": format!("{namespace}.{}", dataset.name) } } }),
        );
        let mut free = true;
        each_container(spec, |container| {
            let mounts = list(container, "volumeMounts");
            free &= mounts.iter().all(|mount| {
                let at = mount["mountPath"].as_str().unwrap_or_default();
                at.trim_end_matches('/') != path
            });
            mounts.push(json!({ "name": DATASET_VOLUME, "mountPath": path, "readOnly": true }));
        });
        if free { Ok(()) } else { Err(taken()) }
    }
}

/// The list of this name, made if it is not there.
fn list<'v>(object: &'v mut Value, name: &str) -> &'v mut Vec<Value> {
    let field = &mut object[name];
    if !field.is_array() {
        *field = json!([]);
    }
    match field {
        Value::Array(items) => items,
        _ => unreachable!("it was just made one"),
    }
}

fn each_container(spec: &mut Value, mut act: impl FnMut(&mut Value)) {
    for kind in ["initContainers", "containers"] {
        if let Some(containers) = spec[kind].as_array_mut() {
            containers.iter_mut().for_each(&mut act);
        }
    }
    // To ask an object for a field makes it.
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

/// Puts these before the container's own variables, which may refer to them, and in place of its own of
/// these names.
fn tell(container: &mut Value, environment: &[(&'static str, String)]) {
    let own = list(container, "env");
    own.retain(|variable| {
        environment
            .iter()
            .all(|(name, _)| variable["name"] != *name)
    });
    let ours = environment
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }));
    own.splice(0..0, ours);
}

/// Whether this may be a label's value.
fn is_label(value: &str) -> bool {
    let inner = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    let end = |it: Option<char>| it.is_none_or(|it| it.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(inner)
        && end(value.chars().next())
        && end(value.chars().last())
}

/// The merge patch that pins a gated pod to a node and takes its gate away. Each of the terms of its
/// affinity, of which one must hold, gets the node, so that what the user asked for still has to hold too.
pub fn release_patch(pod: &Pod, node: &str) -> Value {
    let spec = serde_json::to_value(&pod.spec).unwrap_or_default();
    let pinned = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    let path = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let terms = spec.pointer(&format!("{path}/nodeSelectorTerms"));
    let mut terms = terms.and_then(Value::as_array).cloned().unwrap_or_default();
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for term in &mut terms {
        list(term, "matchFields").push(pinned.clone());
    }
    let gates = spec["schedulingGates"].as_array().into_iter().flatten();
    let kept: Vec<_> = gates.filter(|gate| gate["name"] != GATE).collect();
    let gates = if kept.is_empty() {
        Value::Null
    } else {
        json!(kept)
    };
    json!({
        "metadata": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        "spec": {
            "schedulingGates": gates,
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution":
                { "nodeSelectorTerms": terms } } },
        },
    })
}
