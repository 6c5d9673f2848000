//! What Kubernetes asks of pods beyond their schema: what may change in one, when it may be bound, and that
//! one which a kubelet has goes when that kubelet says so.
//!
//! From "Pod Scheduling Readiness" in the Kubernetes documentation: gates can be taken away and not added;
//! while there are some, node selectors and required node affinity may get narrower, each of the ORed terms
//! by itself; afterwards they stay. The patch that takes the last gate may narrow them too.

use serde_json::{Value, json};

use crate::answer::Refusal;

/// What of a pod's spec an update may change, by rules of its own here.
const MAY_CHANGE: [&str; 3] = ["schedulingGates", "affinity", "nodeSelector"];

/// Where the terms are that a pod's node has to match.
pub(crate) const REQUIRED: &str =
    "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// Checks a new pod, or what became of one by an update.
pub(crate) fn check(pod: &Value, before: Option<&Value>, what: &str) -> Result<(), Refusal> {
    let mut mistakes = Vec::new();
    let mut wrong = |path: &str, why: &str| mistakes.push((format!("spec{path}"), why.to_owned()));
    let spec = &pod["spec"];
    let gates = |spec: &Value| {
        spec["schedulingGates"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    for term in terms(spec) {
        for field in items(&term["matchFields"]) {
            let one = items(&field["values"]).len() == 1;
            if field["key"] != "metadata.name" || !one {
                wrong(REQUIRED, "matchFields has metadata.name with one value");
            }
        }
    }
    match before.map(|before| &before["spec"]) {
        None => {
            if !gates(spec).is_empty() && spec["nodeName"].is_string() {
                wrong(
                    "/nodeName",
                    "cannot be set until all schedulingGates have been cleared",
                );
            }
            if items(&spec["containers"]).is_empty() {
                wrong("/containers", "Required value");
            }
        }
        Some(old) => {
            if rest(spec) != rest(old) {
                wrong("", "pod updates may not change this field");
            }
            let held = gates(old);
            if gates(spec).iter().any(|gate| !held.contains(gate)) {
                wrong("/schedulingGates", "only deletion is allowed");
            }
            let moved =
                spec["affinity"] != old["affinity"] || spec["nodeSelector"] != old["nodeSelector"];
            if moved && held.is_empty() {
                wrong("/affinity", "field is immutable");
            } else if moved && !is_narrower(spec, old) {
                wrong(
                    "/affinity",
                    "only additions are allowed (no mutations or deletions)",
                );
            }
        }
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Refusal::invalid(what, mistakes)),
    }
}

/// The pod on this node, if it may be bound.
pub(crate) fn bound(pod: &Value, node: &str, what: &str) -> Result<Value, Refusal> {
    let refuse = |why: &str| Err(Refusal::conflict(format!("{what}: {why}")));
    if !items(&pod["spec"]["schedulingGates"]).is_empty() {
        return refuse("the pod has non-empty .spec.schedulingGates");
    }
    if pod["spec"]["nodeName"].is_string() {
        return refuse("the pod is already assigned to a node");
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return refuse("the pod is being deleted, cannot be assigned to a host");
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    Ok(pod)
}

/// Whether a kubelet has to end it before it can go.
pub(crate) fn has_a_kubelet(pod: &Value) -> bool {
    let over = ["Succeeded", "Failed"];
    let phase = pod["status"]["phase"].as_str();
    pod["spec"]["nodeName"].is_string() && !phase.is_some_and(|phase| over.contains(&phase))
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn terms(spec: &Value) -> &[Value] {
    spec.pointer(REQUIRED).map_or(&[], items)
}

fn rest(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|name, _| !MAY_CHANGE.contains(&name.as_str()));
    }
    spec
}

/// Whether this allows no node that the other did not.
fn is_narrower(new: &Value, old: &Value) -> bool {
    let kept = |part: &Value, of: &Value| {
        let labels = of.as_object().into_iter().flatten();
        labels
            .into_iter()
            .all(|(name, value)| part.get(name) == Some(value))
    };
    if !kept(&new["nodeSelector"], &old["nodeSelector"]) {
        return false;
    }
    let without_required = |spec: &Value| {
        let mut affinity = spec["affinity"].clone();
        if affinity.is_object() {
            affinity["nodeAffinity"] = json!(null);
        }
        (!affinity.is_null()).then_some(affinity)
    };
    let empty = Some(json!({ "nodeAffinity": null }));
    if without_required(new).or(empty.clone()) != without_required(old).or(empty) {
        return false;
    }
    let (new, old) = (terms(new), terms(old));
    let extends = |(new, old): (&Value, &Value)| {
        ["matchExpressions", "matchFields"].iter().all(|part| {
            let new = items(&new[part]);
            items(&old[part]).iter().all(|rule| new.contains(rule))
        })
    };
    old.is_empty() || (new.len() == old.len() && new.iter().zip(old).all(extends))
}
