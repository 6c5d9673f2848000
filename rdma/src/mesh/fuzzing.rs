//! What coordinator and agents tell each other, and the file that remembers it. See
//! [`crate::fuzzing`].

use super::message::{FromAgent, FromCoordinator, VERSION};
use super::{MeshPlan, Node, NodePort, journal};
use crate::bench::{Measure, Plan, Verb};
use crate::fuzzing::Target;

/// A line of either.
pub(crate) const MESSAGE: Target = Target {
    name: "mesh-message",
    seeds: message_seeds,
    check: message,
};

/// A file of measurements, which a crash may have cut.
pub(crate) const JOURNAL: Target = Target {
    name: "mesh-journal",
    seeds: journal_seeds,
    check: file,
};

fn message(line: &[u8]) {
    if let Ok(message) = FromAgent::decode(line) {
        let again = serde_json::to_vec(&message).expect("it was JSON");
        assert_eq!(FromAgent::decode(&again), Ok(message));
    }
    if let Ok(message) = FromCoordinator::decode(line) {
        let again = serde_json::to_vec(&message).expect("it was JSON");
        assert_eq!(FromCoordinator::decode(&again), Ok(message));
    }
}

fn node() -> Node {
    Node {
        name: "node-1".to_owned(),
        ports: vec![NodePort {
            device: "mlx5_0".to_owned(),
            port: 1,
        }],
    }
}

fn message_seeds() -> Vec<Vec<u8>> {
    let agent = [
        FromAgent::Join {
            version: VERSION,
            software: "trackbed".to_owned(),
            node: node(),
            address: Some([10, 0, 0, 1].into()),
        },
        FromAgent::Alive,
        FromAgent::Listening {
            test: 1,
            port: 18_620,
        },
        FromAgent::Measured {
            test: 1,
            figure: 97.25,
        },
        FromAgent::Failed {
            test: 1,
            reason: "no route".to_owned(),
        },
    ];
    let plan = || Plan::new(Verb::Write, Measure::Bandwidth);
    let coordinator = [
        FromCoordinator::Welcome {
            version: VERSION,
            nodes: 2,
        },
        FromCoordinator::Refuse {
            reason: "there is one of this name".to_owned(),
        },
        FromCoordinator::Serve {
            test: 1,
            rail: 0,
            plan: plan(),
        },
        FromCoordinator::Run {
            test: 1,
            rail: 0,
            plan: plan(),
            host: [10, 0, 0, 2].into(),
            port: 18_620,
            certificate: None,
        },
    ];
    let agent = agent.iter().map(serde_json::to_vec);
    let all = agent.chain(coordinator.iter().map(serde_json::to_vec));
    all.map(|line| line.expect("JSON")).collect()
}

fn file(bytes: &[u8]) {
    if let Ok((mesh, valid)) = journal::read(bytes) {
        let whole = usize::try_from(valid).expect("no longer than what was read");
        assert!(whole <= bytes.len());
        assert!(whole == 0 || bytes[whole - 1] == b'\n');
        // What is written over is what comes after: without it, the same is known.
        assert_eq!(journal::read(&bytes[..whole]), Ok((mesh, valid)));
    }
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let plan = serde_json::json!({"record": "mesh", "version": 1, "plan": MeshPlan::default()});
    let node = |name: &str| {
        let node = serde_json::to_value(Node {
            name: name.to_owned(),
            ..node()
        });
        let mut line = node.expect("JSON");
        line["record"] = "node".into();
        line
    };
    let pair = serde_json::json!({
        "record": "pair", "a": 0, "b": 1, "rail": 0, "there_gbps": 97.5, "back_gbps": 97.25,
        "latency_us": 1.75, "failure": null,
    });
    let run = serde_json::json!({"record": "run"});
    let lines = [plan, node("node-1"), node("node-2"), pair, run];
    let text = |lines: &[serde_json::Value]| {
        let lines = lines.iter().map(|line| format!("{line}\n"));
        lines.collect::<String>().into_bytes()
    };
    vec![text(&lines[..1]), text(&lines)]
}
