//! What matters of a pod.

use k8s_openapi::api::core::v1::Pod;

use super::{ATTEMPT_LABEL, GATE, rendezvous};

/// The longest that a container's own word on why it failed is repeated.
const MAX_REASON: usize = 300;

/// How a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Its containers do not run yet.
    Pending,
    /// They run.
    Running,
    /// They have ended well.
    Succeeded,
    /// One has not.
    Failed,
}

/// A pod of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The attempt that it belongs to; 0 if it does not say.
    pub attempt: i64,
    /// Whether it is the rendezvous and no member.
    pub rendezvous: bool,
    /// Whether the gang's gate is on it.
    pub gated: bool,
    /// The node that it is bound to.
    pub node: Option<String>,
    /// How it is.
    pub phase: PodPhase,
    /// Whether it is ready for what is asked of it.
    pub ready: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Why it failed, by its own fault or not.
    pub failure: Option<Failure>,
}

/// Why a pod failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// It was evicted, preempted, or its node was lost: not the job's fault.
    pub disrupted: bool,
    /// In words.
    pub why: String,
}

impl PodView {
    /// Whether it has ended, one way or the other.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// Whether it runs or may come to run: no gate keeps it.
    pub fn is_active(&self) -> bool {
        !self.gated && !self.is_over()
    }
}

/// What matters of a pod.
pub fn pod_view(pod: &Pod) -> PodView {
    let metadata = &pod.metadata;
    let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let gates = spec.and_then(|spec| spec.scheduling_gates.as_deref());
    let phase = match status.and_then(|status| status.phase.as_deref()) {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        _ => PodPhase::Pending,
    };
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let holds = |kind: &str| {
        let mut conditions = conditions.unwrap_or_default().iter();
        conditions.any(|condition| condition.type_ == kind && condition.status == "True")
    };
    let attempt = label(ATTEMPT_LABEL).and_then(|attempt| attempt.parse().ok());
    PodView {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        attempt: attempt.unwrap_or(0),
        rendezvous: label(rendezvous::LABEL).is_some(),
        gated: gates
            .unwrap_or_default()
            .iter()
            .any(|gate| gate.name == GATE),
        node: spec
            .and_then(|spec| spec.node_name.clone())
            .filter(|node| !node.is_empty()),
        phase,
        ready: holds("Ready"),
        deleting: metadata.deletion_timestamp.is_some(),
        failure: (phase == PodPhase::Failed).then(|| Failure {
            disrupted: holds("DisruptionTarget"),
            why: why_failed(pod),
        }),
    }
}

fn why_failed(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let ended = containers.unwrap_or_default().iter().find_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then_some((&container.name, ended))
    });
    let text = match (ended, status.and_then(|status| status.reason.as_ref())) {
        (_, Some(reason)) => {
            let message = status.and_then(|status| status.message.as_deref());
            format!("{reason} {}", message.unwrap_or_default())
        }
        (Some((name, ended)), None) => {
            let reason = ended.reason.as_deref().unwrap_or_default();
            let message = ended.message.as_deref().unwrap_or_default();
            format!(
                "container {name} ended with {} {reason} {message}",
                ended.exit_code
            )
        }
        (None, None) => "it does not say why".to_owned(),
    };
    text.trim().chars().take(MAX_REASON).collect()
}
