//! The files of `deploy/kustomize`, made of renderings of the chart.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{NAMESPACE, Objects};

/// Texts by their path in `deploy/kustomize`.
pub type Files = BTreeMap<String, String>;

const HEADER: &str = "# Made by hack/render of the chart in deploy/chart. Change that, not this.\n";

/// The base, which is the chart with its own values, and an overlay for each profile that says how that
/// differs.
///
/// # Panics
///
/// If an object can't be written as YAML.
pub fn files(base: &Objects, profiles: &BTreeMap<String, Objects>) -> Files {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": {
            // Its daemons mount for the host.
            "pod-security.kubernetes.io/enforce": "privileged",
        } },
    });
    let mut files = Files::new();
    let mut write = |path: String, documents: &[&Value]| {
        let texts = documents
            .iter()
            .map(|document| serde_saphyr::to_string(document).expect("YAML"));
        let text = format!("{HEADER}{}", texts.collect::<Vec<_>>().join("---\n"));
        files.insert(path, text);
    };
    let all: Vec<&Value> = base.values().collect();
    write("base/namespace.yaml".into(), &[&namespace]);
    write("base/trackbed.yaml".into(), &all);
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["namespace.yaml", "trackbed.yaml"],
    });
    write("base/kustomization.yaml".into(), &[&kustomization]);
    for (name, objects) in profiles {
        let added: Vec<&Value> = objects
            .iter()
            .filter(|(key, _)| !base.contains_key(*key))
            .map(|(_, object)| object)
            .collect();
        let mut kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../../base"], "patches": patches(base, objects),
        });
        if !added.is_empty() {
            kustomization["resources"] = json!(["../../base", "added.yaml"]);
            write(format!("overlays/{name}/added.yaml"), &added);
        }
        write(
            format!("overlays/{name}/kustomization.yaml"),
            &[&kustomization],
        );
    }
    files
}

/// What makes the objects of `base` those of `wanted`.
fn patches(base: &Objects, wanted: &Objects) -> Vec<Value> {
    let mut patches = Vec::new();
    for (key, object) in base {
        let target = json!({ "kind": key.0, "name": key.2 });
        let Some(wanted) = wanted.get(key) else {
            let mut gone = json!({ "$patch": "delete", "apiVersion": object["apiVersion"],
                "kind": key.0, "metadata": { "name": key.2 } });
            if !key.1.is_empty() {
                gone["metadata"]["namespace"] = json!(key.1);
            }
            let text = serde_saphyr::to_string(&gone).expect("YAML");
            patches.push(json!({ "target": target, "patch": text }));
            continue;
        };
        let mut steps = Vec::new();
        differ(object, wanted, String::new(), &mut steps);
        if !steps.is_empty() {
            // As YAML a text at its end would lose its last line break on kustomize's way.
            let text = serde_json::to_string_pretty(&steps).expect("JSON");
            patches.push(json!({ "target": target, "patch": text }));
        }
    }
    patches
}

/// The steps of a JSON patch (RFC 6902) from one value to another; lists are replaced whole.
fn differ(from: &Value, to: &Value, path: String, steps: &mut Vec<Value>) {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        if from != to {
            steps.push(json!({ "op": "replace", "path": path, "value": to }));
        }
        return;
    };
    let below = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
    for (key, value) in from {
        match to.get(key) {
            Some(wanted) => differ(value, wanted, below(key), steps),
            None => steps.push(json!({ "op": "remove", "path": below(key) })),
        }
    }
    for (key, value) in to {
        if !from.contains_key(key) {
            steps.push(json!({ "op": "add", "path": below(key), "value": value }));
        }
    }
}
