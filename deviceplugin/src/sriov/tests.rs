use std::collections::BTreeMap;
use std::time::SystemTime;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::allocate::{Health, Held, Holder, Marks, Offer, Place, Pod};
use crate::config::{Config, PoolName};
use crate::function::Function;

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
        serial: Some(format!("card{bus}")),
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

fn vf(bus: u8, index: u32) -> Function {
    let function = u8::try_from(index + 1).expect("few");
    Function {
        address: PciAddress {
            device: function / 8,
            function: function % 8,
            ..address(bus)
        },
        virtual_of: Some((address(bus), index)),
        total_vfs: 0,
        ..port(bus, 0)
    }
}

fn configured(entries: &str) -> Vec<VirtualFunctions> {
    let text = format!("pools: [{{name: vf}}]\nvirtual-functions:\n{entries}\n");
    Config::parse(&text).expect(&text).virtual_functions
}

fn wanted(names: &[&str], count: u32) -> Vec<VirtualFunctions> {
    configured(&format!("- {{pf-names: {names:?}, count: {count}}}"))
}

/// A pod has the `index`-th virtual function of a port.
fn held(bus: u8, index: u32) -> Held {
    let place = Place {
        address: vf(bus, index).address,
        physical: address(bus),
        bridges: Vec::new(),
        numa_node: None,
    };
    Held {
        pool: PoolName("vf".to_owned()),
        offer: Offer {
            id: format!("card{bus}-vf{index}"),
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
    let none = Ports::new();
    let four = wanted(&["eth1", "eth2"], 4);
    let steps = plan(&four, &found, &[], &none).expect("planned");
    let planned: Vec<_> = steps
        .iter()
        .map(|it| (it.physical, it.from, it.to))
        .collect();
    assert_eq!(planned, [(address(2), 0, 4)]);
    // A pod on a port that stays as it is does not matter.
    assert!(plan(&four, &found, &[held(1, 0)], &none).is_ok());
}

#[test]
fn what_can_not_be_is_refused_before_anything_is_done() {
    let found = [port(1, 4), port(2, 0)];
    let refused = |entries: &str| {
        let refusal = plan(&configured(entries), &found, &[held(1, 0)], &Ports::new());
        refusal.expect_err(entries).to_string()
    };
    let said = refused("- {pf-names: [eth2], count: 3}\n- {pf-names: [eth1], count: 5}");
    assert!(said.contains("pod ns/trainer has card1-vf0"), "{said}");
    assert!(refused("- {pf-names: [eth2, eth9], count: 3}").contains("eth9"));
    assert!(refused("- {pf-names: [eth2], count: 8}").contains("can have 7"));
    for other in ["count: 4", "count: 3, settings: {trust: true}"] {
        let said = refused(&format!(
            "- {{pf-names: [eth2], count: 3}}\n- {{pf-names: [eth2], {other}}}"
        ));
        assert!(said.contains("name it once"), "{said}");
    }
    let said = refused("- {pf-names: [eth2], count: 2, settings: {mac: '02:00:00:00:00:01'}}");
    assert!(said.contains("02:00:00:00:00:01"), "{said}");
    let said = refused("- {pf-names: [eth2], count: 2, settings: {msix: 8}}");
    assert!(said.contains("16 interrupt vectors"), "{said}");
}

#[test]
fn settings_that_differ_are_planned_with_what_they_are_and_what_they_are_to_be() {
    let found = [port(1, 2), vf(1, 0), vf(1, 1)];
    let mtu = |bytes| Setting::Mtu(Mtu(bytes));
    let state = PortState {
        functions: vec![
            vec![Setting::Trust(true), mtu(1500)],
            vec![Setting::Trust(false), mtu(9000)],
        ],
        ..PortState::default()
    };
    let ports = Ports::from([(address(1), state)]);
    let entries = configured(
        "- {pf-names: [eth1], count: 2, settings: {trust: true, mtu: 9000},
            functions: [{indexes: '1', settings: {vlan: {id: 7}}}]}",
    );
    let steps = plan(&entries, &found, &[], &ports).expect("planned");
    let shown = |it: &Change| {
        let from = it.from.map_or("-".to_owned(), |it| it.to_string());
        format!("{} {} {from} -> {}", it.function, it.setting, it.to)
    };
    let changes: Vec<_> = steps[0].changes.iter().map(shown).collect();
    assert_eq!(
        changes,
        [
            "0 mtu 1500 -> 9000",
            "1 vlan - -> 7 qos 0 802.1q",
            "1 trust off -> on",
        ]
    );
    // One that a pod has keeps what it has; the pod's name is told. Another one's pod does not matter.
    let trust = configured("- {pf-names: [eth1], count: 2, settings: {trust: true}}");
    let refused = plan(&trust, &found, &[held(1, 1)], &ports).expect_err("held");
    assert!(refused.to_string().contains("pod ns/trainer has card1-vf1"));
    assert!(plan(&trust, &found, &[held(1, 0)], &ports).is_ok());
    // What can't be seen of one that is in a pod's network namespace is no difference.
    let away = configured("- {pf-names: [eth1], count: 2, settings: {link-state: auto}}");
    let pods = [held(1, 0), held(1, 1)];
    assert_eq!(plan(&away, &found, &pods, &ports), Ok(Vec::new()));
}

#[test]
fn stable_addresses_are_of_the_card_and_refused_for_a_port_that_nothing_names() {
    let entries = configured(
        "- {pf-names: [eth1], count: 3, settings: {mac: stable, node-guid: stable, port-guid: stable}}",
    );
    let addresses = |port: Function| {
        let steps = plan(&entries, &[port], &[], &Ports::new())?;
        let to = steps[0].changes.iter().map(|it| it.to.to_string());
        Ok::<Vec<_>, PlanError>(to.collect())
    };
    let first = addresses(port(1, 0)).expect("planned");
    assert_eq!(first.len(), 9);
    let elsewhere = Function {
        address: address(1),
        net_devices: vec!["eth1".to_owned()],
        ..port(9, 0)
    };
    let moved = Function {
        serial: Some("card1".to_owned()),
        ..elsewhere.clone()
    };
    assert_eq!(addresses(moved).expect("planned"), first, "in another slot");
    assert_ne!(
        addresses(elsewhere).expect("planned"),
        first,
        "another card"
    );
    let nameless = Function {
        serial: None,
        ..port(1, 0)
    };
    assert_eq!(addresses(nameless), Err(PlanError::NoIdentity(address(1))));
}

/// Ports whose drivers refuse some numbers and settings, or take them and do nothing.
#[derive(Default)]
struct Adapter {
    functions: Mutex<BTreeMap<PciAddress, Vec<Vec<Setting>>>>,
    refuses: Option<(PciAddress, u32)>,
    refuses_setting: Option<(PciAddress, u32, Setting)>,
    ignores: Option<Setting>,
}

/// What a virtual function is like when it is made.
fn new_function() -> Vec<Setting> {
    vec![
        Setting::Mac(Mac([0; 6])),
        Setting::Trust(false),
        Setting::Mtu(Mtu(1500)),
    ]
}

impl Switch for Adapter {
    fn set_count(&self, physical: PciAddress, count: u32) -> io::Result<()> {
        if self.refuses == Some((physical, count)) {
            return Err(io::Error::from_raw_os_error(12));
        }
        let mut functions = self.functions.lock();
        let now = functions.entry(physical).or_default();
        if !now.is_empty() && count != 0 {
            return Err(io::Error::from_raw_os_error(16));
        }
        *now = vec![new_function(); count as usize];
        Ok(())
    }

    fn count(&self, physical: PciAddress) -> io::Result<u32> {
        Ok(self.port(physical)?.functions.len() as u32)
    }

    fn port(&self, physical: PciAddress) -> io::Result<PortState> {
        let functions = self.functions.lock().get(&physical).cloned();
        Ok(PortState {
            functions: functions.unwrap_or_default(),
            ..PortState::default()
        })
    }

    fn set(&self, physical: PciAddress, index: u32, settings: &[Setting]) -> io::Result<()> {
        let mut functions = self.functions.lock();
        let all = functions.get_mut(&physical).expect("it has some");
        let one = &mut all[index as usize];
        if settings.iter().any(Setting::is_read_at_bind) {
            one.retain(|it| !matches!(it, Setting::Mtu(_)));
            one.push(Setting::Mtu(Mtu(1500)));
        }
        for setting in settings {
            if self.refuses_setting == Some((physical, index, *setting)) {
                return Err(io::Error::from_raw_os_error(95));
            }
            if self.ignores != Some(*setting) {
                one.retain(|it| it.name() != setting.name());
                one.push(*setting);
            }
        }
        Ok(())
    }
}

#[test]
fn a_new_address_does_not_cost_the_mtu_and_what_the_driver_ignores_is_found_out() {
    let mut now = new_function();
    now[2] = Setting::Mtu(Mtu(9000));
    let adapter = Adapter {
        functions: Mutex::new([(address(1), vec![now])].into()),
        ignores: Some(Setting::Trust(true)),
        ..Adapter::default()
    };
    let found = [port(1, 1), vf(1, 0)];
    let steps = |settings: &str| {
        let entry = format!("- {{pf-names: [eth1], count: 1, settings: {{{settings}}}}}");
        let entries = configured(&entry);
        let ports = look(&entries, &found, &adapter).expect("looks");
        plan(&entries, &found, &[], &ports).expect("planned")
    };
    apply(&steps("mac: '02:00:00:00:00:07'"), &adapter).expect("applied");
    let now = adapter.port(address(1)).expect("looks").functions;
    assert!(now[0].contains(&Setting::Mtu(Mtu(9000))), "{now:?}");
    assert!(now[0].contains(&Setting::Mac(Mac([2, 0, 0, 0, 0, 7]))));
    assert_eq!(
        steps("mac: '02:00:00:00:00:07'"),
        [],
        "nothing is left to do"
    );

    let error = apply(&steps("mac: '02:00:00:00:00:08', trust: true"), &adapter);
    let said = error.expect_err("ignored").to_string();
    assert!(said.contains("trust was set to on") && said.contains("read back is off"));
    assert!(said.contains("as it was before"), "{said}");
    let mut after = adapter.port(address(1)).expect("looks").functions;
    let mut before = now;
    before[0].sort_unstable();
    after[0].sort_unstable();
    assert_eq!(after, before);
}

proptest! {
    #[test]
    fn all_ports_are_changed_or_none(
        ports in prop::collection::vec((0..8u32, 0..8u32, any::<bool>()), 1..6),
        fails in 0..12u8, at_setting: bool,
    ) {
        let found: Vec<_> = (1..)
            .zip(&ports)
            .flat_map(|(bus, (from, _, _))| {
                let functions = (0..*from).map(move |index| vf(bus, index));
                std::iter::once(port(bus, *from)).chain(functions)
            })
            .collect();
        let entry = |(bus, (_, to, trusted)): (u8, &(u32, u32, bool))| {
            let settings = format!("{{mac: stable, trust: {trusted}, mtu: 4200}}");
            format!("- {{pf-names: [eth{bus}], count: {to}, settings: {settings}}}\n")
        };
        let entries: String = (1..).zip(&ports).map(entry).collect();
        let entries = configured(&entries);
        let before: BTreeMap<_, _> = (1..)
            .zip(&ports)
            .map(|(bus, (from, _, _))| (address(bus), vec![new_function(); *from as usize]))
            .collect();
        let mut adapter = Adapter { functions: Mutex::new(before.clone()), ..Adapter::default() };
        let state = look(&entries, &found, &adapter).expect("looks");
        let steps = plan(&entries, &found, &[], &state).expect("planned");
        let failing = steps.iter().find(|step| step.physical.bus == fails && step.to > 0);
        let refused_setting = failing.and_then(|step| Some((step.physical, step.changes.last()?)));
        let refused_count = failing.filter(|step| step.from != step.to);
        if at_setting {
            adapter.refuses_setting =
                refused_setting.map(|(physical, change)| (physical, change.function, change.to));
        } else {
            adapter.refuses = refused_count.map(|step| (step.physical, step.to));
        }
        let fails = adapter.refuses.is_some() || adapter.refuses_setting.is_some();
        match apply(&steps, &adapter) {
            Ok(()) => {
                prop_assert!(!fails);
                for (bus, (_, to, trusted)) in (1..).zip(&ports) {
                    let functions = adapter.port(address(bus)).expect("told").functions;
                    prop_assert_eq!(functions.len(), *to as usize);
                    for function in functions {
                        prop_assert!(function.contains(&Setting::Trust(*trusted)));
                        prop_assert!(function.contains(&Setting::Mtu(Mtu(4200))));
                        prop_assert!(!function.contains(&Setting::Mac(Mac([0; 6]))));
                    }
                }
                let state = look(&entries, &adapter_found(&ports), &adapter).expect("looks");
                let left = plan(&entries, &adapter_found(&ports), &[], &state).expect("planned");
                prop_assert_eq!(left, Vec::new());
            }
            Err(error) => {
                prop_assert!(fails && error.undone, "{}", error);
                let sorted = |all: &BTreeMap<PciAddress, Vec<Vec<Setting>>>| {
                    let mut all = all.clone();
                    all.values_mut().flatten().for_each(|one| one.sort_unstable());
                    all
                };
                prop_assert_eq!(sorted(&adapter.functions.lock()), sorted(&before));
            }
        }
    }
}

/// What is found after a plan for these ports is carried out.
fn adapter_found(ports: &[(u32, u32, bool)]) -> Vec<Function> {
    let ports = (1..).zip(ports);
    ports.map(|(bus, (_, to, _))| port(bus, *to)).collect()
}
