//! The fabric over verbs on real devices: in the virtual machine of `hack/vm`, or wherever there are
//! any. `TRACKBED_TEST_DEVICES=one,other` names the two to use; by default the first with an active
//! port, twice.

mod peers;

use std::sync::Arc;

use peers::verbs_cases::Devices;
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

verbs_cases!(devices());
