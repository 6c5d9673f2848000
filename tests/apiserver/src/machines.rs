//! Nodes for tests: a scheduler that binds pods as kube-scheduler would, and kubelets that run and end them,
//! or do not, as the test wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::store::Key;
use crate::write::Write;
use crate::{ApiServer, Shared, pods};

/// The resource that is counted.
const GPU: &str = "nvidia.com/gpu";

/// Nodes with a scheduler and kubelets; dropping it ends those.
pub struct Machines {
    shared: Arc<Shared>,
    wishes: Arc<Wishes>,
    running: JoinHandle<()>,
}

#[derive(Default)]
struct Wishes {
    refusing: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Machines {
    /// Starts a scheduler and kubelets for the nodes of this server. Must be called in a tokio runtime.
    pub fn start(server: &ApiServer) -> Machines {
        let wishes = Arc::new(Wishes::default());
        let shared = server.shared.clone();
        Machines {
            running: tokio::spawn(run(shared.clone(), wishes.clone())),
            shared,
            wishes,
        }
    }

    /// Adds a ready node with so many accelerators.
    pub fn add(&self, server: &ApiServer, name: &str, gpus: u32) {
        server.create(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }));
        let room = json!({ "cpu": "64", "memory": "512Gi", "pods": "110", GPU: gpus.to_string() });
        server.merge_status(
            "Node",
            "",
            name,
            &json!({ "status": { "allocatable": room, "capacity": room,
                "conditions": [{ "type": "Ready", "status": "True" }] } }),
        );
        self.wishes.changed.notify_one();
    }

    /// Lets a node take no more pods, though nobody can see why, or take them again.
    pub fn refuse(&self, node: &str, refuse: bool) {
        let mut refusing = self.wishes.refusing.lock();
        match refuse {
            true => refusing.insert(node.to_owned()),
            false => refusing.remove(node),
        };
        self.wishes.changed.notify_one();
    }

    /// A pod of somebody else takes a node's accelerators, without asking a scheduler.
    pub fn steal(&self, server: &ApiServer, name: &str, node: &str, gpus: u32) {
        server.create(&json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "others" },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i",
                "resources": { "limits": { GPU: gpus.to_string() } } }] } }));
    }

    /// Says how a running pod has ended.
    pub fn end(&self, namespace: &str, pod: &str, phase: &str) {
        let mut target = self.shared.kinds.named("Pod", namespace, pod);
        target.subresource = Some("status".to_owned());
        let write = Write::merge(json!({ "status": { "phase": phase } }), "kubelet");
        // It may have gone meanwhile.
        let _ = write.carry_out(
            self.shared.kinds.resource(&target),
            &target,
            &self.shared.store,
        );
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// What the scheduler knows.
#[derive(Default)]
struct Known {
    version: u64,
    nodes: BTreeMap<String, u64>,
    /// Pods that have a node: it, and what they take there.
    taken: BTreeMap<Key, (String, u64)>,
    waiting: BTreeMap<Key, Arc<Value>>,
}

async fn run(shared: Arc<Shared>, wishes: Arc<Wishes>) {
    let mut changes = shared.store.changes();
    let mut known = Known::default();
    loop {
        let events = match shared.store.since(known.version) {
            Ok(events) => events
                .into_iter()
                .map(|event| (event.version, event.key, event.after))
                .collect(),
            Err(_) => {
                let (all, version) = shared.store.all(|_| true);
                known = Known::default();
                all.into_iter()
                    .map(|(key, object)| (version, key, Some(object)))
                    .collect::<Vec<_>>()
            }
        };
        for (version, key, object) in events {
            known.version = version;
            known.take(&shared, key, object);
        }
        known.schedule(&shared, &wishes.refusing.lock().clone());
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = wishes.changed.notified() => {}
        }
    }
}

impl Known {
    fn take(&mut self, shared: &Shared, key: Key, object: Option<Arc<Value>>) {
        let target = shared.kinds.target_at(&key);
        let resource = shared.kinds.resource(&target);
        if resource.plural == "nodes" {
            match object {
                Some(node) => {
                    let gpus = count(&node["status"]["allocatable"][GPU]);
                    let cordoned = node["spec"]["unschedulable"] == true;
                    self.nodes.insert(key.name, if cordoned { 0 } else { gpus });
                }
                None => {
                    self.nodes.remove(&key.name);
                }
            }
        } else if resource.is_pods() {
            self.waiting.remove(&key);
            self.taken.remove(&key);
            if let Some(pod) = object {
                self.pod(shared, key, pod);
            }
        }
    }

    fn pod(&mut self, shared: &Shared, key: Key, pod: Arc<Value>) {
        let leaving = pod["metadata"]["deletionTimestamp"].is_string();
        let Some(node) = pod["spec"]["nodeName"].as_str() else {
            if !leaving
                && pod["spec"]["schedulingGates"]
                    .as_array()
                    .is_none_or(Vec::is_empty)
            {
                self.waiting.insert(key, pod);
            }
            return;
        };
        let write = |subresource: Option<&str>, write: Write| {
            let mut target = shared.kinds.target_at(&key);
            target.subresource = subresource.map(str::to_owned);
            // It may have gone meanwhile.
            let _ = write.carry_out(shared.kinds.resource(&target), &target, &shared.store);
        };
        if leaving {
            write(None, Write::delete_if(&json!({ "gracePeriodSeconds": 0 })));
        } else if pods::has_a_kubelet(&pod) {
            if pod["status"]["phase"] != "Running" {
                let running = json!({ "status": { "phase": "Running",
                    "conditions": [{ "type": "Ready", "status": "True" }] } });
                write(Some("status"), Write::merge(running, "kubelet"));
            }
            self.taken.insert(key, (node.to_owned(), asked(&pod)));
        }
    }

    fn schedule(&mut self, shared: &Shared, refusing: &BTreeSet<String>) {
        let waiting: Vec<_> = self
            .waiting
            .iter()
            .map(|(key, pod)| (key.clone(), pod.clone()))
            .collect();
        for (key, pod) in waiting {
            let pinned = pinned(&pod);
            let asked = asked(&pod);
            let fits = |node: &&String| {
                let held = self.taken.values().filter(|(at, _)| at == *node);
                let held: u64 = held.map(|(_, gpus)| gpus).sum();
                pinned.as_ref().is_none_or(|pinned| pinned == *node)
                    && !refusing.contains(*node)
                    && self
                        .nodes
                        .get(*node)
                        .is_some_and(|gpus| held + asked <= *gpus)
            };
            let Some(node) = self.nodes.keys().find(fits).cloned() else {
                continue;
            };
            let target = shared.kinds.target_at(&key);
            let bound = Write::bind(&node).carry_out(
                shared.kinds.resource(&target),
                &target,
                &shared.store,
            );
            if bound.is_ok() {
                self.waiting.remove(&key);
                self.taken.insert(key, (node, asked));
            }
        }
    }
}

fn count(quantity: &Value) -> u64 {
    let text = quantity.as_str().and_then(|text| text.parse().ok());
    text.or(quantity.as_u64()).unwrap_or(0)
}

fn asked(pod: &Value) -> u64 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers
        .map(|it| count(&it["resources"]["limits"][GPU]))
        .sum()
}

/// The node that a pod's affinity names.
fn pinned(pod: &Value) -> Option<String> {
    let terms = pod
        .pointer(&format!("/spec{}", pods::REQUIRED))?
        .as_array()?;
    let name = &terms.first()?["matchFields"][0]["values"][0];
    name.as_str().map(str::to_owned)
}
