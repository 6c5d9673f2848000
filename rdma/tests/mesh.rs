//! A whole mesh on the mock provider: a coordinator and agents that meet over TCP, as processes on
//! different nodes would.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use authority::Authority;
use trackbed_rdma::bench::{DeviceChoice, Identity, Length, Target};
use trackbed_rdma::mesh::{
    AgentOptions, AgentProgress, AgentRail, CoordinateOptions, Journal, Mesh, MeshError, MeshPlan,
    NodePort, Progress, coordinate, join,
};

mod authority;

fn quick() -> MeshPlan {
    let usual = MeshPlan::default();
    MeshPlan {
        bandwidth: trackbed_rdma::bench::Plan {
            length: Length::Iterations(64),
            warmup: 0,
            sizes: vec![4096],
            ..usual.bandwidth
        },
        latency: trackbed_rdma::bench::Plan {
            length: Length::Iterations(20),
            warmup: 0,
            ..usual.latency
        },
        rails_apart: false,
    }
}

fn agent(name: &str, rails: usize, meet: SocketAddr) -> AgentOptions {
    let rail = |number: usize| {
        let device = format!("mock{}", number % 2);
        let context = trackbed_rdma::mock::open(&device).expect("the mock device");
        AgentRail {
            target: Target {
                device: DeviceChoice::Open(context),
                ..Target::default()
            },
            port: NodePort { device, port: 1 },
        }
    };
    AgentOptions {
        name: name.to_owned(),
        rails: (0..rails).map(rail).collect(),
        meet: meet.to_string(),
        identity: None,
        address: None,
        patience: Duration::from_secs(10),
        client_patience: Duration::from_secs(3),
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

type Coordinating = (
    thread::JoinHandle<Result<Mesh, MeshError>>,
    mpsc::Receiver<String>,
);

/// Coordinates in a thread over plain TCP; what it tells comes as sentences.
fn coordinator(
    listener: TcpListener,
    nodes: usize,
    journal: Journal,
    patience: Duration,
) -> Coordinating {
    coordinator_of(listener, None, nodes, journal, patience)
}

fn coordinator_of(
    listener: TcpListener,
    identity: Option<Arc<Identity>>,
    nodes: usize,
    journal: Journal,
    patience: Duration,
) -> Coordinating {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let options = CoordinateOptions {
            listener,
            identity,
            nodes,
            patience,
            journal,
        };
        coordinate(options, &mut |progress| {
            let sentence = match progress {
                Progress::Joined { node, .. } => format!("joined {}", node.name),
                Progress::Refused { reason, .. } => format!("refused {reason}"),
                Progress::Begins { pairs, known } => format!("begins {pairs} {known}"),
                Progress::Left { name, .. } => format!("left {name}"),
                Progress::Round { number, of, .. } => format!("round {number}/{of}"),
                Progress::Done(pair, _) => format!("done {} {} {}", pair.a, pair.b, pair.rail),
            };
            tell.send(sentence).ok();
        })
    });
    (thread, told)
}

/// All of them did, to the end.
fn took_part(agents: Vec<thread::JoinHandle<Result<(), MeshError>>>) {
    for agent in agents {
        agent
            .join()
            .expect("no panic")
            .expect("it took part to the end");
    }
}

const LONG: Duration = Duration::from_secs(60);

fn whole(nodes: usize, rails: usize, journal: Journal) -> (Mesh, Vec<String>) {
    let (listener, meet) = listener();
    let (thread, told) = coordinator(listener, nodes, journal, LONG);
    let agents: Vec<_> = (1..=nodes)
        .map(|number| {
            let options = agent(&format!("node-{number}"), rails, meet);
            thread::spawn(move || join(&options, &mut |_| {}))
        })
        .collect();
    took_part(agents);
    let mesh = thread.join().expect("no panic").expect("a mesh");
    (mesh, told.into_iter().collect())
}

#[test]
fn every_pair_of_four_nodes_on_two_rails_is_measured_in_all_ways() {
    let (mesh, told) = whole(4, 2, Journal::in_memory(quick()));
    assert_eq!((mesh.pairs.len(), mesh.expected_pairs()), (12, 12));
    for pair in &mesh.pairs {
        assert_eq!(pair.failure, None);
        for figure in [pair.there_gbps, pair.back_gbps, pair.latency_us] {
            assert!(figure.is_some_and(|figure| figure > 0.0), "{pair:?}");
        }
    }
    assert_eq!(mesh.check(), Ok(()));
    assert!(told.contains(&"round 3/3".to_owned()), "{told:?}");
    assert!(told.contains(&"begins 12 0".to_owned()), "{told:?}");
}

#[test]
fn a_second_run_measures_only_what_the_first_did_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mesh.jsonl");
    let open = |path: &Path| Journal::open(path, quick()).expect("a journal");
    let (first, _) = whole(3, 1, open(&path));
    assert_eq!(first.pairs.len(), 3);
    // The third node's results are lost with the end of the file, as after a crash.
    let text = std::fs::read_to_string(&path).expect("the journal");
    let kept: Vec<&str> = text.lines().collect();
    std::fs::write(&path, kept[..kept.len() - 2].join("\n") + "\n").expect("cut");
    let (second, told) = whole(3, 1, open(&path));
    assert!(told.contains(&"begins 3 1".to_owned()), "{told:?}");
    let done = told
        .iter()
        .filter(|sentence| sentence.starts_with("done"))
        .count();
    assert_eq!((done, second.pairs.len()), (2, 3));
    assert!(
        second.pairs.contains(&first.pairs[0]),
        "it was not measured again"
    );
    assert_eq!(Journal::load(&path).expect("readable"), second);
}

#[test]
fn strangers_and_namesakes_are_refused_with_a_sentence_and_disturb_nobody() {
    let (listener, meet) = listener();
    let (thread, told) = coordinator(listener, 2, Journal::in_memory(quick()), LONG);
    let one = thread::spawn(move || join(&agent("node-1", 1, meet), &mut |_| {}));
    assert_eq!(told.recv().expect("told"), "joined node-1");
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"{\"message\":\"alive\"}\n",
        b"{\"message\":\"join\",\"version\":99}\n",
        b"\xff\xff\xff\n",
    ] {
        let mut stranger = TcpStream::connect(meet).expect("connected");
        stranger.write_all(nonsense).expect("written");
        let sentence = told.recv().expect("told");
        assert!(sentence.starts_with("refused"), "{sentence}");
    }
    let namesake = join(&agent("node-1", 1, meet), &mut |_| {}).expect_err("taken already");
    assert!(namesake.to_string().contains("--name"), "{namesake}");
    let two = join(&agent("node-2", 1, meet), &mut |_| {});
    two.expect("it took part");
    one.join().expect("no panic").expect("it took part");
    let mesh = thread.join().expect("no panic").expect("a mesh");
    assert_eq!(mesh.pairs.len(), 1);
    assert_eq!(mesh.pairs[0].failure, None);
}

#[test]
fn a_node_that_dies_is_named_and_the_others_are_measured() {
    let (listener, meet) = listener();
    let (thread, told) = coordinator(listener, 4, Journal::in_memory(quick()), LONG);
    // It joins as an agent does, and dies when all are there.
    let mut dying = TcpStream::connect(meet).expect("connected");
    dying
        .write_all(
            b"{\"message\":\"join\",\"version\":1,\"software\":\"t\",\"node\":{\"name\":\"node-0\",\
              \"ports\":[{\"device\":\"mock0\",\"port\":1}]},\"address\":null}\n",
        )
        .expect("written");
    let agents: Vec<_> = (1..4)
        .map(|number| {
            let options = agent(&format!("node-{number}"), 1, meet);
            thread::spawn(move || join(&options, &mut |_| {}))
        })
        .collect();
    for sentence in &told {
        if sentence.starts_with("begins") {
            break;
        }
    }
    drop(dying);
    took_part(agents);
    let mesh = thread.join().expect("no panic").expect("a mesh");
    assert_eq!(mesh.pairs.len(), 6, "every pair has an outcome");
    assert_eq!(mesh.left.len(), 1);
    assert_eq!(mesh.nodes[mesh.left[0].node].name, "node-0");
    for pair in &mesh.pairs {
        assert_eq!(pair.failure.is_some(), pair.a == 0, "{pair:?}");
    }
}

#[test]
fn waiting_ends_with_who_came_and_a_coordinator_that_is_not_there_with_its_address() {
    let (listener, meet) = listener();
    let patience = Duration::from_millis(700);
    let (thread, _told) = coordinator(listener, 3, Journal::in_memory(quick()), patience);
    let alone = join(&agent("node-1", 1, meet), &mut |progress| {
        if let AgentProgress::Welcome { nodes } = progress {
            assert_eq!(nodes, 3);
        }
    });
    assert!(
        alone
            .expect_err("refused")
            .to_string()
            .contains("not all nodes came")
    );
    let error = thread.join().expect("no panic").expect_err("only one came");
    assert!(error.to_string().contains("1 of 3 nodes came"), "{error}");

    let mut late = agent("node-1", 1, meet);
    late.patience = Duration::ZERO;
    let error = join(&late, &mut |_| {}).expect_err("nobody listens");
    assert!(error.to_string().contains(&meet.to_string()), "{error}");
}

/// What a node shows that has a certificate for `name`; it looks for a coordinator of the name `meet`.
fn identity(issuer: &Authority, name: &str, meet: &str) -> Option<Arc<Identity>> {
    let papers = issuer.issue(name);
    let identity = Identity::from_pem(
        papers.certificate.as_bytes(),
        papers.key.as_bytes(),
        issuer.pem.as_bytes(),
        Some(meet.to_owned()),
    );
    Some(Arc::new(identity.expect("an identity")))
}

#[test]
fn nodes_with_certificates_of_one_authority_measure_whatever_names_those_have() {
    let authority = Authority::new();
    let (listener, meet) = listener();
    let shown = identity(&authority, "mesh.example", "mesh.example");
    let journal = Journal::in_memory(quick());
    let (thread, _told) = coordinator_of(listener, shown, 3, journal, LONG);
    // Two of them share a certificate, as pods of one job may.
    let shared = identity(&authority, "worker", "mesh.example");
    let own = identity(&authority, "10.9.8.7", "mesh.example");
    let agents: Vec<_> = [shared.clone(), shared, own]
        .into_iter()
        .zip(1..)
        .map(|(identity, number)| {
            let options = AgentOptions {
                identity,
                ..agent(&format!("node-{number}"), 1, meet)
            };
            thread::spawn(move || join(&options, &mut |_| {}))
        })
        .collect();
    took_part(agents);
    let mesh = thread.join().expect("no panic").expect("a mesh");
    assert_eq!(mesh.pairs.len(), 3);
    assert!(
        mesh.pairs.iter().all(|pair| pair.failure.is_none()),
        "{:?}",
        mesh.pairs
    );
}

#[test]
fn a_node_without_tls_and_a_coordinator_with_it_say_what_to_do_and_so_the_other_way_round() {
    let authority = Authority::new();
    let with = || identity(&authority, "mesh.example", "mesh.example");
    for (theirs, ours) in [(with(), None), (None, with())] {
        let (listener, meet) = listener();
        let journal = Journal::in_memory(quick());
        let patience = Duration::from_secs(2);
        let (thread, told) = coordinator_of(listener, theirs, 2, journal, patience);
        let options = AgentOptions {
            identity: ours,
            ..agent("node-1", 1, meet)
        };
        let error = join(&options, &mut |_| {}).expect_err("only one of them speaks TLS");
        assert!(matches!(error, MeshError::Stranger(_)), "{error}");
        assert!(error.to_string().contains("--tls-certificate"), "{error}");
        let sentence = told.recv().expect("told");
        assert!(sentence.contains("--tls-certificate"), "{sentence}");
        thread.join().expect("no panic").expect_err("nobody came");
    }
}

#[test]
fn a_node_of_another_authority_and_a_coordinator_of_another_name_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (listener, meet) = listener();
    let shown = identity(&authority, "mesh.example", "mesh.example");
    let journal = Journal::in_memory(quick());
    let patience = Duration::from_secs(4);
    let (thread, told) = coordinator_of(listener, shown, 2, journal, patience);
    for (identity, word) in [
        (identity(&other, "node-1", "mesh.example"), "--tls-ca"),
        (identity(&authority, "node-1", "elsewhere"), "--tls-name"),
    ] {
        let options = AgentOptions {
            identity,
            ..agent("node-1", 1, meet)
        };
        let error = join(&options, &mut |_| {}).expect_err("refused");
        assert!(matches!(error, MeshError::Stranger(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(told.recv().expect("told").starts_with("refused"));
    }
    thread.join().expect("no panic").expect_err("nobody came");
}
