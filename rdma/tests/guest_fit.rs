//! Check and mesh on real devices: soft-RoCE in the guest of hack/vm, two devices joined by a link.

use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use trackbed_rdma::bench::{DeviceChoice, Length, Plan, Target};
use trackbed_rdma::check::{
    Expectation, LoadOptions, Scope, Selection, Severity, Verdict, gather, judge, load,
};
use trackbed_rdma::mesh::{
    AgentOptions, AgentRail, CoordinateOptions, Journal, MeshPlan, NodePort, coordinate, join,
};

/// The two devices of hack/lib/guest-tests.sh; `None`, and a word about it, elsewhere.
fn devices() -> Option<[String; 2]> {
    let given = std::env::var("TRACKBED_TEST_DEVICES").unwrap_or_default();
    let Some((one, other)) = given.split_once(',') else {
        eprintln!("skipped: no RDMA devices; `hack/test guest` runs this in a virtual machine");
        return None;
    };
    Some([one.to_owned(), other.to_owned()])
}

#[test]
fn a_device_that_works_is_found_fit_and_one_that_is_too_slow_is_not() {
    let Some([device, _]) = devices() else {
        return;
    };
    let selections = [Selection {
        device: device.clone(),
        port: None,
    }];
    let scope = Scope {
        root: Path::new("/"),
        live: true,
        selections: &selections,
    };
    let mut facts = gather(&scope).expect("facts");
    let options = LoadOptions {
        time: Duration::from_millis(200),
    };
    let mut loaded = Vec::new();
    load(&mut facts, &options, &mut |port| {
        loaded.push(port.to_owned())
    });
    assert_eq!(loaded, [format!("{device}/1")]);
    let findings = judge(&facts, &Expectation::default());
    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity >= Severity::Unknown)
        .collect();
    assert_eq!(failed, Vec::<&trackbed_rdma::check::Finding>::new());
    assert_eq!(Verdict::of(&findings), Verdict::Pass);
    let ran = findings.iter().find(|finding| finding.id == "load/run");
    assert!(ran.is_some_and(|ran| ran.found.ends_with("every byte right")));

    let faster = Expectation {
        rate_gbps: Some(100_000.0),
        mtu: None,
    };
    let findings = judge(&facts, &faster);
    assert_eq!(Verdict::of(&findings), Verdict::Fail);
}

#[test]
fn two_nodes_on_a_link_measure_each_other_in_all_ways() {
    let Some(devices) = devices() else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let meet = listener.local_addr().expect("bound").to_string();
    let usual = MeshPlan::default();
    let plan = MeshPlan {
        bandwidth: Plan {
            length: Length::Iterations(64),
            warmup: 0,
            ..usual.bandwidth
        },
        latency: Plan {
            length: Length::Iterations(20),
            warmup: 5,
            ..usual.latency
        },
        rails_apart: false,
    };
    let agents: Vec<_> = devices
        .into_iter()
        .map(|device| AgentOptions {
            identity: None,
            name: format!("node-of-{device}"),
            rails: vec![AgentRail {
                target: Target {
                    device: DeviceChoice::Named(device.clone()),
                    ..Target::default()
                },
                port: NodePort { device, port: 1 },
            }],
            meet: meet.clone(),
            address: None,
            patience: Duration::from_secs(10),
            client_patience: AgentOptions::CLIENT_PATIENCE,
        })
        .map(|options| thread::spawn(move || join(&options, &mut |_| {})))
        .collect();
    let options = CoordinateOptions {
        identity: None,
        listener,
        nodes: 2,
        patience: Duration::from_secs(60),
        journal: Journal::in_memory(plan),
    };
    let mesh = coordinate(options, &mut |_| {}).expect("a mesh");
    for agent in agents {
        agent
            .join()
            .expect("no panic")
            .expect("it took part to the end");
    }
    assert_eq!(mesh.pairs.len(), 1);
    let pair = &mesh.pairs[0];
    assert_eq!(pair.failure, None);
    for figure in [pair.there_gbps, pair.back_gbps, pair.latency_us] {
        assert!(figure.is_some_and(|figure| figure > 0.0), "{pair:?}");
    }
    println!("{pair:?}");
}
