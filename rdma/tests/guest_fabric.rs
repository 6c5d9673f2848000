//! The fabric over verbs on real devices: in the virtual machine of `hack/vm`, or wherever there are
//! any. `TRACKBED_TEST_DEVICES=one,other` names the two to use; by default the first with an active
//! port, twice. `TRACKBED_TEST_OWN_DEVICE` names the one of this network namespace.

mod peers;

use std::sync::Arc;

use futures::executor::block_on;
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

verbs_cases!(devices());
