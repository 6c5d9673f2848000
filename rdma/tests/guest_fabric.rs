//! The fabric over verbs on real devices: in the virtual machine of `hack/vm`, or wherever there are
//! any. `TRACKBED_TEST_DEVICES=one,other` names the two to use; by default the first with an active
//! port, twice. `TRACKBED_TEST_OWN_DEVICE` names the one of this network namespace.

mod peers;

use std::cell::Cell;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use peers::bulk::{self, soak, soak_bytes};
use peers::verbs_cases::Devices;
use peers::{Node, fetch_all};
use trackbed_rdma::fabric::{Fabric, FabricConfig};
use trackbed_rdma::verbs::{Context, GidChoice, device_names};

fn devices() -> Option<Devices> {
    if let Ok(names) = std::env::var("TRACKBED_TEST_DEVICES") {
        let open = |name: &str| Context::open(name).unwrap_or_else(|error| panic!("{error}"));
        let (client, server) = names.split_once(',').unwrap_or((&names, &names));
        return Some(Devices {
            client: open(client),
            server: open(server),
        });
    }
    let usable = device_names().unwrap_or_default().iter().find_map(|name| {
        let context = Context::open(name).ok()?;
        context.local_port(None, &GidChoice::Automatic).ok()?;
        Some(context)
    });
    match usable {
        Some(context) => Some(Devices {
            client: Arc::clone(&context),
            server: context,
        }),
        None => {
            eprintln!("skipped: no RDMA device with an active port here; see hack/vm");
            None
        }
    }
}

#[test]
fn without_a_name_the_device_of_this_network_is_found() {
    if devices().is_none() {
        return;
    }
    let node = Node::with("node", 2, |shard, source| {
        Fabric::new(FabricConfig::verbs(None), shard, source)
    });
    let found = node.fabric.device().expect("a device").to_owned();
    if let Ok(expected) = std::env::var("TRACKBED_TEST_OWN_DEVICE") {
        assert_eq!(found, expected);
    }
    block_on(async { fetch_all(&node.link_to(&node).await.unwrap(), 0..5).await });
}

/// Runs a command that needs the guest's namespaces and privileges.
fn run(command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("the guest has it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
}

#[test]
fn every_byte_arrives_over_a_link_that_loses_reorders_and_goes_down() {
    let Some(devices) = devices() else { return };
    if std::env::var("TRACKBED_GUEST").as_deref() != Ok("1")
        || std::env::var_os("TRACKBED_TEST_DEVICES").is_none()
    {
        eprintln!("skipped: only in the guest may the link be disturbed");
        return;
    }
    let config = || FabricConfig::verbs(None);
    let capacity = 1 << 20;
    let client = bulk::Node::on_device("client", capacity, 1, &devices.client, config());
    let server = bulk::Node::on_device("server", capacity, 16, &devices.server, config());
    run("modprobe sch_netem");
    let there = "ip netns exec other tc qdisc";
    run(&format!(
        "{there} add dev tb1 root netem loss 0.05% delay 1ms reorder 99% 50%"
    ));
    run("tc qdisc add dev tb0 root netem loss 0.05%");
    let bytes = soak_bytes(24 << 20);
    let downs = Cell::new(0);
    let outcome = soak(
        &client,
        &server,
        bytes,
        |_| {},
        |arrived| {
            // First for so short that the adapters bridge it, then for so long that the link is cut.
            if arrived * 3 < bytes * (downs.get() + 1) || downs.get() == 2 {
                return;
            }
            downs.set(downs.get() + 1);
            let length = Duration::from_millis(if downs.get() == 1 { 200 } else { 6000 });
            thread::spawn(move || {
                run("ip link set tb0 down");
                thread::sleep(length);
                run("ip link set tb0 up");
            });
        },
    );
    eprintln!("{outcome:?}");
    run(&format!("{there} del dev tb1 root"));
    run("tc qdisc del dev tb0 root");
    assert!(outcome.bytes >= bytes);
    assert_eq!(outcome.altered, 0);
    assert_eq!(downs.get(), 2);
    assert!(
        outcome.links > 1 && outcome.failed > 0,
        "the cut was noticed"
    );
}

verbs_cases!(devices());
