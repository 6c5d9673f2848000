//! What is found in machines of many kinds.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::{Discovery, needs};
use trackbed_deviceplugin::function::{Function, LinkType, Protocol};
use trackbed_deviceplugin::offer::offers;
use trackbed_deviceplugin::port_watch::PortWatch;
use trackbed_tests::machine::{Adapter, Machine};

const ROCE: Adapter = Adapter::ROCE;
const IB: Adapter = Adapter {
    bus: 0x86,
    function: 0,
    numa_node: 1,
    infiniband: true,
    serial: Some("MT1917K00001"),
};

fn look(machine: &Machine) -> Vec<Function> {
    Discovery::new(machine.root()).look().expect("looks")
}

#[test]
fn a_machine_without_any_of_it_has_nothing_and_says_nothing() {
    let machine = Machine::new();
    assert!(look(&machine).is_empty());
    fs::remove_dir_all(machine.at("sys")).expect("removed");
    assert!(look(&machine).is_empty());
}

#[test]
fn functions_have_what_belongs_to_them() {
    let machine = Machine::new();
    let second = Adapter {
        function: 1,
        ..ROCE
    };
    machine.adapter(&ROCE, 0);
    machine.adapter(&second, 1);
    machine.adapter(&IB, 2);
    machine.virtual_functions(&IB, 2, 3);
    // A disk, a function whose files can't be read, and one that has just gone.
    machine.write("sys/bus/pci/devices/0000:01:00.0/class", "0x010802\n");
    machine.write("sys/bus/pci/devices/0000:02:00.0/class", "nonsense\n");
    fs::create_dir_all(machine.at("sys/bus/pci/devices/0000:03:00.0")).expect("made");
    let found = look(&machine);
    let ids: Vec<_> = found.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "mt2042x00123-0-0",
            "mt2042x00123-0-1",
            "mt1917k00001-0-0",
            "mt1917k00001-0-0-vf0",
            "mt1917k00001-0-0-vf1",
        ]
    );
    let vf = &found[4];
    assert_eq!(
        vf.virtual_of.map(|(pf, n)| (pf.to_string(), n)),
        Some((IB.address(), 1))
    );
    assert_eq!(vf.numa_node, Some(1));
    assert_eq!(vf.link_type, Some(LinkType::Infiniband));
    assert_eq!(vf.driver.as_deref(), Some("mlx5_core"));
    assert_eq!(vf.pf_names, ["ens134f0"]);
    let above: Vec<_> = vf.bridges.iter().map(ToString::to_string).collect();
    assert_eq!(above, ["0000:85:00.0"]);
    let rdma = vf.rdma.as_ref().expect("it has one");
    assert_eq!(rdma.protocol, Some(Protocol::Ib));
    let names: BTreeSet<_> = rdma
        .char_devices
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(names, BTreeSet::from(["issm4", "umad4", "uverbs4"]));
    let needs = needs(&machine.root(), vf.address).expect("all is there");
    assert_eq!(needs.char_devices.len(), 4, "its own and rdma_cm");
    let roce = found[0].rdma.as_ref().expect("it has one");
    assert_eq!(roce.protocol, Some(Protocol::Roce));
}

#[test]
fn cards_with_the_same_serial_number_are_told_by_their_places() {
    let machine = Machine::new();
    for (number, bus) in (0..).zip([0x3b, 0x5e]) {
        let card = Adapter { bus, ..ROCE };
        machine.adapter(&card, number);
    }
    let none = Adapter {
        bus: 0xaf,
        serial: None,
        ..ROCE
    };
    machine.adapter(&none, 2);
    let ids: Vec<_> = look(&machine).into_iter().map(|it| it.id).collect();
    assert_eq!(ids, ["0000-3b-00-0", "0000-5e-00-0", "0000-af-00-0"]);
}

#[test]
fn soft_roce_belongs_to_the_function_of_its_net_device() {
    let machine = Machine::new();
    machine.adapter(&ROCE, 0);
    let real = machine.at("sys/class/infiniband/mlx5_0");
    fs::remove_file(real).expect("removed");
    for part in ["infiniband", "infiniband_verbs"] {
        let below = format!("sys/bus/pci/devices/{}/{part}", ROCE.address());
        fs::remove_dir_all(machine.at(below)).expect("removed");
    }
    fs::remove_file(machine.at("sys/class/infiniband_verbs/uverbs0")).expect("removed");
    let class = "sys/class/infiniband/rxe0";
    machine.write(format!("{class}/parent"), "ens59f0\n");
    machine.write(format!("{class}/node_type"), "1: CA\n");
    machine.write(format!("{class}/ports/1/state"), "4: ACTIVE\n");
    machine.write(format!("{class}/ports/1/link_layer"), "Ethernet\n");
    machine.write("sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0\n");
    machine.write("sys/class/infiniband_verbs/uverbs0/dev", "231:192\n");
    let device = machine.at("sys/class/net/ens59f0");
    fs::create_dir_all(&device).expect("made");
    let to = format!("../../../bus/pci/devices/{}", ROCE.address());
    std::os::unix::fs::symlink(to, device.join("device")).expect("linked");
    let found = look(&machine);
    let rdma = found[0].rdma.as_ref().expect("the software's");
    assert_eq!(rdma.device.name, "rxe0");
    let needs = needs(&machine.root(), found[0].address).expect("all is there");
    assert_eq!(needs.rdma.as_deref(), Some("rxe0"));
    assert!(needs.char_devices[0].ends_with("uverbs0"));
}

#[test]
fn a_thousand_virtual_functions_are_each_found_once() {
    let machine = Machine::new();
    let ports = (0..8).map(|function| Adapter { function, ..ROCE });
    for (adapter, first) in ports.zip((100..).step_by(200)) {
        // Each port's functions on buses of their own, as they are with so many.
        let adapter = Adapter {
            bus: 0x20 + 0x10 * adapter.function,
            function: 0,
            serial: None,
            ..adapter
        };
        machine.adapter(&adapter, first);
        machine.virtual_functions(&adapter, 127, first + 1);
    }
    let found = look(&machine);
    let ids: BTreeSet<_> = found.iter().map(|it| it.id.as_str()).collect();
    assert_eq!((found.len(), ids.len()), (8 + 1016, 8 + 1016));
    assert!(ids.iter().all(|id| id.len() <= 63));
    let config = Config::parse("pools: [{name: vf, select: {rdma: true}}]").expect("valid");
    let (sorted, overlaps) = config.sort(&found);
    assert!(overlaps.is_empty());
    let mut watched = PortWatch::new(machine.root());
    let offered = offers(&sorted[0], &mut watched, Instant::now());
    assert_eq!(offered.len(), 1016);
}

#[test]
fn a_recording_without_uevents_says_the_same() {
    let machine = Machine::new();
    machine.adapter(&IB, 0);
    machine.virtual_functions(&IB, 2, 1);
    let told = look(&machine);
    for function in &told {
        let folder = format!("sys/bus/pci/devices/{}", function.address);
        fs::remove_file(machine.at(format!("{folder}/uevent"))).expect("removed");
    }
    assert_eq!(look(&machine), told);
    assert_eq!((told[1].vendor, told[1].device), (0x15b3, 0x101e));
}
