//! The kinds that are served, and what a URL is about.

use std::collections::BTreeMap;

use kube_cel::{CompiledSchema, compile_schema};
use serde_json::{Value, json};
use url::Url;

use crate::Call;
use crate::answer::Refusal;
use crate::store::Key;

/// A kind of object, as it is served in one version.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    /// Whether its status is a subresource.
    pub(crate) status: bool,
    /// Its structural schema; Kubernetes' own kinds are taken as they come.
    pub(crate) schema: Option<Value>,
    /// The schema's rules, compiled: to do so takes longer than all else about a write.
    pub(crate) rules: Option<CompiledSchema>,
}

impl Resource {
    pub(crate) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Whether these are pods, of which more is asked.
    pub(crate) fn is_pods(&self) -> bool {
        self.group.is_empty() && self.plural == "pods"
    }

    /// As in RBAC and in messages.
    pub(crate) fn full_name(&self) -> String {
        match self.group.as_str() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }
}

/// All kinds.
pub(crate) struct Kinds(Vec<Resource>);

/// What a request is about.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    resource: usize,
    /// Empty for all namespaces, and for what has none.
    pub(crate) namespace: String,
    /// `None`: the collection.
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    pub(crate) fn key(&self) -> Key {
        Key {
            resource: self.resource,
            namespace: self.namespace.clone(),
            name: self.name.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn of_name(&self, name: String) -> Target {
        Target {
            name: Some(name),
            ..self.clone()
        }
    }

    /// Whether it is in the collection that this names.
    pub(crate) fn covers(&self, key: &Key) -> bool {
        key.resource == self.resource
            && (self.namespace.is_empty() || self.namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

/// Some of Kubernetes' own: group, version, plural, kind, namespaced, status.
const OWN: [(&str, &str, &str, &str, bool, bool); 11] = [
    ("", "v1", "secrets", "Secret", true, false),
    ("", "v1", "configmaps", "ConfigMap", true, false),
    ("", "v1", "events", "Event", true, false),
    ("", "v1", "services", "Service", true, true),
    ("", "v1", "pods", "Pod", true, true),
    (
        "",
        "v1",
        "persistentvolumes",
        "PersistentVolume",
        false,
        true,
    ),
    (
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        true,
        true,
    ),
    ("", "v1", "nodes", "Node", false, true),
    ("", "v1", "namespaces", "Namespace", false, true),
    ("coordination.k8s.io", "v1", "leases", "Lease", true, false),
    (
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        false,
        false,
    ),
];

impl Kinds {
    pub(crate) fn new(definitions: &[Value]) -> Kinds {
        let own = OWN.map(
            |(group, version, plural, kind, namespaced, status)| Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: plural.to_owned(),
                kind: kind.to_owned(),
                namespaced,
                status,
                schema: None,
                rules: None,
            },
        );
        let custom = definitions.iter().flat_map(|definition| {
            let spec = &definition["spec"];
            let text = |value: &Value| {
                let text = value.as_str().map(str::to_owned);
                text.expect("a CustomResourceDefinition, as JSON")
            };
            let versions = spec["versions"].as_array().expect("it has versions");
            versions.iter().map(move |version| Resource {
                group: text(&spec["group"]),
                version: text(&version["name"]),
                plural: text(&spec["names"]["plural"]),
                kind: text(&spec["names"]["kind"]),
                namespaced: spec["scope"] == "Namespaced",
                status: version["subresources"]["status"].is_object(),
                rules: Some(compile_schema(&version["schema"]["openAPIV3Schema"])),
                schema: Some(version["schema"]["openAPIV3Schema"].clone()),
            })
        });
        Kinds(own.into_iter().chain(custom).collect())
    }

    pub(crate) fn resource(&self, target: &Target) -> &Resource {
        &self.0[target.resource]
    }

    /// The target of a path below the server's root.
    pub(crate) fn parse(&self, url: &Url) -> Result<Target, Refusal> {
        let unknown = || Refusal::not_found("the server could not find the requested resource");
        let parts: Vec<String> = url
            .path_segments()
            .into_iter()
            .flatten()
            .map(decoded)
            .collect();
        let mut parts = parts.iter().map(String::as_str);
        let group = match parts.next() {
            Some("api") => "",
            Some("apis") => parts.next().ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        let version = parts.next().ok_or_else(unknown)?;
        let mut rest: Vec<&str> = parts.collect();
        let mut namespace = String::new();
        // `namespaces/NAME` is the namespace itself, `namespaces/NAME/PLURAL` what is in it.
        if let ["namespaces", name, plural, ..] = rest[..]
            && !["status", "finalize"].contains(&plural)
        {
            namespace = name.to_owned();
            rest.drain(..2);
        }
        let at = self.0.iter().position(|resource| {
            resource.group == group
                && resource.version == version
                && rest.first() == Some(&resource.plural.as_str())
        });
        let resource = at.ok_or_else(unknown)?;
        let within = !namespace.is_empty();
        let named = rest.len() > 1;
        if self.0[resource].namespaced != within && (within || named) || rest.len() > 3 {
            return Err(unknown());
        }
        if rest
            .get(2)
            .is_some_and(|sub| *sub != "status" || !self.0[resource].status)
        {
            return Err(unknown());
        }
        Ok(Target {
            resource,
            namespace,
            name: rest.get(1).map(|&name| name.to_owned()),
            subresource: rest.get(2).map(|&sub| sub.to_owned()),
        })
    }

    /// The object of this kind and name; the kind with its group, as `Job.batch`, where several have it.
    /// Panics if there is no such kind: the test's mistake.
    pub(crate) fn named(&self, kind: &str, namespace: &str, name: &str) -> Target {
        let (kind, group) = match kind.split_once('.') {
            Some((kind, group)) => (kind, Some(group)),
            None => (kind, None),
        };
        let at = self.0.iter().position(|resource| {
            resource.kind == kind && group.is_none_or(|group| resource.group == group)
        });
        Target {
            resource: at.unwrap_or_else(|| panic!("no kind {kind} is served")),
            namespace: namespace.to_owned(),
            name: Some(name.to_owned()),
            subresource: None,
        }
    }

    /// The object of a key.
    pub(crate) fn target_at(&self, key: &Key) -> Target {
        Target {
            resource: key.resource,
            namespace: key.namespace.clone(),
            name: Some(key.name.clone()),
            subresource: None,
        }
    }

    /// The collection that an object belongs to.
    pub(crate) fn target_of(&self, object: &Value) -> Target {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let version = text(&object["apiVersion"]);
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let kind = format!("{}.{group}", text(&object["kind"]));
        let mut target = self.named(&kind, &text(&metadata["namespace"]), "");
        target.name = None;
        target
    }

    /// What RBAC calls a request.
    pub(crate) fn call(&self, verb: &str, target: &Target) -> Call {
        let mut resource = self.resource(target).full_name();
        if let Some(subresource) = &target.subresource {
            resource = format!("{resource}/{subresource}");
        }
        (verb.to_owned(), resource)
    }

    /// The answer to a list.
    pub(crate) fn list(
        &self,
        target: &Target,
        items: Vec<Value>,
        metadata: BTreeMap<&str, String>,
    ) -> Value {
        let resource = self.resource(target);
        json!({ "apiVersion": resource.api_version(), "kind": format!("{}List", resource.kind),
            "metadata": metadata, "items": items })
    }
}

fn decoded(segment: &str) -> String {
    let plus_kept = segment.replace('+', "%2B");
    let pairs = format!("x={plus_kept}");
    let mut pairs = url::form_urlencoded::parse(pairs.as_bytes());
    pairs
        .next()
        .map_or(String::new(), |(_, value)| value.into_owned())
}
