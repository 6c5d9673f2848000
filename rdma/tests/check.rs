//! What a person learns about nodes that were recorded: healthy ones, and those with the faults that
//! real fleets have.

mod recorded;

use recorded::{Recorded, finding, troubles};
use trackbed_rdma::check::{Expectation, GatherError, Scope, Selection, Severity, Verdict, gather};

#[test]
fn a_healthy_node_with_a_dual_port_adapter_passes_without_a_warning() {
    let node = Recorded::node();
    node.adapter(0, 2);
    let report = node.check();
    assert_eq!(troubles(&report), Vec::<String>::new());
    assert_eq!(report.verdict, Verdict::Pass);
    let all = Expectation {
        rate_gbps: Some(100.0),
        mtu: Some(4096),
    };
    assert_eq!(node.check_with(&all).verdict, Verdict::Pass);
    let pci = finding(&report, "pci/bandwidth", "mlx5_0");
    assert_eq!(
        pci.found,
        "PCIe carries 252 Gb/s, its active ports 200 Gb/s"
    );
}

#[test]
fn a_port_that_lost_lanes_is_named_by_comparing_it_with_its_siblings() {
    let node = Recorded::node();
    node.adapter(0, 1).adapter(1, 1).adapter(2, 1).file(
        "sys/class/infiniband/mlx5_1/ports/1/rate",
        "50 Gb/sec (2X EDR)\n",
    );
    let report = node.check();
    assert_eq!(troubles(&report), ["port/siblings mlx5_1/1"]);
    assert_eq!(report.verdict, Verdict::Fail);
    let lost = finding(&report, "port/siblings", "mlx5_1/1");
    assert_eq!(lost.found, "50 Gb/s on 2 lanes of 4");
    assert!(
        lost.remedy
            .as_ref()
            .is_some_and(|remedy| remedy.contains("lane"))
    );
}

#[test]
fn a_slower_port_without_expectation_is_a_warning_and_with_one_a_failure() {
    let node = Recorded::node();
    node.adapter(0, 1).adapter(1, 1).file(
        "sys/class/infiniband/mlx5_1/ports/1/rate",
        "40 Gb/sec (4X QDR)\n",
    );
    let report = node.check();
    assert_eq!(troubles(&report), ["port/siblings mlx5_1/1"]);
    assert_eq!(report.verdict, Verdict::Pass);
    let expectation = Expectation {
        rate_gbps: Some(100.0),
        mtu: None,
    };
    let report = node.check_with(&expectation);
    assert_eq!(troubles(&report), ["port/rate mlx5_1/1"]);
    assert_eq!(report.verdict, Verdict::Fail);
}

#[test]
fn a_downgraded_pcie_link_fails_and_a_narrow_slot_is_only_told() {
    let node = Recorded::node();
    let pci = "sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0";
    node.adapter(0, 1)
        .file(&format!("{pci}/current_link_width"), "8\n")
        .file(&format!("{pci}/current_link_speed"), "2.5 GT/s PCIe\n");
    let report = node.check();
    assert_eq!(
        troubles(&report),
        [
            "pci/width mlx5_0",
            "pci/speed mlx5_0",
            "pci/bandwidth mlx5_0"
        ]
    );
    let width = finding(&report, "pci/width", "mlx5_0");
    assert_eq!(
        (width.found.as_str(), width.expected.as_deref()),
        ("x8", Some("x16"))
    );

    let node = Recorded::node();
    node.adapter(0, 1)
        .file(&format!("{pci}/current_link_width"), "8\n")
        .file("sys/devices/pci0000:3a/0000:3a:00.0/max_link_width", "8\n");
    let report = node.check();
    assert_eq!(troubles(&report), Vec::<String>::new());
    assert_eq!(
        finding(&report, "pci/width", "mlx5_0").severity,
        Severity::Note
    );
}

#[test]
fn the_device_whose_firmware_differs_is_named() {
    let node = Recorded::node();
    node.adapter(0, 1)
        .adapter(1, 1)
        .adapter(2, 1)
        .file("sys/class/infiniband/mlx5_2/fw_ver", "22.31.1014\n");
    let report = node.check();
    assert_eq!(troubles(&report), ["firmware/siblings mlx5_2"]);
    let odd = finding(&report, "firmware/siblings", "mlx5_2");
    assert_eq!(odd.found, "22.31.1014");
    assert!(
        odd.expected
            .as_ref()
            .is_some_and(|text| text.starts_with("22.39.2048"))
    );
}

#[test]
fn a_port_that_is_down_fails_with_what_to_do() {
    let node = Recorded::node();
    node.adapter(0, 2)
        .file(
            &format!("{}/state", Recorded::port_folder(0, 2)),
            "1: DOWN\n",
        )
        .file(
            &format!("{}/phys_state", Recorded::port_folder(0, 2)),
            "3: Disabled\n",
        );
    let report = node.check();
    assert_eq!(troubles(&report), ["port/state mlx5_0/2"]);
    let down = finding(&report, "port/state", "mlx5_0/2");
    assert_eq!(down.found, "DOWN (physical state Disabled)");
    assert!(
        down.remedy
            .as_ref()
            .is_some_and(|remedy| remedy.contains("ip link set ens0f1 up"))
    );

    let selections = ["mlx5_0/1".parse::<Selection>().expect("a port")];
    let scope = Scope {
        root: node.root(),
        live: false,
        selections: &selections,
    };
    let facts = gather(&scope).expect("facts");
    let findings = trackbed_rdma::check::judge(&facts, &Expectation::default());
    assert_eq!(Verdict::of(&findings), Verdict::Pass, "port 2 was left out");
}

#[test]
fn an_mtu_of_1500_under_roce_warns_and_fails_when_more_is_expected() {
    let node = Recorded::node();
    node.adapter(0, 1)
        .file("sys/class/net/ens0f0/mtu", "1500\n");
    let report = node.check();
    assert_eq!(troubles(&report), ["port/mtu mlx5_0/1"]);
    let mtu = finding(&report, "port/mtu", "mlx5_0/1");
    assert_eq!(mtu.found, "1024, with 1500 on its net device");
    let expectation = Expectation {
        rate_gbps: None,
        mtu: Some(4096),
    };
    assert_eq!(node.check_with(&expectation).verdict, Verdict::Fail);
}

#[test]
fn a_port_without_addresses_fails_and_one_with_ipv6_only_warns() {
    let node = Recorded::node();
    let gids = format!("{}/gids", Recorded::port_folder(0, 1));
    node.adapter(0, 1).remove(&format!("{gids}/1"));
    let report = node.check();
    assert_eq!(troubles(&report), ["gid/usable mlx5_0/1"]);
    assert_eq!(report.verdict, Verdict::Pass);
    node.remove(&gids);
    let report = node.check();
    // The net device is known from the GIDs only.
    assert_eq!(report.verdict, Verdict::Fail);
    assert_eq!(
        finding(&report, "gid/usable", "mlx5_0/1").found,
        "it has no GID"
    );
}

#[test]
fn an_address_that_two_ports_have_fails() {
    let node = Recorded::node();
    node.adapter(0, 2).file(
        &format!("{}/gids/1", Recorded::port_folder(0, 2)),
        "0000:0000:0000:0000:0000:ffff:0a00:0001\n",
    );
    let report = node.check();
    assert_eq!(troubles(&report), ["gid/unique mlx5_0/1"]);
    let twice = finding(&report, "gid/unique", "mlx5_0/1");
    assert_eq!(
        twice.found,
        "::ffff:10.0.0.1 (rocev2-ipv4) is at mlx5_0/2 too"
    );
}

#[test]
fn limits_on_locked_memory_are_warned_of_for_us_and_for_containers() {
    let node = Recorded::node();
    let limit = "Max locked memory         8388608              8388608              bytes\n";
    node.adapter(0, 1)
        .file("proc/self/limits", limit)
        .file("proc/812/limits", limit);
    assert_eq!(
        troubles(&node.check()),
        ["memory/memlock node", "memory/containers node"]
    );
    node.file("proc/self/status", "CapEff:\t000001ffffffffff\n");
    assert_eq!(troubles(&node.check()), ["memory/containers node"]);
}

#[test]
fn a_process_kept_away_from_the_devices_cpus_is_warned() {
    let node = Recorded::node();
    node.adapter(0, 1)
        .file("proc/self/status", "Cpus_allowed_list:\t0-7\n");
    assert_eq!(troubles(&node.check()), ["numa/cpus mlx5_0"]);
}

#[test]
fn errors_that_stand_since_boot_are_noted_only() {
    let node = Recorded::node();
    node.adapter(0, 1).file(
        &format!("{}/counters/symbol_error", Recorded::port_folder(0, 1)),
        "17\n",
    );
    let report = node.check();
    assert_eq!(report.verdict, Verdict::Pass);
    let standing = finding(&report, "counters/standing", "mlx5_0/1");
    assert!(
        standing.found.ends_with("symbol_error 17"),
        "{}",
        standing.found
    );
}

#[test]
fn neither_pfc_nor_ecn_is_told_as_far_as_it_can_be_read() {
    let node = Recorded::node();
    node.adapter(0, 1);
    let report = node.check();
    assert_eq!(
        finding(&report, "flow/ecn", "mlx5_0/1").found,
        "ECN on priority 3"
    );
    node.remove("sys/class/net/ens0f0/ecn");
    let report = node.check();
    let ecn = finding(&report, "flow/ecn", "mlx5_0/1");
    assert_eq!(ecn.severity, Severity::Note);
    assert!(ecn.found.contains("not readable"), "{}", ecn.found);
}

#[test]
fn a_device_whose_files_vanished_is_inconclusive_and_never_passes() {
    let node = Recorded::node();
    let port = Recorded::port_folder(0, 1);
    node.adapter(0, 1)
        .remove(&format!("{port}/state"))
        .remove(&format!("{port}/phys_state"));
    let report = node.check();
    assert_eq!(report.verdict, Verdict::Inconclusive);
    assert_eq!(troubles(&report), ["port/state mlx5_0/1"]);
    node.remove("sys/class/infiniband/mlx5_0/ports");
    assert_eq!(
        node.check().verdict,
        Verdict::Fail,
        "a device without ports"
    );
}

#[test]
fn a_tree_without_devices_says_what_to_load_and_a_wrong_name_what_there_is() {
    let none = Recorded::new();
    let gathered = |node: &Recorded, selections: &[Selection]| {
        gather(&Scope {
            root: node.root(),
            live: false,
            selections,
        })
        .expect_err("nothing to judge")
    };
    let error = gathered(&none, &[]);
    assert!(matches!(error, GatherError::NoDevice(_)));
    assert!(error.to_string().contains("modprobe"), "{error}");
    let node = Recorded::node();
    node.adapter(0, 2);
    let error = gathered(&node, &["mlx5_0/3".parse().expect("a port")]);
    assert!(
        error.to_string().ends_with("there is mlx5_0/1, mlx5_0/2"),
        "{error}"
    );
}

#[test]
fn garbage_in_any_file_is_never_a_panic_nor_a_pass_by_accident() {
    let garbage: [&[u8]; 6] = [
        b"",
        b"\xff\xfe\x00garbage",
        b"-1",
        b"99999999999999999999999999",
        b"4: \n",
        b"(((X X X",
    ];
    let node = Recorded::node();
    node.adapter(0, 1);
    let mut files = Vec::new();
    collect(node.root(), node.root(), &mut files);
    assert!(files.len() > 40, "{files:?}");
    let scope = Scope {
        root: node.root(),
        live: false,
        selections: &[],
    };
    for file in &files {
        let good = std::fs::read(node.root().join(file)).expect("a file");
        for text in garbage {
            node.file(file, text);
            let Ok(facts) = gather(&scope) else { continue };
            let findings = trackbed_rdma::check::judge(&facts, &Expectation::default());
            if file.ends_with("ports/1/state") || file.ends_with("ports/1/rate") {
                assert_ne!(Verdict::of(&findings), Verdict::Pass, "{file}: {text:?}");
            }
        }
        node.file(file, good);
    }
}

fn collect(root: &std::path::Path, folder: &std::path::Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let path = path.strip_prefix(root).expect("below the root");
            files.push(path.to_str().expect("text").to_owned());
        }
    }
}
