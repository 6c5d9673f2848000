//! From a manifest for kubeflow's operator to what it means.

use super::kubeflow::{self, BackendType};
use super::spec::{Caffe2JobSpec, Chief, Network, Rendezvous, RendezvousType, Role, RunPolicy};

/// The one role that kubeflow's jobs have.
const WORKER: &str = "worker";

/// The `trackbed.io/v1` spec of a kubeflow job, with the operator's defaults: one replica; no rendezvous
/// for one pod, redis for more, which is started for the job where no host is named; the first worker is
/// chief. What it did wrong is not taken over: a failed job is tried again, with `runPolicy`'s default.
pub fn converted(job: &kubeflow::Caffe2JobSpec) -> Caffe2JobSpec {
    let replicas = job.replica_specs.replicas.unwrap_or(1);
    let role = Role {
        name: WORKER.to_owned(),
        replicas,
        template: job.replica_specs.template.clone(),
    };
    let chief = job
        .termination_policy
        .as_ref()
        .and_then(|policy| policy.chief.as_ref());
    Caffe2JobSpec {
        roles: vec![role],
        chief: Some(Chief {
            role: WORKER.to_owned(),
            index: chief.map_or(0, |chief| chief.replica_index),
        }),
        run_policy: RunPolicy::default(),
        rendezvous: Some(rendezvous(job, replicas)),
        network: Network::default(),
        dataset: None,
        priority: 0,
        team: None,
        expected_run_time_seconds: None,
    }
}

fn rendezvous(job: &kubeflow::Caffe2JobSpec, replicas: i32) -> Rendezvous {
    let backend = job.backend_specs.clone().unwrap_or_default();
    let usual = match replicas {
        1 => BackendType::None,
        _ => BackendType::Redis,
    };
    let host = backend.redis_host.filter(|host| !host.is_empty());
    let mut meant = match backend.backend_type.unwrap_or(usual) {
        BackendType::None => Rendezvous::of(RendezvousType::None),
        BackendType::Nfs => Rendezvous {
            path: backend.nfs_path,
            ..Rendezvous::of(RendezvousType::FileStore)
        },
        BackendType::Redis if host.is_none() => Rendezvous::of(RendezvousType::Redis),
        BackendType::Redis => Rendezvous {
            host,
            ..Rendezvous::of(RendezvousType::ExistingRedis)
        },
    };
    meant.port = backend.redis_port.unwrap_or(meant.port);
    meant
}

impl kubeflow::Caffe2JobSpec {
    /// What RUN_IDs are to begin with, if the manifest says so.
    pub fn wanted_run_id(&self) -> Option<&str> {
        let named = self.runtime_id_as_was.as_deref();
        named
            .or(self.runtime_id.as_deref())
            .filter(|id| !id.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::CleanPodPolicy;
    use super::*;
    use serde_json::{Value, json};

    fn spec(mut spec: Value) -> kubeflow::Caffe2JobSpec {
        let template = json!({ "spec": { "containers": [{ "name": "caffe2" }] } });
        spec["replicaSpecs"]["template"] = template;
        serde_json::from_value(spec).expect("a spec")
    }

    #[test]
    fn a_job_that_says_little_is_one_worker_without_rendezvous() {
        let meant = converted(&spec(json!({})));
        assert_eq!((meant.roles.len(), meant.roles[0].replicas), (1, 1));
        assert_eq!(meant.roles[0].name, "worker");
        let chief = meant.chief.expect("a chief");
        assert_eq!((chief.role.as_str(), chief.index), ("worker", 0));
        let rendezvous = meant.rendezvous.expect("said");
        assert_eq!(rendezvous.kind, RendezvousType::None);
        assert_eq!(meant.run_policy.clean_pod_policy, CleanPodPolicy::Running);
        assert_eq!(meant.run_policy.backoff_limit, 6);
    }

    #[test]
    fn several_workers_meet_by_redis_theirs_or_one_that_is_started() {
        let many = json!({ "replicaSpecs": { "replicas": 2 } });
        let rendezvous = converted(&spec(many)).rendezvous.expect("said");
        assert_eq!(
            (rendezvous.kind, rendezvous.port),
            (RendezvousType::Redis, 6379)
        );
        let theirs = json!({ "replicaSpecs": { "replicas": 2 },
            "backendSpecs": { "backendType": "redis", "redisHost": "redis-service", "redisPort": 6380 } });
        let rendezvous = converted(&spec(theirs)).rendezvous.expect("said");
        assert_eq!(rendezvous.kind, RendezvousType::ExistingRedis);
        assert_eq!(rendezvous.host.as_deref(), Some("redis-service"));
        assert_eq!(rendezvous.port, 6380);
    }

    #[test]
    fn nfs_is_a_shared_folder_and_the_chief_the_one_that_is_named() {
        let job = spec(
            json!({ "replicaSpecs": { "replicas": 3 }, "RuntimeID": "77",
            "backendSpecs": { "backendType": "nfs", "nfsPath": "/share" },
            "terminationPolicy": { "chief": { "replicaName": "WORKER", "replicaIndex": 2 } } }),
        );
        let meant = converted(&job);
        let rendezvous = meant.rendezvous.expect("said");
        assert_eq!(rendezvous.kind, RendezvousType::FileStore);
        assert_eq!(rendezvous.path.as_deref(), Some("/share"));
        assert_eq!(meant.chief.map(|chief| chief.index), Some(2));
        assert_eq!(job.wanted_run_id(), Some("77"));
        let spelt = spec(json!({ "runtimeID": "78" }));
        assert_eq!(spelt.wanted_run_id(), Some("78"));
    }
}
