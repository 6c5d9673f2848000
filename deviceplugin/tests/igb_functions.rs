//! Virtual functions of an igb adapter, which QEMU emulates with its SR-IOV: in the virtual machine of
//! `hack/vm`, with `--nic igb` and one test at a time.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::function::Function;
use trackbed_deviceplugin::journal::Journal;
use trackbed_deviceplugin::plugin::{Plugin, PluginConfig};
use trackbed_deviceplugin::probe::VerbsProbe;
use trackbed_deviceplugin::sriov::{self, ApplyError, Kernel, PlanError, Step};
use trackbed_tests::kubelet::Kubelet;

fn found() -> Vec<Function> {
    Discovery::new("/").look().expect("looks")
}

fn kernel() -> Kernel {
    Kernel { root: "/".into() }
}

/// The net device of the adapter; `None`, and a word about it, elsewhere: what else is on a machine is not
/// to be touched.
fn adapter() -> Option<String> {
    let physical = |it: &Function| it.driver.as_deref() == Some("igb") && it.total_vfs > 0;
    let adapter = found().into_iter().find(physical);
    let net_device = adapter.and_then(|it| it.net_devices.into_iter().next());
    let in_guest = std::env::var("TRACKBED_GUEST").is_ok_and(|it| it == "1");
    let Some(net_device) = net_device.filter(|_| in_guest) else {
        eprintln!("skipped: no emulated igb; `hack/test guest` runs this in a virtual machine");
        return None;
    };
    // A port that is down knows no speed, and refuses rates.
    command("ip", &["link", "set", &net_device, "up"]);
    wait("a link", || {
        let carrier = Path::new("/sys/class/net")
            .join(&net_device)
            .join("carrier");
        std::fs::read_to_string(carrier).is_ok_and(|text| text.trim() == "1")
    });
    Some(net_device)
}

fn command(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status();
    assert!(
        status.is_ok_and(|it| it.success()),
        "{program} {arguments:?}"
    );
}

fn wait(what: &str, there: impl Fn() -> bool) {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn config(adapter: &str, rest: &str) -> Config {
    let text = format!(
        "pools: [{{name: vf, select: {{rdma: true}}}}]\nvirtual-functions: [{{pf-names: [{adapter}], {rest}}}]"
    );
    Config::parse(&text).expect(&text)
}

fn plan(config: &Config, journal: &Path) -> Result<Vec<Step>, PlanError> {
    let (wanted, found) = (&config.virtual_functions, found());
    let held = Journal::read(journal).expect("reads");
    let ports = sriov::look(wanted, &found, &kernel())?;
    sriov::plan(wanted, &found, &held, &ports)
}

fn planned(config: &Config) -> Vec<Step> {
    plan(config, Path::new("/nowhere")).expect("planned")
}

fn apply(config: &Config) -> Result<(), ApplyError> {
    sriov::apply(&planned(config), &kernel())
}

fn functions() -> Vec<Function> {
    let mut all = found();
    all.retain(Function::is_virtual);
    all.sort_by_key(|it| it.virtual_of);
    all
}

const SETTINGS: &str = "count: 3, \
    settings: {mac: stable, trust: true, spoof-check: false, rate: {max: 100}, mtu: 1400}, \
    functions: [{indexes: '1', settings: {mac: '02:00:00:00:00:07', vlan: {id: 100, qos: 3}}}]";

#[test]
fn functions_are_made_and_set_and_a_failure_leaves_all_as_it_was() {
    let Some(adapter) = adapter() else { return };
    apply(&config(&adapter, "count: 0")).expect("applied");
    let wanted = config(&adapter, SETTINGS);
    let steps = planned(&wanted);
    assert_eq!((steps[0].from, steps[0].to), (0, 3));
    assert_eq!(steps[0].changes.len(), 3 * 5 + 1);
    apply(&wanted).expect("applied");
    assert_eq!(
        planned(&wanted),
        [],
        "what the kernel says is what is wanted"
    );

    // It is what the functions' own driver has as well.
    let macs = || -> Vec<_> { functions().into_iter().map(|it| it.mac).collect() };
    let first = macs();
    assert_eq!(first[1].as_deref(), Some("02:00:00:00:00:07"));
    let stable: Vec<_> = steps[0]
        .changes
        .iter()
        .filter(|it| it.setting == "mac")
        .collect();
    assert_eq!(first[2], Some(stable[2].to.to_string()));

    // Only what differs is changed.
    let distrusted = SETTINGS.replace("qos: 3}", "qos: 3}, trust: false");
    let wanted = config(&adapter, &distrusted);
    let changes: Vec<_> = planned(&wanted).remove(0).changes;
    let shown = |change: &sriov::Change| {
        let from = change.from.expect("known");
        format!(
            "{} {} {from} -> {}",
            change.function, change.setting, change.to
        )
    };
    assert_eq!(
        changes.iter().map(shown).collect::<Vec<_>>(),
        ["1 trust on -> off"]
    );
    apply(&wanted).expect("applied");

    // The adapter knows no such setting: the address that was set before it is put back.
    let impossible = distrusted
        .replace("02:00:00:00:00:07", "02:00:00:00:00:08")
        .replace("trust: false", "trust: false, link-state: enable");
    let error = apply(&config(&adapter, &impossible)).expect_err("it has no link state");
    assert!(error.undone, "{error}");
    let said = error.to_string();
    assert!(
        said.contains("virtual function 1: link-state enable"),
        "{said}"
    );
    assert_eq!(planned(&wanted), []);
    assert_eq!(macs(), first);

    // They come again as they were, after all of them were gone.
    apply(&config(&adapter, "count: 0")).expect("applied");
    assert!(functions().is_empty());
    apply(&wanted).expect("applied");
    assert_eq!(macs(), first);
}

#[test]
fn a_function_that_was_made_is_given_to_a_pod_and_then_not_changed() {
    let Some(adapter) = adapter() else { return };
    apply(&config(&adapter, "count: 0")).expect("applied");
    let wanted = config(&adapter, SETTINGS);
    apply(&wanted).expect("applied");
    for (index, function) in functions().iter().enumerate() {
        let net_device = &function.net_devices[0];
        command("ip", &["link", "set", net_device, "up"]);
        let name = format!("rxev{index}");
        command(
            "rdma",
            &["link", "add", &name, "type", "rxe", "netdev", net_device],
        );
    }
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    runtime.block_on(async {
        let mut kubelet = Kubelet::new();
        kubelet.start();
        let state_dir = kubelet.folder().with_file_name("state");
        let settings = PluginConfig {
            config: wanted.clone(),
            root: "/".into(),
            state_dir: state_dir.clone(),
            kubelet_dir: kubelet.folder(),
            pod_resources: kubelet.pod_resources(),
        };
        let probe = Arc::new(VerbsProbe { root: "/".into() });
        let (plugin, looker) = Plugin::prepare(settings, probe).await.expect("prepares");
        let running = tokio::spawn(async move { plugin.run(looker).await });
        let list = kubelet.healthy("trackbed.io/vf", 3).await;
        let id = list[1].id.clone();
        let given = kubelet.admit("trackbed.io/vf", "trainer", &[&id]).await;
        let given = given.expect("given");
        assert_eq!(
            given.envs.get("TRACKBED_VF_RDMA").map(String::as_str),
            Some("rxev1")
        );

        assert_eq!(plan(&wanted, &state_dir), Ok(Vec::new()), "as it is to be");
        for change in ["count: 2", &SETTINGS.replace("id: 100", "id: 101")] {
            let refused = plan(&config(&adapter, change), &state_dir).expect_err(change);
            let said = refused.to_string();
            assert!(
                said.contains(&id) && matches!(refused, PlanError::Held { .. }),
                "{said}"
            );
        }
        let third = "functions: [{indexes: '2', settings: {vlan: {id: 5}}}, ";
        let other = SETTINGS.replace("functions: [", third);
        let steps = plan(&config(&adapter, &other), &state_dir).expect("another one may change");
        assert!(steps[0].changes.iter().all(|it| it.function == 2));
        running.abort();
        let _ = running.await;
    });
}
