//! The probe on a real provider: soft-RoCE in the virtual machine of `hack/vm`.

use std::process::Command;
use std::time::{Duration, Instant};

use trackbed_deviceplugin::probe::loopback;

/// The device of this network namespace, and its net device; `None`, and a word about it, elsewhere.
fn device() -> Option<(String, String)> {
    let Ok(devices) = std::env::var("TRACKBED_TEST_DEVICES") else {
        eprintln!("skipped: no RDMA device; `hack/test guest` runs this in a virtual machine");
        return None;
    };
    let device = devices.split(',').next().expect("one at least").to_owned();
    let parent = std::fs::read_to_string(format!("/sys/class/infiniband/{device}/parent"));
    Some((device, parent.expect("soft-RoCE").trim().to_owned()))
}

fn set_link(net_device: &str, state: &str) {
    let set = Command::new("ip")
        .args(["link", "set", net_device, state])
        .status();
    assert!(set.is_ok_and(|status| status.success()));
}

/// Until the device is as wanted: the kernel takes a moment to set up its addresses.
fn wait(device: &str, works: bool) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let probed = loopback(device);
        if probed.is_ok() == works {
            return probed;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{probed:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_device_that_works_passes_and_one_whose_link_is_down_is_told() {
    let Some((device, net_device)) = device() else {
        return;
    };
    loopback(&device).expect("bytes arrive");
    set_link(&net_device, "down");
    let why = wait(&device, false).expect_err("no port is active");
    assert!(!why.is_empty());
    set_link(&net_device, "up");
    wait(&device, true).expect("bytes arrive again");
    let missing = loopback("nowhere").expect_err("there is no such device");
    assert!(missing.contains("nowhere"), "{missing}");
}
