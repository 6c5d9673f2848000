//! What `deploy/` holds, and how it comes about: the chart is the source, `helm` renders it, and the
//! kustomize base and overlays are made of that, so that nothing is said twice.

mod kustomize;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

pub use kustomize::{Files, files};

/// The namespace that is rendered for.
pub const NAMESPACE: &str = "trackbed-system";

/// Kind, namespace and name: what makes an object the same in two renderings.
pub type Key = (String, String, String);

/// Objects of a rendering by what they are.
pub type Objects = BTreeMap<Key, Value>;

/// The repository's `deploy/`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The values of the overlays, by name: `deploy/profiles`.
///
/// # Panics
///
/// If the folder can't be read.
pub fn profiles() -> Vec<String> {
    let entries = std::fs::read_dir(folder().join("profiles")).expect("deploy/profiles");
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(".yaml")?.to_owned())
        })
        .collect();
    names.sort();
    names
}

/// `helm` and `kubectl`, which `hack/test` installs; `None`, having said so, where they are not there.
pub fn clients() -> Option<(PathBuf, PathBuf)> {
    let found = |variable| std::env::var_os(variable).map(PathBuf::from);
    let clients = found("TRACKBED_HELM").zip(found("TRACKBED_KUBECTL"));
    if clients.is_none() {
        println!(
            "skipped: rendering takes TRACKBED_HELM and TRACKBED_KUBECTL, their programs (hack/test has them)"
        );
    }
    clients
}

/// Renders the chart, without its hooks, with a profile's values and `--set` of each of `set`; the error is what helm says.
///
/// # Panics
///
/// If helm can't be run.
pub fn helm(program: &Path, profile: Option<&str>, set: &[&str]) -> Result<Objects, String> {
    let mut command = Command::new(program);
    command.args([
        "template",
        "trackbed",
        "--include-crds",
        "--namespace",
        NAMESPACE,
    ]);
    command.arg(folder().join("chart/trackbed"));
    if let Some(profile) = profile {
        command.arg("--values");
        command.arg(folder().join(format!("profiles/{profile}.yaml")));
    }
    for each in set {
        command.args(["--set-json", each]);
    }
    run(command)
}

/// Builds a folder of `deploy/kustomize`.
///
/// # Panics
///
/// If kubectl can't be run.
pub fn kustomize(program: &Path, folder: &Path) -> Result<Objects, String> {
    let mut command = Command::new(program);
    command.arg("kustomize").arg(folder);
    run(command)
}

fn run(mut command: Command) -> Result<Objects, String> {
    let output = command.output().expect("the program runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Ok(objects(&text))
}

/// The objects of a YAML text of several documents.
///
/// # Panics
///
/// If it is none, or has an object twice.
pub fn objects(text: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let mut objects = Objects::new();
    let objects_of = documents.into_iter().filter(|document| !document.is_null());
    for object in objects_of.map(plain) {
        let word = |pointer: &str| {
            let value = object.pointer(pointer).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let key = (
            word("/kind"),
            word("/metadata/namespace"),
            word("/metadata/name"),
        );
        let before = objects.insert(key.clone(), object);
        assert!(before.is_none(), "{key:?} is there twice");
    }
    objects
}

/// The value with whole numbers written as such: some programs make 1.0 of 1, which is the same.
pub fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            // Up to there every whole number is one of these floats.
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => json!(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(values) => values.into_iter().map(plain).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, plain(value)))
            .collect(),
        other => other,
    }
}

/// What a role's rules allow, as the tests' API server counts calls: verb and resource.
///
/// # Panics
///
/// If it is no role.
pub fn allowed(role: &Value) -> BTreeSet<(String, String)> {
    let words = |rule: &Value, key: &str| {
        let words = rule[key].as_array().expect("a list").iter();
        let words = words.map(|word| word.as_str().expect("a word").to_owned());
        words.collect::<Vec<_>>()
    };
    let mut allowed = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                let (name, below) = match resource.split_once('/') {
                    Some((name, below)) => (name, format!("/{below}")),
                    None => (resource.as_str(), String::new()),
                };
                let dot = if group.is_empty() { "" } else { "." };
                let resource = format!("{name}{dot}{group}{below}");
                allowed.extend(
                    words(rule, "verbs")
                        .into_iter()
                        .map(|verb| (verb, resource.clone())),
                );
            }
        }
    }
    allowed
}

/// Those that are applied and stay: not the hooks, which helm alone knows.
pub fn applied(objects: Objects) -> Objects {
    let hook = |object: &Value| object["metadata"]["annotations"]["helm.sh/hook"].is_string();
    objects
        .into_iter()
        .filter(|(_, object)| !hook(object))
        .collect()
}
