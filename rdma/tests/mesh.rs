//! A whole mesh on the mock provider: a coordinator and agents that meet over TCP, as processes on
//! different nodes would.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use trackbed_rdma::bench::{DeviceChoice, Length, Target};
use trackbed_rdma::mesh::{
    AgentOptions, AgentProgress, AgentRail, CoordinateOptions, Journal, Mesh, MeshError, MeshPlan,
    NodePort, Progress, coordinate, join,
};

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

/// Coordinates in a thread; what it tells comes as sentences.
fn coordinator(
    listener: TcpListener,
    nodes: usize,
    journal: Journal,
    patience: Duration,
) -> (
    thread::JoinHandle<Result<Mesh, MeshError>>,
    mpsc::Receiver<String>,
) {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        let options = CoordinateOptions {
            listener,
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
    for agent in agents {
        agent
            .join()
            .expect("no panic")
            .expect("it took part to the end");
    }
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
    for agent in agents {
        agent
            .join()
            .expect("no panic")
            .expect("it took part to the end");
    }
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
