//! A status' conditions, which follow from its phase.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use crate::api::Caffe2JobStatus;
use crate::api::caffe2job::JobPhase;

/// The longest message of a condition and of the status.
const MAX_MESSAGE: usize = 1024;

/// The conditions beside `Created`, and in which phases they hold.
const HOLD: [(&str, &[JobPhase]); 7] = [
    ("Queued", &[JobPhase::Queued]),
    ("Admitted", &[JobPhase::Admitted, JobPhase::Running]),
    ("Running", &[JobPhase::Running]),
    ("Restarting", &[JobPhase::Restarting]),
    ("Suspended", &[JobPhase::Suspended]),
    ("Succeeded", &[JobPhase::Succeeded]),
    ("Failed", &[JobPhase::Failed]),
];

/// Sets the phase, and the conditions as they are in it. One that has never held is not told of.
pub(super) fn enter(
    status: &mut Caffe2JobStatus,
    phase: JobPhase,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let message = shortened(message);
    status.phase = Some(phase);
    status.message = (!message.is_empty()).then(|| message.clone());
    set(
        status,
        "Created",
        true,
        "Accepted",
        "the controller has taken it on",
        now,
    );
    for (kind, phases) in HOLD {
        let holds = phases.contains(&phase);
        let known = status.conditions.iter().any(|it| it.type_ == kind);
        if holds || known {
            set(status, kind, holds, reason, &message, now);
        }
    }
}

fn set(
    status: &mut Caffe2JobStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let holds = if holds { "True" } else { "False" };
    let at = match status.conditions.iter().position(|it| it.type_ == kind) {
        Some(at) => at,
        None => {
            status.conditions.push(Condition {
                type_: kind.to_owned(),
                status: String::new(),
                reason: String::new(),
                message: String::new(),
                observed_generation: None,
                last_transition_time: Time(now),
            });
            status.conditions.len() - 1
        }
    };
    let condition = &mut status.conditions[at];
    let turned = condition.status != holds;
    // What does not hold keeps saying why it ceased to.
    if turned || holds == "True" {
        condition.reason = reason.to_owned();
        condition.message = message.to_owned();
    }
    if turned {
        condition.status = holds.to_owned();
        condition.last_transition_time = Time(now);
    }
}

fn shortened(message: &str) -> String {
    let mut short: String = message.chars().take(MAX_MESSAGE).collect();
    if short.len() < message.len() {
        short.push('…');
    }
    short
}

/// Whether two statuses say the same but for the words of their messages.
pub(super) fn same_but_for_words(one: &Caffe2JobStatus, other: &Caffe2JobStatus) -> bool {
    let without = |status: &Caffe2JobStatus| {
        let mut status = status.clone();
        status.message = None;
        status.last_reconcile_time = None;
        for condition in &mut status.conditions {
            condition.message.clear();
        }
        status
    };
    without(one) == without(other)
}
