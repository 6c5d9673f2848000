//! Which nodes a role may use at all: node selectors, required node affinity, taints.
//!
//! As Kubernetes defines them: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/>
//! and <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>.

use std::collections::BTreeMap;

/// What a pod says about nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Constraint {
    /// Terms of which one must hold; none at all allows every node.
    pub terms: Vec<Term>,
    /// Taints that the pod bears.
    pub tolerations: Vec<Toleration>,
}

/// Requirements that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Term {
    /// About labels.
    pub labels: Vec<Requirement>,
    /// The nodes' names, if only some are meant.
    pub names: Option<Vec<String>>,
}

/// A requirement about a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What must hold for its value.
    pub operator: Operator,
    /// The values that the operator looks at.
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// It is one of the values.
    In,
    /// It is none of the values, or absent.
    NotIn,
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
    /// It is a whole number above the value.
    Gt,
    /// It is a whole number below the value.
    Lt,
}

/// What keeps pods away from a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    pub value: String,
    /// What it does.
    pub effect: Effect,
}

/// What a taint does to a pod that does not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// New pods are not scheduled.
    NoSchedule,
    /// New pods are rather not scheduled; no obstacle for a plan.
    PreferNoSchedule,
    /// Nor do running ones stay.
    NoExecute,
}

/// A taint that a pod bears.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// The taint's key; none bears every key.
    pub key: Option<String>,
    /// The taint's value; none bears every value.
    pub value: Option<String>,
    /// The taint's effect; none bears every effect.
    pub effect: Option<Effect>,
}

impl Constraint {
    /// The labels that decide.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let labels = self.terms.iter().flat_map(|term| &term.labels);
        labels.map(|requirement| requirement.key.as_str())
    }

    /// Whether it matters what a node is called.
    pub(super) fn names_nodes(&self) -> bool {
        self.terms.iter().any(|term| term.names.is_some())
    }

    /// Whether a node with this name, these labels and these taints may be used.
    pub fn allows(&self, name: &str, labels: &BTreeMap<String, String>, taints: &[Taint]) -> bool {
        self.selects(name, labels) && self.bears(taints)
    }

    /// Whether the selector and the affinity want the node.
    pub fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.terms.is_empty() || self.terms.iter().any(|term| term.holds(name, labels))
    }

    /// Whether all taints that matter are tolerated.
    pub fn bears(&self, taints: &[Taint]) -> bool {
        taints
            .iter()
            .filter(|taint| taint.effect != Effect::PreferNoSchedule)
            .all(|taint| {
                self.tolerations
                    .iter()
                    .any(|toleration| toleration.bears(taint))
            })
    }
}

impl Term {
    fn holds(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        // A term without requirements selects nothing, as in Kubernetes.
        if self.labels.is_empty() && self.names.is_none() {
            return false;
        }
        let named = |names: &Vec<String>| names.iter().any(|wanted| wanted == name);
        self.names.as_ref().is_none_or(named)
            && self
                .labels
                .iter()
                .all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let number = |text: &String| text.parse::<i64>().ok();
        let compared = |holds: fn(i64, i64) -> bool| match (
            value.and_then(number),
            self.values.first().and_then(number),
        ) {
            (Some(label), Some(bound)) => holds(label, bound),
            _ => false,
        };
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compared(|label, bound| label > bound),
            Operator::Lt => compared(|label, bound| label < bound),
        }
    }
}

impl Toleration {
    fn bears(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self
                .value
                .as_ref()
                .is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn require(key: &str, operator: Operator, values: &[&str]) -> Constraint {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Constraint {
            terms: vec![Term {
                labels: vec![Requirement {
                    key: key.into(),
                    operator,
                    values,
                }],
                names: None,
            }],
            ..Constraint::default()
        }
    }

    #[test]
    fn labels_are_compared_as_kubernetes_does() {
        let labels = BTreeMap::from([
            ("zone".to_owned(), "a".to_owned()),
            ("rank".to_owned(), "7".to_owned()),
        ]);
        let holds =
            |key, operator, values: &[&str]| require(key, operator, values).selects("n", &labels);
        assert!(holds("zone", Operator::In, &["b", "a"]));
        assert!(!holds("zone", Operator::NotIn, &["a"]));
        assert!(holds("absent", Operator::NotIn, &["a"]));
        assert!(holds("rank", Operator::Gt, &["6"]) && !holds("rank", Operator::Gt, &["7"]));
        assert!(holds("rank", Operator::Lt, &["8"]) && !holds("zone", Operator::Lt, &["8"]));
        assert!(
            holds("absent", Operator::DoesNotExist, &[]) && !holds("absent", Operator::Exists, &[])
        );
        assert!(Constraint::default().selects("n", &labels));
        let nothing = Constraint {
            terms: vec![Term::default()],
            ..Constraint::default()
        };
        assert!(
            !nothing.selects("n", &labels),
            "an empty term selects no node"
        );
    }

    #[test]
    fn a_taint_is_borne_only_by_a_toleration_of_its_own() {
        let taint = Taint {
            key: "gpu".into(),
            value: "yes".into(),
            effect: Effect::NoSchedule,
        };
        let with = |key: Option<&str>, effect| Constraint {
            tolerations: vec![Toleration {
                key: key.map(Into::into),
                value: None,
                effect,
            }],
            ..Constraint::default()
        };
        assert!(!Constraint::default().bears(std::slice::from_ref(&taint)));
        assert!(with(Some("gpu"), None).bears(std::slice::from_ref(&taint)));
        assert!(with(None, None).bears(std::slice::from_ref(&taint)));
        assert!(!with(Some("gpu"), Some(Effect::NoExecute)).bears(std::slice::from_ref(&taint)));
        let soft = Taint {
            effect: Effect::PreferNoSchedule,
            ..taint
        };
        assert!(Constraint::default().bears(&[soft]));
    }
}
