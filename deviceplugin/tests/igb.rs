//! Virtual functions of an igb adapter, which QEMU emulates with its SR-IOV: in the virtual machine of
//! `hack/vm`, with `--nic igb`.
//!
//! The adapter does what the kernel tells it of its functions. Their own driver is another matter: it mostly
//! finds the physical function "still in reset state" there, takes a random address and has no carrier, so
//! what a function is like in a pod is tested on other devices.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::function::Function;
use trackbed_deviceplugin::sriov::{self, ApplyError, Kernel, Step};

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

fn planned(config: &Config) -> Vec<Step> {
    let (wanted, found) = (&config.virtual_functions, found());
    let ports = sriov::look(wanted, &found, &kernel()).expect("looks");
    sriov::plan(wanted, &found, &[], &ports).expect("planned")
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
    settings: {mac: stable, trust: true, spoof-check: false, rate: {max: 100}}, \
    functions: [{indexes: '1', settings: {mac: '02:00:00:00:00:07', vlan: {id: 100, qos: 3}}}]";

#[test]
fn functions_are_made_and_set_and_a_failure_leaves_all_as_it_was() {
    let Some(adapter) = adapter() else { return };
    apply(&config(&adapter, "count: 0")).expect("applied");
    let wanted = config(&adapter, SETTINGS);
    let steps = planned(&wanted);
    assert_eq!((steps[0].from, steps[0].to), (0, 3));
    assert_eq!(steps[0].changes.len(), 3 * 4 + 1);
    apply(&wanted).expect("applied");
    assert_eq!(
        planned(&wanted),
        [],
        "what the kernel says is what is wanted"
    );

    let all = functions();
    assert_eq!(all.len(), 3, "Linux has them: {all:?}");
    // What `ip` says is asked of the kernel without us.
    let shown = Command::new("ip").args(["link", "show", &adapter]).output();
    let shown = String::from_utf8(shown.expect("runs").stdout).expect("text");
    let second = shown.lines().find(|line| line.contains("vf 1 "));
    let second = second.unwrap_or_else(|| panic!("{shown}"));
    for told in [
        "02:00:00:00:00:07",
        "vlan 100, qos 3",
        "max_tx_rate 100Mbps",
        "spoof checking off",
        "trust on",
    ] {
        assert!(second.contains(told), "{told}: {shown}");
    }

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

    // They come again as they were, after all of them were gone.
    apply(&config(&adapter, "count: 0")).expect("applied");
    assert!(functions().is_empty());
    apply(&wanted).expect("applied");
    assert_eq!(planned(&wanted), []);
}
