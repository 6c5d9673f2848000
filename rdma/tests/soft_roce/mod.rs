//! A software RDMA device for tests in the guest of `hack/vm`.

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use trackbed_rdma::verbs::{Context, GidChoice, GidKind};

/// The device of this test process, made on first use; `None`, and a word about it, outside the guest.
pub(crate) fn device() -> Option<String> {
    static DEVICE: OnceLock<String> = OnceLock::new();
    if std::env::var("TRACKBED_GUEST").as_deref() != Ok("1") {
        eprintln!("skipped: no RDMA device; `hack/test guest` runs this in a virtual machine");
        return None;
    }
    Some(DEVICE.get_or_init(make).clone())
}

/// A pair of net devices with soft-RoCE on one of them, which reaches itself. They end with the guest.
fn make() -> String {
    let id = std::process::id();
    let (net_device, other, device) = (format!("tv{id}"), format!("tw{id}"), format!("trxe{id}"));
    // Two such tests may run one after the other in one guest.
    let address = format!("10.{}.{}.1/24", 100 + id % 100, id / 100 % 250);
    ip(&[
        "link",
        "add",
        &net_device,
        "mtu",
        "9000",
        "type",
        "veth",
        "peer",
        "name",
        &other,
    ]);
    ip(&["link", "set", &other, "mtu", "9000", "up"]);
    ip(&["address", "add", &address, "dev", &net_device]);
    ip(&["link", "set", &net_device, "up"]);
    run(
        "rdma",
        &["link", "add", &device, "type", "rxe", "netdev", &net_device],
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    let kind = GidChoice::Kind(GidKind::RoceV2Ipv4);
    loop {
        match Context::open(&device).and_then(|context| context.local_port(None, &kind)) {
            Ok(_) => return device,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect("the guest has it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
