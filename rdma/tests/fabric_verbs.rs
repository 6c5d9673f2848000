//! The fabric over verbs on the mock provider: on any machine, and in any order of events that the
//! provider allows. On real devices: `guest_fabric.rs`.

mod peers;

use peers::verbs_cases::Devices;
use trackbed_rdma::mock;

fn devices() -> Option<Devices> {
    let open = |name| mock::open(name).expect("the mock provider has this device");
    Some(Devices {
        client: open("mock0"),
        server: open("mock1"),
    })
}

verbs_cases!(devices());
