use proptest::prelude::*;

use super::*;
use crate::function::{LinkType, PciAddress};

fn refused(text: &str) -> String {
    Config::parse(text).expect_err(text).to_string()
}

fn vf(address: &str, pf: &str, index: u32) -> Function {
    let address: PciAddress = address.parse().expect("an address");
    let pf_address = PciAddress {
        device: 0,
        function: 0,
        ..address
    };
    Function {
        address,
        id: address.to_string(),
        serial: None,
        vendor: 0x15b3,
        device: 0x101e,
        driver: Some("mlx5_core".into()),
        virtual_of: Some((pf_address, index)),
        pf_names: vec![pf.into()],
        total_vfs: 0,
        vfs: 0,
        numa_node: Some(1),
        bridges: Vec::new(),
        net_devices: vec![format!("{pf}v{index}")],
        mac: None,
        link_type: Some(LinkType::Ethernet),
        rdma: None,
    }
}

fn selected(select: &str) -> Vec<u32> {
    let text = format!("pools: [{{name: p, select: {{{select}}}}}]");
    let config = Config::parse(&text).expect(&text);
    let found: Vec<_> = (0..4)
        .map(|n| vf(&format!("0000:3b:00.{}", n + 1), "ens1f0", n))
        .chain((0..2).map(|n| vf(&format!("0000:5e:00.{}", n + 1), "ens2f0", n + 10)))
        .collect();
    let (sorted, overlaps) = config.sort(&found);
    assert!(overlaps.is_empty());
    let indexes = sorted[0]
        .functions
        .iter()
        .filter_map(|it| Some(it.virtual_of?.1));
    indexes.collect()
}

#[test]
fn what_is_selected_is_what_every_given_kind_says() {
    assert_eq!(selected(""), [0, 1, 2, 3, 10, 11]);
    assert_eq!(selected("pf-names: [ens2f0]"), [10, 11]);
    assert_eq!(
        selected("pf-names: ['ens1f0#0-1,3', 'ens2f0#11']"),
        [0, 1, 3, 11]
    );
    assert_eq!(
        selected("vendors: ['15b3'], devices: ['101e'], numa-nodes: [1]").len(),
        6
    );
    assert_eq!(selected("drivers: [igbvf]"), [0; 0]);
    assert_eq!(selected("addresses: ['0000:5e:00.2']"), [11]);
    assert_eq!(selected("link-types: [infiniband]"), [0; 0]);
    assert_eq!(selected("rdma: true"), [0; 0]);
    assert_eq!(selected("physical: true"), [0; 0]);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let cases = [
        ("pools:\n- name: a\n- name: A\n", "line 3"),
        ("pools:\n- name: a\n  mode: shared\n", "line 2"),
        ("pools:\n- name: a\n- name: b\n  shares: 3\n", "line 3"),
        ("pools:\n- name: a/b\n", "line 2"),
        ("prefix: nodots\npools:\n- name: a\n", "line 1"),
        ("pools:\n- name: a\n  colour: red\n", "line 3"),
        ("pools:\n- name: a\n  select:\n    vendors: [xyz]\n", "xyz"),
        (
            "pools:\n- name: a\n  select:\n    pf-names: ['e#3-1']\n",
            "e#3-1",
        ),
        ("pools: []\n", "0 pools"),
    ];
    for (text, expected) in cases {
        let said = refused(text);
        assert!(said.contains(expected), "{text}\n{said}");
    }
}

#[test]
fn a_device_in_two_pools_is_refused_with_both_names() {
    let text = "pools: [{name: one}, {name: two, select: {addresses: ['0000:3b:00.1']}}]";
    let config = Config::parse(text).expect("valid");
    let found = [
        vf("0000:3b:00.1", "ens1f0", 0),
        vf("0000:3b:00.2", "ens1f0", 1),
    ];
    let (sorted, overlaps) = config.sort(&found);
    let in_pools: Vec<_> = sorted.iter().map(|it| it.functions.len()).collect();
    assert_eq!(in_pools, [1, 0], "neither pool has it");
    let said = overlaps[0].to_string();
    for name in ["one", "two", "0000:3b:00.1"] {
        assert!(said.contains(name), "{said}");
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_without_a_panic(text in "[ -~\n]{0,200}") {
        let _ = Config::parse(&text);
    }

    #[test]
    fn any_value_is_refused_without_a_panic(value in "[ -~]{0,40}") {
        for key in ["name", "mode", "shares", "select", "expect"] {
            let _ = Config::parse(&format!("pools:\n- name: a\n  {key}: {value}\n"));
        }
        let _ = PfRange::try_from(value.clone());
        let _ = HexId::try_from(value);
    }
}

#[test]
fn what_ports_must_show_is_read_or_refused_with_its_line() {
    let expecting = |what: &str| format!("pools:\n  - name: p\n    expect:\n      {what}\n");
    let config = Config::parse(&expecting("gid-kind: rocev2-ipv4")).expect("valid");
    let kinds: Vec<_> = config.pools().map(|it| it.expect.gid_kind).collect();
    assert_eq!(kinds, [Some(GidKind::RoceV2Ipv4)]);
    let said = refused(&expecting("gid-kind: rocev3"));
    assert!(
        said.contains("rocev2-ipv6") && said.contains("line 4"),
        "{said}"
    );
    let said = refused(&expecting("link-errors-per-minute: -1"));
    assert!(said.contains("line 4"), "{said}");
}

#[test]
fn settings_that_can_not_be_are_refused_with_their_line() {
    let entry = |text: &str| {
        format!("pools: [{{name: p}}]\nvirtual-functions:\n- pf-names: [a]\n  count: 4\n  {text}\n")
    };
    for (text, expected) in [
        ("settings: {mac: '01:00:00:00:00:00'}", "01:00:00:00:00:00"),
        ("settings: {mac: '00:00:00:00:00:00'}", "stable"),
        ("settings: {mac: '02:0:00:00:00:00'}", "02:0:"),
        ("settings: {node-guid: '02:11'}", "no GUID"),
        ("settings: {vlan: {id: 4095}}", "4095"),
        ("settings: {vlan: {id: 1, qos: 8}}", "qos 8"),
        ("settings: {vlan: {id: 1, proto: '802.1x'}}", "802.1ad"),
        ("settings: {rate: {min: 10, max: 5}}", "at least 10"),
        ("settings: {mtu: 67}", "67 is no MTU"),
        ("settings: {msix: 0}", "0 interrupt vectors"),
        ("settings: {link-state: up}", "disable"),
        ("settings: {colour: red}", "colour"),
        ("functions: [{indexes: '3-1', settings: {}}]", "3-1"),
        (
            "functions: [{indexes: '2-4', settings: {}}]",
            "beyond the 4",
        ),
    ] {
        let said = refused(&entry(text));
        assert!(
            said.contains(expected) && said.contains("line"),
            "{text}\n{said}"
        );
    }
    let accepted = "settings: {mac: stable, node-guid: stable, port-guid: '02:11:22:33:44:55:66:77', \
        vlan: {id: 100, qos: 3, proto: 802.1ad}, rate: {max: 1000}, spoof-check: true, trust: false, \
        link-state: enable, mtu: 9000, msix: 16}";
    let config = Config::parse(&entry(accepted)).expect("valid");
    assert!(config.virtual_functions[0].has_settings());
}
