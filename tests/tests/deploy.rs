//! What an administrator applies: the chart and the overlays that are made of it are objects that
//! Kubernetes takes, their configurations are ones that our programs take, and values that contradict
//! each other are refused with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use trackbed_apiserver::ApiServer;
use trackbed_tests::cluster::trackbed;
use trackbed_tests::manifests::{self, Objects};

/// Values that turn on everything that is off by default.
const EVERYTHING: [&str; 8] = [
    r#"controller.config={"teams":[{"name":"vision","quotas":{"H100":{"nominal":8,"borrow":4}}}]}"#,
    r#"devicePlugin={"enabled":true,"apply":true,"config":{"pools":[{"name":"vf"}],"virtual-functions":[]}}"#,
    r#"agent.secretNamespaces=["team-a","team-b"]"#,
    r#"agent.settings={"registry":"/mnt/registry","cache-capacity":"2TiB"}"#,
    r#"storageClasses=[{"name":"cats","dataset":"team-a.cats"}]"#,
    r#"tls={"hostPath":"","secretName":"trackbed-tls"}"#,
    r#"image.pullSecrets=[{"name":"registry"}]"#,
    r#"ipFamily="IPv6""#,
];

/// Asserts that the types that Kubernetes' own description of its API was made into take the object, and
/// that nothing of it is unknown to them or lacks.
fn assert_is_of_kubernetes(object: &Value) {
    macro_rules! kinds {
        ($($kind:ident),+) => {
            match object["kind"].as_str() {
                $(Some(stringify!($kind)) => serde_json::from_value::<$kind>(object.clone())
                    .and_then(serde_json::to_value),)+
                other => panic!("{other:?} is not among the kinds that are looked at"),
            }
        };
    }
    let taken = kinds!(
        CSIDriver,
        ClusterRole,
        ClusterRoleBinding,
        ConfigMap,
        CustomResourceDefinition,
        DaemonSet,
        Deployment,
        Job,
        Namespace,
        NetworkPolicy,
        PodDisruptionBudget,
        PriorityClass,
        Role,
        RoleBinding,
        Service,
        ServiceAccount,
        StorageClass
    );
    let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
    let taken = taken.unwrap_or_else(|error| panic!("{name}: {error}"));
    let taken = manifests::plain(taken);
    assert_eq!(&taken, object, "{name} is not what Kubernetes takes it for");
}

#[test]
fn every_object_is_one_that_kubernetes_takes() {
    let Some((helm, kubectl)) = manifests::clients() else {
        return;
    };
    let rendered = |profile: Option<&str>, set: &[&str]| {
        manifests::helm(&helm, profile, set).unwrap_or_else(|why| panic!("{profile:?}: {why}"))
    };
    let mut all = vec![rendered(None, &[]), rendered(None, &EVERYTHING)];
    for profile in manifests::profiles() {
        all.push(rendered(Some(&profile), &[]));
        let folder = manifests::folder()
            .join("kustomize/overlays")
            .join(&profile);
        all.push(manifests::kustomize(&kubectl, &folder).expect("builds"));
    }
    for objects in all {
        assert!(objects.len() > 8, "{:?}", objects.keys());
        objects.values().for_each(assert_is_of_kubernetes);
    }
}

#[test]
fn a_monitor_is_there_only_for_those_who_ask_for_it() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let monitors = |set: &[&str]| {
        let objects = manifests::helm(&helm, None, set).expect("renders");
        let of_kind = objects
            .into_iter()
            .filter(|(key, _)| key.0 == "ServiceMonitor");
        of_kind.map(|(_, object)| object).collect::<Vec<_>>()
    };
    assert!(monitors(&[]).is_empty());
    let monitors = monitors(&[r#"metrics.serviceMonitor={"enabled":true}"#]);
    let [monitor] = monitors.as_slice() else {
        panic!("{monitors:?}");
    };
    // It finds the services by labels that they have, and their port by its name.
    let wanted = monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .expect("labels");
    let objects = manifests::helm(&helm, None, &EVERYTHING).expect("renders");
    let found = objects.iter().filter(|(key, object)| {
        key.0 == "Service"
            && wanted
                .iter()
                .all(|(label, value)| &object["metadata"]["labels"][label] == value)
            && object["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]
    });
    assert_eq!(found.count(), 3, "agent, device plugin and controller");
}

#[test]
fn daemons_send_traces_only_where_they_are_told_to() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let told = |more: &[&str]| {
        let set = [&EVERYTHING[..], more].concat();
        let objects = manifests::helm(&helm, None, &set).expect("renders");
        let pods = objects.values().map(|it| &it["spec"]["template"]["spec"]);
        let containers = pods
            .filter_map(|pod| pod["containers"].as_array())
            .flatten();
        let told = containers.filter_map(|container| {
            let env = container["env"].as_array()?;
            let at = |name: &str| env.iter().position(|it| it["name"] == name);
            let endpoint = at("OTEL_EXPORTER_OTLP_ENDPOINT")?;
            // Kubernetes knows of a variable only those above it.
            assert!(at("HOST_IP") < Some(endpoint), "{env:?}");
            assert_eq!(env[endpoint]["value"], "http://$(HOST_IP):4317");
            Some(container["name"].as_str()?.to_owned())
        });
        told.collect::<std::collections::BTreeSet<_>>()
    };
    assert!(told(&[]).is_empty());
    let told = told(&[r#"traces.endpoint="http://$(HOST_IP):4317""#]);
    let daemons = ["agent", "controller", "device-plugin"].map(str::to_owned);
    assert_eq!(told, daemons.into());
    let tls = [r#"traces.endpoint="https://collector:4317""#];
    let refused = manifests::helm(&helm, None, &tls).expect_err("there is no TLS");
    assert!(refused.contains("endpoint"), "{refused}");
}

#[test]
fn kustomize_gives_what_the_chart_does() {
    let Some((helm, kubectl)) = manifests::clients() else {
        return;
    };
    let rendered = |profile: Option<&str>| {
        manifests::applied(manifests::helm(&helm, profile, &[]).expect("renders"))
    };
    let base = rendered(None);
    let overlays: BTreeMap<String, Objects> = manifests::profiles()
        .into_iter()
        .map(|name| (name.clone(), rendered(Some(&name))))
        .collect();
    assert!(overlays.len() > 2, "{:?}", overlays.keys());
    let folder = manifests::folder().join("kustomize");
    for (path, text) in manifests::files(&base, &overlays) {
        let there = fs::read_to_string(folder.join(&path)).unwrap_or_default();
        assert_eq!(
            there, text,
            "deploy/kustomize/{path} is out of date: run hack/render"
        );
    }
    for (name, wanted) in overlays {
        let mut built =
            manifests::kustomize(&kubectl, &folder.join("overlays").join(&name)).expect("builds");
        built.retain(|key, _| key.0 != "Namespace");
        assert_eq!(
            built.keys().collect::<Vec<_>>(),
            wanted.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (key, object) in wanted {
            assert_eq!(built[&key], object, "{name}: {key:?}");
        }
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_the_reason() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let cases: &[(&[&str], &[&str])] = &[
        (
            &[r#"agent={"fabric":"verbs","hostNetwork":false}"#],
            &["hostNetwork"],
        ),
        (&[r#"tls={"hostPath":"","secretName":""}"#], &["tls"]),
        (
            &[r#"devicePlugin={"enabled":true}"#],
            &["devicePlugin", "pools"],
        ),
        (&[r#"devicePlugin={"apply":true}"#], &["devicePlugin"]),
        (&[r#"kubelet.root="var/lib/kubelet""#], &["kubelet", "root"]),
        (
            &[r#"kubelet.root="/var/lib/kubelet/""#],
            &["kubelet", "root"],
        ),
        (&[r#"kubelet.rot="/var/lib/kubelet""#], &["rot"]),
        (&[r#"agent.cacheDirs=[]"#], &["cacheDirs"]),
        (
            &[r#"agent.cacheDirs=["/mnt/a","/mnt/a/b"]"#],
            &["/mnt/a/b", "lies in", "each disk"],
        ),
        (
            &[r#"agent.cacheDirs=["/var/lib/kubelet/cache"]"#],
            &["kubelet", "empties"],
        ),
        (
            &[r#"agent.ports.metrics=7420"#],
            &["7420", "not all different"],
        ),
        (&[r#"agent.ports.metrics=70000"#], &["metrics"]),
        (
            &[r#"agent.settings={"csi-endpoint":"unix:///x"}"#],
            &["csi-endpoint", "the chart sets it"],
        ),
        (
            &[r#"storageClasses=[{"name":"cats","dataset":"cats"}]"#],
            &["agent.settings.registry"],
        ),
        (&[r#"agent.fabric="rdma""#], &["fabric"]),
    ];
    for (set, words) in cases {
        let why = manifests::helm(&helm, None, set).expect_err(&format!("{set:?} is refused"));
        for word in *words {
            assert!(why.contains(word), "{set:?}: {word:?} is not in: {why}");
        }
    }
}

fn data(objects: &Objects, name: &str, file: &str) -> String {
    let key = (
        "ConfigMap".to_owned(),
        manifests::NAMESPACE.to_owned(),
        name.to_owned(),
    );
    let text = objects.get(&key).and_then(|map| map["data"][file].as_str());
    text.unwrap_or_else(|| panic!("{name} has no {file}"))
        .to_owned()
}

fn run(words: &[&str], file: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(trackbed());
    command.args(words).arg("--config").arg(file);
    // As the pod has them, of its own name and address.
    command.env("TRACKBED_NAME", "node-1");
    command.env("TRACKBED_CONTROL_ADVERTISE", "10.0.0.1:7420");
    let ran = command.output().expect("runs");
    (
        ran.status.code(),
        String::from_utf8_lossy(&ran.stderr).into_owned(),
    )
}

#[test]
fn the_programs_take_the_configurations_that_they_are_given() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.yaml");
    let mut plugins = 0;
    let mut look = |objects: &Objects| {
        // All of it is understood: only then are the certificates looked for, which are not there.
        fs::write(&file, data(objects, "trackbed-agent", "node.yaml")).expect("writes");
        let (status, said) = run(&["node"], &file);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("/etc/trackbed/tls/"), "{said}");
        // The configuration is read before a way to an API server is looked for.
        fs::write(
            &file,
            data(objects, "trackbed-controller", "controller.yaml"),
        )
        .expect("writes");
        let words = ["controller", "run", "--name", "one"];
        let (status, said) = run(&words, &file);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("no way to an API server"), "{said}");
        if objects.keys().any(|key| key.2 == "trackbed-device-plugin") {
            plugins += 1;
            fs::write(
                &file,
                data(objects, "trackbed-device-plugin", "config.yaml"),
            )
            .expect("writes");
            let (status, said) = run(&["device-plugin", "replay"], &file);
            assert_eq!(status, Some(0), "{said}");
        }
    };
    look(&manifests::helm(&helm, None, &EVERYTHING).expect("renders"));
    for profile in manifests::profiles() {
        look(&manifests::helm(&helm, Some(&profile), &[]).expect("renders"));
    }
    assert_eq!(plugins, 3, "everything, roce and infiniband");
}

#[test]
fn containers_are_told_only_what_their_program_knows() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let objects = manifests::helm(&helm, None, &EVERYTHING).expect("renders");
    let daemons = objects
        .iter()
        .filter(|(key, _)| ["DaemonSet", "Deployment"].contains(&key.0.as_str()));
    for (key, daemon) in daemons {
        let pod = &daemon["spec"]["template"]["spec"];
        let kinds = [&pod["initContainers"], &pod["containers"]];
        for container in kinds.into_iter().filter_map(Value::as_array).flatten() {
            let args: Vec<&str> = container["args"]
                .as_array()
                .expect("args")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let probe = container
                .pointer("/readinessProbe/exec/command")
                .and_then(Value::as_array);
            let probe: Vec<&str> = probe
                .into_iter()
                .flatten()
                .skip(1)
                .filter_map(Value::as_str)
                .collect();
            for words in [args, probe].iter().filter(|words| !words.is_empty()) {
                // Help is given after what stands before it was understood.
                let ran = Command::new(trackbed())
                    .args(words)
                    .arg("--help")
                    .output()
                    .expect("runs");
                let said = String::from_utf8_lossy(&ran.stderr);
                assert!(ran.status.success(), "{key:?} {words:?}: {said}");
            }
            assert_eq!(
                container["securityContext"]["readOnlyRootFilesystem"], true,
                "{key:?}"
            );
        }
    }
}

#[test]
fn another_folder_of_kubelet_s_is_another_everywhere() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let mut set = EVERYTHING.to_vec();
    set.push(r#"kubelet.root="/data/kubelet""#);
    let objects = manifests::helm(&helm, None, &set).expect("renders");
    for (key, object) in &objects {
        assert!(!object.to_string().contains("/var/lib/kubelet"), "{key:?}");
    }
    let agent = data(&objects, "trackbed-agent", "node.yaml");
    assert!(
        agent.contains("unix:///data/kubelet/plugins/csi.trackbed.io/csi.sock"),
        "{agent}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_uninstalled_under_a_pod_that_has_a_volume() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let api = ApiServer::start(&[]).await.expect("serves");
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig()).expect("writes");
    let in_use = async || {
        let mut command = Command::new(trackbed());
        command.arg("in-use").env("KUBECONFIG", &kubeconfig);
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let ran = ran.expect("no panic").expect("runs");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        (ran.status.code(), said)
    };
    for (name, driver) in [("trains", "csi.trackbed.io"), ("other", "csi.example.com")] {
        api.create(&json!({ "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "team-a", "name": name },
            "spec": { "containers": [{ "name": "c" }], "volumes": [{ "name": "data", "csi": { "driver": driver } }] } }));
    }
    let (status, said) = in_use().await;
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("team-a/trains") && !said.contains("team-a/other"),
        "{said}"
    );
    api.delete("Pod", "team-a", "trains");
    let (status, said) = in_use().await;
    assert_eq!(status, Some(0), "{said}");
    // Who may not look is not told that nothing is there.
    api.forbid("list", "pods");
    let (status, said) = in_use().await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("listing pods"), "{said}");

    let objects = manifests::helm(&helm, None, &[]).expect("renders");
    let key = |kind: &str, namespace: &str| {
        (
            kind.to_owned(),
            namespace.to_owned(),
            "trackbed-in-use".to_owned(),
        )
    };
    let role = &objects[&key("ClusterRole", "")];
    assert_eq!(manifests::allowed(role), api.calls().into_keys().collect());
    // It is what the chart runs before anything is taken away.
    let job = &objects[&key("Job", manifests::NAMESPACE)];
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["in-use"]));
    assert!(manifests::applied(objects).keys().all(|key| key.0 != "Job"));
}

/// The folders of the node that a pod has, with what the container sees them as.
fn folders<'o>(pod: &'o Value, container: &'o Value) -> BTreeMap<&'o str, (&'o str, &'o str)> {
    let volumes = pod["volumes"].as_array().expect("volumes");
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let path = |mount: &Value| {
        let volume = volumes
            .iter()
            .find(|volume| volume["name"] == mount["name"]);
        let host = &volume.expect("a volume for each mount")["hostPath"];
        host["path"].as_str().zip(host["type"].as_str())
    };
    mounts
        .iter()
        .filter_map(|mount| Some((mount["mountPath"].as_str()?, path(mount)?)))
        .collect()
}

#[test]
fn what_the_agent_is_told_lies_in_folders_that_are_there_and_have_the_same_path_on_the_node() {
    let Some((helm, _)) = manifests::clients() else {
        return;
    };
    let objects = manifests::helm(&helm, None, &[]).expect("renders");
    let config: BTreeMap<String, Value> =
        serde_saphyr::from_str(&data(&objects, "trackbed-agent", "node.yaml")).expect("YAML");
    for daemon in ["trackbed-agent", "trackbed-keeper"] {
        let key = (
            "DaemonSet".to_owned(),
            manifests::NAMESPACE.to_owned(),
            daemon.to_owned(),
        );
        let pod = &objects[&key]["spec"]["template"]["spec"];
        let folders = folders(pod, &pod["containers"][0]);
        for (inside, (outside, _)) in &folders {
            let own = *inside == "/etc/trackbed/tls";
            assert!(
                own || inside == outside,
                "{daemon}: {inside} is {outside} on the node"
            );
        }
        let mut keys = vec!["cache-dir", "keeper"];
        if daemon == "trackbed-agent" {
            keys.extend(["admin-socket", "csi-endpoint", "kubelet-plugins-registry"]);
        }
        for key in keys {
            let value = match &config[key] {
                Value::Array(values) => values[0].as_str(),
                value => value.as_str(),
            };
            let path = Path::new(value.expect("a path").trim_start_matches("unix://"));
            // A socket's folder is not made by whoever listens.
            let folder = match key {
                "cache-dir" | "kubelet-plugins-registry" => path,
                _ => path.parent().expect("a folder"),
            };
            assert!(
                folders.contains_key(folder.to_str().expect("UTF-8")),
                "{daemon}: {key} is in {}",
                folder.display()
            );
        }
    }
}
