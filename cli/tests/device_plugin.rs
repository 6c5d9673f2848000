//! `trackbed device-plugin` as a person uses it, on a machine that is files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

struct Ground(TempDir);

impl Ground {
    /// With a machine that has one virtual function, and a configuration.
    fn new(config: &str) -> Ground {
        let ground = Ground(tempfile::tempdir().expect("a folder"));
        let (pf, vf) = ("0000:3b:00.0", "0000:3b:00.1");
        for address in [pf, vf] {
            let folder = format!("machine/sys/devices/pci0000:3a/{address}");
            for (file, text) in [
                ("class", "0x020000\n"),
                ("vendor", "0x8086\n"),
                ("device", "0x10ca\n"),
                ("numa_node", "-1\n"),
                ("net/eth/type", "1\n"),
            ] {
                ground.write(&format!("{folder}/{file}"), text);
            }
            let link = ground.at(&format!("machine/sys/bus/pci/devices/{address}"));
            fs::create_dir_all(link.parent().expect("below")).expect("made");
            symlink(format!("../../../devices/pci0000:3a/{address}"), link).expect("linked");
        }
        let pf = format!("machine/sys/devices/pci0000:3a/{pf}");
        ground.write(&format!("{pf}/sriov_totalvfs"), "7\n");
        symlink("../0000:3b:00.1", ground.at(&format!("{pf}/virtfn0"))).expect("linked");
        ground.write("config.yaml", config);
        fs::create_dir(ground.at("kubelet")).expect("made");
        ground
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trackbed"));
        command.arg("device-plugin").args(arguments);
        command
    }

    fn replay(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&["replay"]);
        command.arg("--root").arg(self.at("machine"));
        command.arg("--config").arg(self.at("config.yaml"));
        command.args(arguments).output().expect("runs")
    }

    fn status(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&["status", "--state-dir"]);
        command.arg(self.at("state")).args(arguments);
        command.output().expect("runs")
    }

    fn start(&self) -> Child {
        let mut command = self.command(&["run"]);
        for (flag, path) in [
            ("--root", "machine"),
            ("--config", "config.yaml"),
            ("--state-dir", "state"),
            ("--kubelet-dir", "kubelet"),
            ("--pod-resources", "pods.sock"),
        ] {
            command.arg(flag).arg(self.at(path));
        }
        command.stderr(Stdio::piped()).spawn().expect("starts")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_for(path: &Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(
            began.elapsed() < PATIENCE,
            "{} never appears",
            path.display()
        );
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_configuration_is_tried_on_a_recorded_machine() {
    let ground = Ground::new("pools: [{name: vf}, {name: none, select: {vendors: ['15b3']}}]");
    let output = ground.replay(&[]);
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(
        table.contains("trackbed.io/vf") && table.contains("0000:3b:00.1"),
        "{table}"
    );
    let output = ground.replay(&["--output", "json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json[0]["devices"][0]["id"], "0000-3b-00-0-vf0");
    assert_eq!(json[0]["devices"][0]["health"], "healthy");
    assert_eq!(json[1]["devices"], Value::Array(vec![]));
}

#[test]
fn what_is_wrong_with_a_configuration_is_said_with_file_and_line() {
    for (config, expected) in [
        ("pools:\n- name: a\n  shares: 3\n", "line 2"),
        ("pools:\n- name: a\n  colour: red\n", "line 3"),
        (
            "pools: [{name: one}, {name: two}]",
            "both select 0000:3b:00.1",
        ),
    ] {
        let output = Ground::new(config).replay(&[]);
        assert_eq!(output.status.code(), Some(2), "{config}");
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
    let ground = Ground::new("");
    fs::remove_file(ground.at("config.yaml")).expect("removed");
    assert!(said(&ground.replay(&[])).contains("config.yaml"));
}

#[test]
fn a_plugin_shows_its_status_and_ends_when_it_is_asked() {
    let ground = Ground::new("pools: [{name: vf}]");
    let output = ground.status(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("trackbed device-plugin run"),
        "{}",
        said(&output)
    );

    let mut plugin = ground.start();
    let socket = ground.at("kubelet/trackbed-vf.sock");
    wait_for(&socket);
    wait_for(&ground.at("state/status.json"));
    let output = ground.status(&["--output", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json[0]["resource"], "trackbed.io/vf");
    assert_eq!(json[0]["devices"].as_array().map(Vec::len), Some(1));

    let second = ground.start().wait_with_output().expect("ends");
    assert_eq!(second.status.code(), Some(2));
    assert!(
        said(&second).contains("another device plugin"),
        "{}",
        said(&second)
    );

    kill(Pid::from_raw(plugin.id().cast_signed()), Signal::SIGTERM).expect("signalled");
    assert!(plugin.wait().expect("ends").success());
    assert!(!socket.exists(), "its socket is left");
    assert_eq!(ground.status(&[]).status.code(), Some(1));
}

#[test]
fn a_number_of_virtual_functions_is_planned_and_refused_where_it_can_not_be() {
    let wanted = |count| {
        format!(
            "pools: [{{name: vf}}]\nvirtual-functions: [{{addresses: ['0000:3b:00.0'], count: {count}}}]\n"
        )
    };
    let plan = |ground: &Ground, verb: &str| {
        let mut command = ground.command(&[verb, "--output", "json", "--config"]);
        command.arg(ground.at("config.yaml"));
        command.arg("--root").arg(ground.at("machine"));
        command.arg("--state-dir").arg(ground.at("state"));
        command.output().expect("runs")
    };
    let ground = Ground::new(&wanted(1));
    let output = plan(&ground, "plan");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
    assert!(
        plan(&ground, "apply").status.success(),
        "there is nothing to do"
    );

    let ground = Ground::new(&wanted(4));
    let output = plan(&ground, "plan");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json[0]["from"], &json[0]["to"]), (&1.into(), &4.into()));
    // A file is no kernel: nothing comes of what is written there, and it is said.
    let output = plan(&ground, "apply");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("sriov_numvfs") || said(&output).contains("0000:3b:00.0"));

    let output = plan(&Ground::new(&wanted(8)), "plan");
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("can have 7"), "{}", said(&output));
}

#[test]
fn settings_are_planned_with_what_they_are_and_what_they_are_to_be() {
    let ground = Ground::new(
        "pools: [{name: vf}]\nvirtual-functions: [{addresses: ['0000:3b:00.0'], count: 1, \
         settings: {mtu: 9000, vlan: {id: 100}, mac: '02:00:00:00:00:07'}}]\n",
    );
    ground.write(
        "machine/sys/devices/pci0000:3a/0000:3b:00.1/net/eth/mtu",
        "1500\n",
    );
    let plan = |arguments: &[&str]| {
        let mut command = ground.command(&["plan", "--config"]);
        command.arg(ground.at("config.yaml"));
        command.arg("--root").arg(ground.at("machine"));
        command.arg("--state-dir").arg(ground.at("state"));
        command.args(arguments).output().expect("runs")
    };
    let output = plan(&["--output", "json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let changes = json[0]["changes"].as_array().expect("a list");
    let mtu = changes.iter().find(|it| it["setting"] == "mtu");
    let mtu = mtu.expect("it differs");
    assert_eq!((&mtu["from"], &mtu["to"]), (&"1500".into(), &"9000".into()));
    // A recorded machine's links can't be asked.
    let mac = changes.iter().find(|it| it["setting"] == "mac");
    let mac = mac.expect("it is not known to be right");
    assert_eq!(
        (&mac["from"], &mac["to"]),
        (&Value::Null, &"02:00:00:00:00:07".into())
    );
    let table = plan(&[]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let row = table.lines().find(|line| line.contains("vlan"));
    assert!(
        row.is_some_and(|row| row.contains("100 qos 0 802.1q")),
        "{table}"
    );
}

#[test]
fn a_plugin_that_runs_and_apply_keep_each_other_out() {
    let ground = Ground::new("pools: [{name: vf}]");
    let apply = || {
        let mut command = ground.command(&["apply", "--config"]);
        command.arg(ground.at("config.yaml"));
        command.arg("--root").arg(ground.at("machine"));
        command.arg("--state-dir").arg(ground.at("state"));
        command.output().expect("runs")
    };
    let mut plugin = ground.start();
    wait_for(&ground.at("state/status.json"));
    let refused = apply();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("another device plugin runs"),
        "{}",
        said(&refused)
    );
    assert!(
        ground.status(&[]).status.success(),
        "the plugin is still there"
    );
    kill(Pid::from_raw(plugin.id().cast_signed()), Signal::SIGTERM).expect("signalled");
    assert!(plugin.wait().expect("ends").success());
    assert!(apply().status.success(), "{}", said(&apply()));

    // `apply` in the middle of its work.
    let lock = fs::OpenOptions::new()
        .write(true)
        .open(ground.at("state/in-use"));
    let lock = lock.expect("apply has left it");
    lock.lock().expect("nobody has it");
    let refused = ground.start().wait_with_output().expect("ends");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("apply` is changing"),
        "{}",
        said(&refused)
    );
    assert_eq!(ground.status(&[]).status.code(), Some(1), "no plugin runs");
}
