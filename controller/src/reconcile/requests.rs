//! What pods ask for and nodes have, in the planner's terms.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, NodeSelectorTerm, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::config::ControllerConfig;
use crate::plan::{Amounts, Constraint, Effect, Operator, Requirement, Snapshot, Term, Toleration};

/// Amounts by name, in whole units but for the processor, which is in thousandths.
type Named = BTreeMap<String, u64>;

/// A quantity in units of 10^-3.
fn thousandths(quantity: &Quantity) -> Option<u128> {
    let text = quantity.0.trim();
    let end = text.find(|it: char| !(it.is_ascii_digit() || it == '.'));
    // An exponent's letter is a suffix too: 1e3, but 1E is 10^18.
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    let digits: u128 = digits.parse().ok()?;
    let (factor, divisor): (u128, u128) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(factor)?.checked_mul(1000)?;
    // Rounded up, as Kubernetes does.
    Some(value.div_ceil(divisor.checked_mul(scale)?))
}

fn named(quantities: Option<&BTreeMap<String, Quantity>>) -> Named {
    let quantities = quantities.into_iter().flatten();
    let amounts = quantities.filter_map(|(name, quantity)| {
        let thousandths = thousandths(quantity)?;
        let amount = match name.as_str() {
            "cpu" => thousandths,
            _ => thousandths.div_ceil(1000),
        };
        Some((name.clone(), u64::try_from(amount).unwrap_or(u64::MAX)))
    });
    amounts.collect()
}

fn add(to: &mut Named, more: &Named) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn at_least(to: &mut Named, other: &Named) {
    for (name, amount) in other {
        let most = to.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// What a container asks for: of what it has only a limit, that.
fn container(container: &Container) -> Named {
    let resources = container.resources.as_ref();
    let mut asked = named(resources.and_then(|resources| resources.limits.as_ref()));
    asked.extend(named(
        resources.and_then(|resources| resources.requests.as_ref()),
    ));
    asked
}

/// What a pod asks for, as kube-scheduler counts it: its containers and those beside them together, or the
/// most that it needs while it starts; and its overhead.
fn of_spec(spec: &PodSpec) -> Named {
    let mut running = Named::new();
    let mut most = Named::new();
    for init in spec.init_containers.iter().flatten() {
        let asked = container(init);
        if init.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &asked);
            at_least(&mut most, &running);
        } else {
            let mut starting = running.clone();
            add(&mut starting, &asked);
            at_least(&mut most, &starting);
        }
    }
    for beside in &spec.containers {
        add(&mut running, &container(beside));
    }
    at_least(&mut most, &running);
    add(&mut most, &named(spec.overhead.as_ref()));
    most
}

/// Amounts in the planner's terms.
fn amounts(named: Named, config: &ControllerConfig, snapshot: &mut Snapshot) -> Amounts {
    let small = |amount: u64| u32::try_from(amount).unwrap_or(u32::MAX);
    let mut amounts = Amounts::default();
    for (name, amount) in named {
        if config.accelerators.contains(&name) {
            amounts.gpus = amounts.gpus.saturating_add(small(amount));
        } else if name == config.rdma_resource {
            amounts.vfs = small(amount);
        } else if name == "cpu" {
            amounts.cpu_milli = amount;
        } else if name == "memory" {
            amounts.memory = amount;
        } else if name == "pods" {
            amounts.pods = small(amount);
        } else if amount > 0 {
            amounts.others.push((snapshot.resource(&name), amount));
        }
    }
    amounts.others.sort_by_key(|(id, _)| *id);
    amounts
}

/// What a pod asks for.
pub(super) fn of_pod(pod: &Pod, config: &ControllerConfig, snapshot: &mut Snapshot) -> Amounts {
    let asked = pod.spec.as_ref().map(of_spec).unwrap_or_default();
    Amounts {
        pods: 1,
        ..amounts(asked, config, snapshot)
    }
}

/// What a node has for pods.
pub(super) fn of_node(
    allocatable: Option<&BTreeMap<String, Quantity>>,
    config: &ControllerConfig,
    snapshot: &mut Snapshot,
) -> Amounts {
    amounts(named(allocatable), config, snapshot)
}

/// Which nodes a pod may use, those not that are to be avoided. `NAME_LABEL` is a label that every node has
/// with its name.
pub(super) fn constraint(spec: &PodSpec, avoid: &[String]) -> Constraint {
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| {
        it.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let mut terms: Vec<Term> = match required {
        Some(required) => required.node_selector_terms.iter().map(term).collect(),
        None => Vec::new(),
    };
    let mut always: Vec<Requirement> = Vec::new();
    for (key, value) in spec.node_selector.iter().flatten() {
        always.push(Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.clone()],
        });
    }
    if !avoid.is_empty() {
        always.push(Requirement {
            key: NAME_LABEL.to_owned(),
            operator: Operator::NotIn,
            values: avoid.to_vec(),
        });
    }
    if !always.is_empty() {
        if required.is_none() {
            terms.push(Term::default());
        }
        // A term without requirements selects nothing, and goes on doing so.
        let selecting = |term: &&mut Term| {
            required.is_none() || !term.labels.is_empty() || term.names.is_some()
        };
        for term in terms.iter_mut().filter(selecting) {
            term.labels.extend(always.iter().cloned());
        }
    }
    let tolerations = spec.tolerations.iter().flatten().map(|it| Toleration {
        key: it.key.clone().filter(|key| !key.is_empty()),
        value: match it.operator.as_deref() {
            Some("Exists") => None,
            _ => Some(it.value.clone().unwrap_or_default()),
        },
        effect: it.effect.as_deref().and_then(effect),
    });
    Constraint {
        terms,
        tolerations: tolerations.collect(),
    }
}

/// A label that nodes have in a snapshot, whatever else they have: their name.
pub(super) const NAME_LABEL: &str = "trackbed.io/node-name";

fn term(term: &NodeSelectorTerm) -> Term {
    let labels = term
        .match_expressions
        .iter()
        .flatten()
        .map(|it| Requirement {
            key: it.key.clone(),
            operator: match it.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::Gt,
                _ => Operator::Lt,
            },
            values: it.values.clone().unwrap_or_default(),
        });
    let mut labels: Vec<_> = labels.collect();
    let mut names = None;
    for field in term.match_fields.iter().flatten() {
        let values = field.values.clone().unwrap_or_default();
        match field.operator.as_str() {
            "In" => names = Some(values),
            _ => labels.push(Requirement {
                key: NAME_LABEL.to_owned(),
                operator: Operator::NotIn,
                values,
            }),
        }
    }
    Term { labels, names }
}

/// A taint's effect.
pub(super) fn effect(effect: &str) -> Option<Effect> {
    match effect {
        "NoSchedule" => Some(Effect::NoSchedule),
        "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
        "NoExecute" => Some(Effect::NoExecute),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let read = |text: &str| thousandths(&Quantity(text.to_owned()));
        for (text, wanted) in [
            ("2", 2000),
            ("100m", 100),
            ("1.5", 1500),
            ("0.1", 100),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("1e3", 1_000_000),
            ("5E-1", 500),
            ("1u", 1),
            ("3M", 3_000_000_000),
        ] {
            assert_eq!(read(text), Some(wanted), "{text}");
        }
        for none in ["", "x", "1Zi", "-1", "1.2.3"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn a_pod_asks_for_the_most_that_it_needs_at_a_time() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "overhead": { "cpu": "10m" },
            "initContainers": [
                { "name": "beside", "restartPolicy": "Always", "resources": { "requests": { "cpu": "1" } } },
                { "name": "first", "resources": { "requests": { "cpu": "4", "memory": "1Gi" } } }],
            "containers": [
                { "name": "a", "resources": { "limits": { "nvidia.com/gpu": 2, "example.com/fpga": 1 },
                    "requests": { "cpu": "2", "memory": "4Gi" } } },
                { "name": "b", "resources": { "limits": { "cpu": "1", "trackbed.io/rdma": "1" } } }] } }))
        .expect("a pod");
        let mut snapshot = Snapshot::default();
        let asked = of_pod(&pod, &ControllerConfig::default(), &mut snapshot);
        assert_eq!((asked.gpus, asked.vfs, asked.pods), (2, 1, 1));
        assert_eq!(
            asked.cpu_milli, 5010,
            "the first one beside the other takes most"
        );
        assert_eq!(asked.memory, 4 << 30);
        assert_eq!(snapshot.resources, ["example.com/fpga"]);
        assert_eq!(asked.others.len(), 1);
    }

    #[test]
    fn selectors_and_avoided_nodes_hold_in_every_term() {
        let spec: PodSpec = serde_json::from_value(json!({ "containers": [],
            "nodeSelector": { "zone": "a" },
            "tolerations": [{ "key": "gpu", "operator": "Exists" }],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    { "matchExpressions": [{ "key": "gpu", "operator": "In", "values": ["h100"] }] },
                    {}] } } } }))
        .expect("a spec");
        let constraint = constraint(&spec, &["bad".to_owned()]);
        let labels = |zone: &str, gpu: &str, name: &str| {
            BTreeMap::from([
                ("zone".to_owned(), zone.to_owned()),
                ("gpu".to_owned(), gpu.to_owned()),
                (NAME_LABEL.to_owned(), name.to_owned()),
            ])
        };
        assert!(constraint.selects("n", &labels("a", "h100", "n")));
        assert!(!constraint.selects("n", &labels("b", "h100", "n")));
        assert!(!constraint.selects("n", &labels("a", "a100", "n")));
        assert!(!constraint.selects("bad", &labels("a", "h100", "bad")));
        let taint = crate::plan::Taint {
            key: "gpu".to_owned(),
            value: "yes".to_owned(),
            effect: Effect::NoSchedule,
        };
        assert!(constraint.bears(&[taint]));
    }
}
