//! Where the pods of an attempt meet: what they are told, and the redis that is started for them.

use serde_json::{Value, json};

use super::members::{address, service_name};
use super::pods::labels;
use super::{Job, Settings};
use crate::api::caffe2job::{Rendezvous, RendezvousType};

/// Says that a pod is the rendezvous of its attempt.
pub(super) const LABEL: &str = "trackbed.io/rendezvous";

/// Its host name. No member has it: theirs end with a number.
const HOST: &str = "rendezvous";

/// How the pods of this job find each other.
pub(super) fn of(job: &Job) -> Rendezvous {
    let pods: i32 = job.spec.roles.iter().map(|role| role.replicas).sum();
    let usual = match pods {
        1 => RendezvousType::None,
        _ => RendezvousType::Redis,
    };
    let said = job.spec.rendezvous.clone();
    said.unwrap_or_else(|| Rendezvous::of(usual))
}

/// Whether a redis is started for the job.
pub(super) fn is_started(job: &Job) -> bool {
    of(job).kind == RendezvousType::Redis
}

/// `REDIS_HOST`, `REDIS_PORT` and `NFS_PATH`: empty where there is none.
pub(super) fn environment(job: &Job) -> [(&'static str, String); 3] {
    let meant = of(job);
    let (host, port) = match meant.kind {
        RendezvousType::Redis => (address(job, HOST), meant.port.to_string()),
        RendezvousType::ExistingRedis => (meant.host.unwrap_or_default(), meant.port.to_string()),
        RendezvousType::None | RendezvousType::FileStore => Default::default(),
    };
    [
        ("REDIS_HOST", host),
        ("REDIS_PORT", port),
        ("NFS_PATH", meant.path.unwrap_or_default()),
    ]
}

/// The name of an attempt's redis. No member has it: theirs end with a number.
pub(super) fn pod_name(job: &Job, attempt: i64) -> String {
    format!("{}-{attempt}-{HOST}", job.key.name)
}

/// An attempt's redis: it keeps nothing on a disk, and ends with the attempt.
pub(super) fn pod(job: &Job, attempt: i64, settings: &Settings) -> Value {
    let meant = of(job);
    let image = meant.image.as_ref().unwrap_or(&settings.redis_image);
    let mut labels = labels(job, attempt);
    labels.insert(LABEL.to_owned(), "redis".to_owned());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(job, attempt),
            "namespace": job.key.namespace,
            "labels": labels,
            "ownerReferences": [super::pods::owner(job)],
        },
        "spec": {
            "restartPolicy": "Never",
            "hostname": HOST,
            "subdomain": service_name(job),
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "redis",
                "image": image,
                "command": ["redis-server"],
                "args": ["--port", meant.port.to_string(), "--save", "", "--appendonly", "no",
                    "--protected-mode", "no"],
                "workingDir": "/tmp",
                "ports": [{ "name": "redis", "containerPort": meant.port, "protocol": "TCP" }],
                "readinessProbe": { "tcpSocket": { "port": meant.port }, "periodSeconds": 1 },
                "resources": { "requests": { "cpu": "50m", "memory": "64Mi" },
                    "limits": { "memory": "256Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}
