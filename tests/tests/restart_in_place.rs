//! What training jobs see of agents, device plugins and a controller that crash, or are upgraded and rolled
//! back, beneath them: nothing.
//!
//! The other release is this build, copied with another version in it ([`release::another`]): what a change
//! of the agent's protocol does is tested where the protocol is, in `csi/tests/keeper.rs`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::{Value, json};
use trackbed_apiserver::{ApiServer, Machines};
use trackbed_tests::cluster::{Cluster, trackbed};
use trackbed_tests::controller::{Controller, api_server};
use trackbed_tests::daemon::Daemon;
use trackbed_tests::machine::{Adapter, Machine};
use trackbed_tests::plugin::{DevicePlugin, VF};
use trackbed_tests::reader::{Reader, Tally, files};
use trackbed_tests::{privilege, release, tree};

const NODES: usize = 3;
/// Virtual functions of each node, and how many of them its training pod has.
const VFS: u32 = 4;
const HELD: u32 = 2;
/// Far beyond what anything here takes, as the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// From the end of a daemon to the start of the next.
const AWAY: Duration = Duration::from_millis(300);
const KIND: &str = "Caffe2Job.trackbed.io";

/// How daemons end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Crash,
    Upgrade,
}

impl End {
    fn of(self, daemon: &mut Daemon) {
        match self {
            End::Crash => daemon.kill(),
            End::Upgrade => assert!(daemon.terminate().success(), "{}", daemon.log()),
        }
    }
}

/// A job of pods that take so many accelerators each.
fn create_job(api: &ApiServer, name: &str, pods: u32, gpus: u32) {
    let template = json!({ "spec": { "containers": [{ "name": "c", "image": "i",
        "resources": { "limits": { "nvidia.com/gpu": gpus.to_string() } } }] } });
    api.create(
        &json!({ "apiVersion": "trackbed.io/v1", "kind": "Caffe2Job",
            "metadata": { "name": name, "namespace": "vision" },
            "spec": { "roles": [{ "name": "worker", "replicas": pods, "template": template }],
                "rendezvous": { "type": "FileStore", "path": "/share" } } }),
    );
}

fn has_phase(api: &ApiServer, job: &str, phase: &str) -> Option<()> {
    (api.get(KIND, "vision", job)?["status"]["phase"] == phase).then_some(())
}

/// Three nodes that read, with their device plugins, and a controller whose job trains on them.
struct Scene {
    cluster: Cluster,
    keepers: Vec<Pid>,
    plugins: Vec<DevicePlugin>,
    api: ApiServer,
    machines: Machines,
    controller: Controller,
    /// The training job's pods: name and what the API server calls it.
    pods: Vec<(String, Value)>,
    /// Two on each node.
    readers: Vec<Reader>,
    lost: usize,
    restarts: usize,
}

impl Scene {
    async fn new() -> Scene {
        let mut cluster = Cluster::prepare(NODES).expect("prepares");
        // Two have not the room for all of the dataset, so they fetch all the time; the third has it.
        for node in &mut cluster.nodes[..2] {
            node.flag("--cache-capacity", "24MiB");
        }
        for node in &mut cluster.nodes {
            node.start().await.expect("starts");
        }
        let origin = cluster.folder().join("origin");
        tree::write(&origin).expect("writes");
        tree::write_chunks(&origin, 24).expect("writes");
        cluster.register("demo", &origin).await;
        cluster.nodes[2].complete("demo").await.expect("completes");
        let files = Arc::new(files(&origin).expect("reads"));

        let api = api_server().await;
        let machines = Machines::start(&api);
        for node in &cluster.nodes {
            machines.add(&api, &node.name, 8);
        }
        let controller = Controller::start(&api, "controller-0").expect("starts");
        create_job(&api, "training", NODES as u32, 5);
        controller
            .until(|| has_phase(&api, "training", "Running"))
            .await;

        let (mut pods, mut readers) = (Vec::new(), Vec::new());
        let (mut keepers, mut plugins) = (Vec::new(), Vec::new());
        for (seed, node) in (1..).zip(&cluster.nodes) {
            let mount = node.mount("demo").await.expect("mounts");
            keepers.push(node.keeper_process());
            let reader = |seed| Reader::start(mount.clone(), files.clone(), seed);
            readers.extend([reader(seed * 0x9E37_79B9), reader(seed * 0x7261_696C)]);
            let mut all = api.all("Pod").into_iter();
            let pod = all.find(|pod| pod["spec"]["nodeName"] == node.name.as_str());
            let pod = pod.expect("a pod on each node")["metadata"].clone();
            let name = pod["name"].as_str().expect("a name").to_owned();
            plugins.push(plugin(&name).await);
            pods.push((name, pod["uid"].clone()));
        }
        Scene {
            cluster,
            keepers,
            plugins,
            api,
            machines,
            controller,
            pods,
            readers,
            lost: 0,
            restarts: 0,
        }
    }

    /// Ends what runs on these nodes, and starts this program there instead.
    async fn replace(&mut self, nodes: std::ops::Range<usize>, end: End, program: &Path) {
        for at in nodes.clone() {
            let node = &mut self.cluster.nodes[at];
            match end {
                End::Crash => node.kill(),
                End::Upgrade => assert!(node.terminate().success(), "{}", node.log()),
            }
            node.program(program);
            let plugin = &mut self.plugins[at];
            end.of(&mut plugin.daemon);
            plugin.kubelet.forget();
            plugin.daemon.program(program);
        }
        // What is read meanwhile has to do without them.
        tokio::time::sleep(AWAY).await;
        let before: Vec<u64> = self.readers.iter().map(Reader::reads).collect();
        for at in nodes {
            self.plugins[at].daemon.start().expect("starts");
            let node = &mut self.cluster.nodes[at];
            node.start().await.expect("starts again");
            self.restarts += 2;
            self.lost += lost(&self.plugins[at]).await;
        }
        let begun = Instant::now();
        let go_on = || {
            let mut readers = self.readers.iter().zip(&before);
            readers.all(|(reader, before)| reader.reads() > before + 1)
        };
        while !go_on() {
            assert!(begun.elapsed() < PATIENCE, "reads do not go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The same for the controller, in the middle of starting a job.
    async fn replace_controller(&mut self, round: usize, end: End, program: &Path) {
        let (before, meanwhile) = (format!("before-{round}"), format!("meanwhile-{round}"));
        create_job(&self.api, &before, 1, 1);
        let daemon = &mut self.controller.daemon;
        end.of(daemon);
        create_job(&self.api, &meanwhile, 1, 1);
        tokio::time::sleep(AWAY).await;
        if end == End::Upgrade {
            // Another pod; one that crashes is started again in its own.
            daemon.env("TRACKBED_NAME", &format!("controller-{round}"));
        }
        daemon.program(program);
        daemon.start().expect("starts");
        self.restarts += 1;
        for job in [&before, &meanwhile] {
            let runs = || has_phase(&self.api, job, "Running");
            self.controller.until(runs).await;
        }
    }

    /// How many jobs there are, and how many of them were started again.
    fn restarted(&self) -> (usize, usize) {
        let jobs = self.api.all(KIND);
        let again = |job: &&Value| {
            let status = &job["status"];
            status["attempt"] != 1 || status["restarts"].as_i64().unwrap_or(0) != 0
        };
        let gone = |(name, uid): &&(String, Value)| {
            let pod = self.api.get("Pod", "vision", name);
            pod.is_none_or(|pod| pod["metadata"]["uid"] != *uid)
        };
        let again = jobs.iter().filter(again).count();
        (jobs.len(), again + self.pods.iter().filter(gone).count())
    }
}

fn id(index: u32) -> String {
    format!("mt2042x00123-0-0-vf{index}")
}

/// A device plugin that has given the pod virtual functions; the first is in the pod's network namespace.
async fn plugin(pod: &str) -> DevicePlugin {
    let machine = Machine::new();
    machine.adapter(&Adapter::ROCE, 0);
    machine.virtual_functions(&Adapter::ROCE, VFS, 1);
    let mut plugin = DevicePlugin::new(machine).expect("prepares");
    plugin.daemon.start().expect("starts");
    plugin.kubelet.healthy(VF, VFS as usize).await;
    let ids: Vec<_> = (0..HELD).map(id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    plugin.kubelet.admit(VF, pod, &ids).await.expect("given");
    let moved = &Adapter::ROCE.vf(0);
    plugin.machine.move_away(&Adapter::ROCE, moved, 1);
    plugin
}

/// How many virtual functions kubelet misses in the first list of a plugin that has started, or could give
/// to another pod than has them.
async fn lost(plugin: &DevicePlugin) -> usize {
    let list = plugin.kubelet.list(VF, |_| true).await;
    let listed = |id: &str| {
        let mut list = list.iter();
        list.any(|device| device.id == id && device.health == "Healthy")
    };
    let mut lost = (0..VFS).filter(|index| !listed(&id(*index))).count();
    for index in 0..HELD {
        let taken = plugin.kubelet.admit(VF, "another", &[&id(index)]).await;
        lost += usize::from(taken.is_ok());
    }
    if lost > 0 {
        eprintln!("{lost} lost of {list:?}: {}", plugin.daemon.log());
    }
    lost
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_job_notices_nothing_of_crashes_nor_of_another_release_and_back() {
    if privilege::missing("mounting") {
        return;
    }
    let mut scene = Scene::new().await;
    let this = trackbed();
    let (other, version) = release::another(scene.cluster.folder()).expect("a copy");
    let rounds = [
        (End::Crash, &this, "node by node"),
        (End::Upgrade, &other, "node by node"),
        (End::Crash, &other, "all at once"),
        (End::Upgrade, &this, "node by node"),
    ];
    for (round, (end, program, how)) in rounds.into_iter().enumerate() {
        if how == "all at once" {
            scene.replace(0..NODES, end, program).await;
        } else {
            for at in 0..NODES {
                scene.replace(at..at + 1, end, program).await;
            }
        }
        scene.replace_controller(round, end, program).await;
    }

    let ended = std::mem::take(&mut scene.readers).into_iter();
    let Tally {
        reads,
        failed,
        wrong,
    } = ended.map(Reader::end).sum();
    let (jobs, restarted) = scene.restarted();
    println!(
        "{} restarts, as {} and as {version}: {reads} reads, {failed} failed, {wrong} with wrong bytes; \
         {} VFs, {} lost; {jobs} jobs, {restarted} restarted",
        scene.restarts,
        release::THIS,
        NODES as u32 * VFS,
        scene.lost
    );
    assert_eq!((failed, wrong, scene.lost, restarted), (0, 0, 0, 0));

    // The job ends as its pods do.
    for (pod, _) in &scene.pods {
        scene.machines.end("vision", pod, "Succeeded");
    }
    let succeeded = || has_phase(&scene.api, "training", "Succeeded");
    scene.controller.until(succeeded).await;
    for (node, keeper) in scene.cluster.nodes.iter().zip(&scene.keepers) {
        assert_eq!(node.keeper_process(), *keeper, "one keeper all the time");
        let log = fs::read_to_string(node.cache().join("keeper.log")).expect("a log");
        for build in [release::THIS, &version] {
            let said = format!("build=\"{build}\"");
            assert!(log.contains(&said), "{said}: {log}");
        }
        node.unmount("demo").await.expect("unmounts");
    }
}
