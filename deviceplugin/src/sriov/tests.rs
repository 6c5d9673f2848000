use std::time::SystemTime;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::allocate::{Health, Holder, Marks, Offer, Place, Pod};
use crate::config::PoolName;

fn address(bus: u8) -> PciAddress {
    PciAddress {
        domain: 0,
        bus,
        device: 0,
        function: 0,
    }
}

fn port(bus: u8, vfs: u32) -> Function {
    Function {
        address: address(bus),
        id: format!("card{bus}"),
        vendor: 0x8086,
        device: 0x10c9,
        driver: None,
        virtual_of: None,
        pf_names: vec![format!("eth{bus}")],
        total_vfs: 7,
        vfs,
        numa_node: None,
        bridges: Vec::new(),
        net_devices: vec![format!("eth{bus}")],
        mac: None,
        link_type: None,
        rdma: None,
    }
}

fn wanted(names: &[&str], count: u32) -> VirtualFunctions {
    VirtualFunctions {
        pf_names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: Vec::new(),
        count,
    }
}

fn held(bus: u8) -> Held {
    let place = Place {
        address: PciAddress {
            device: 1,
            ..address(bus)
        },
        physical: address(bus),
        bridges: Vec::new(),
        numa_node: None,
    };
    Held {
        pool: PoolName("vf".to_owned()),
        offer: Offer {
            id: "card1-vf0".to_owned(),
            place,
            marks: Marks::default(),
            health: Health::Healthy,
        },
        holder: Some(Holder {
            pod: Some(Pod {
                namespace: "ns".to_owned(),
                name: "trainer".to_owned(),
            }),
            since: SystemTime::UNIX_EPOCH,
        }),
    }
}

#[test]
fn what_is_as_it_is_to_be_is_left_alone_and_the_rest_is_planned() {
    let found = [port(1, 4), port(2, 0), port(3, 2)];
    let steps = plan(&[wanted(&["eth1", "eth2"], 4)], &found, &[]);
    let step = Step {
        physical: address(2),
        from: 0,
        to: 4,
    };
    assert_eq!(steps, Ok(vec![step]));
    // A pod on a port that stays as it is does not matter.
    assert!(plan(&[wanted(&["eth1", "eth2"], 4)], &found, &[held(1)]).is_ok());
}

#[test]
fn what_can_not_be_is_refused_before_anything_is_done() {
    let found = [port(1, 4), port(2, 0)];
    let refused = |entries: &[VirtualFunctions]| {
        let refusal = plan(entries, &found, &[held(1)]);
        refusal.expect_err("refused").to_string()
    };
    assert!(
        refused(&[wanted(&["eth2"], 3), wanted(&["eth1"], 5)])
            .contains("pod ns/trainer has card1-vf0")
    );
    assert!(refused(&[wanted(&["eth2", "eth9"], 3)]).contains("eth9"));
    assert!(refused(&[wanted(&["eth2"], 8)]).contains("can have 7"));
    assert!(refused(&[wanted(&["eth2"], 3), wanted(&["eth2"], 4)]).contains("name it once"));
}

/// Ports that refuse some numbers.
#[derive(Default)]
struct Adapter {
    counts: Mutex<BTreeMap<PciAddress, u32>>,
    refuses: Option<(PciAddress, u32)>,
}

impl Switch for Adapter {
    fn set(&self, physical: PciAddress, count: u32) -> io::Result<()> {
        if self.refuses == Some((physical, count)) {
            return Err(io::Error::from_raw_os_error(12));
        }
        let mut counts = self.counts.lock();
        let now = counts.entry(physical).or_default();
        if *now != 0 && count != 0 {
            return Err(io::Error::from_raw_os_error(16));
        }
        *now = count;
        Ok(())
    }

    fn count(&self, physical: PciAddress) -> io::Result<u32> {
        Ok(*self.counts.lock().entry(physical).or_default())
    }
}

proptest! {
    #[test]
    fn all_ports_are_changed_or_none(
        ports in prop::collection::vec((0..8u32, 0..8u32), 1..6), fails in 0..12u8,
    ) {
        let found: Vec<_> = (1..).zip(&ports).map(|(bus, (from, _))| port(bus, *from)).collect();
        let entries: Vec<_> = (1..)
            .zip(&ports)
            .map(|(bus, (_, to))| wanted(&[&format!("eth{bus}")], *to))
            .collect();
        let steps = plan(&entries, &found, &[]);
        prop_assume!(steps.is_ok());
        let steps = steps.expect("assumed");
        let before: BTreeMap<_, _> = found.iter().map(|it| (it.address, it.vfs)).collect();
        let failing = steps.iter().find(|step| step.physical.bus == fails && step.to > 0);
        let adapter = Adapter {
            counts: Mutex::new(before.clone()),
            refuses: failing.map(|step| (step.physical, step.to)),
        };
        match apply(&steps, &adapter) {
            Ok(()) => {
                prop_assert!(failing.is_none());
                for (function, (_, to)) in found.iter().zip(&ports) {
                    prop_assert_eq!(adapter.count(function.address).expect("told"), *to);
                }
            }
            Err(error) => {
                prop_assert!(failing.is_some() && error.undone, "{}", error);
                prop_assert_eq!(&*adapter.counts.lock(), &before);
            }
        }
    }
}
