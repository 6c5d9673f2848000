//! What coordinator and agents tell each other: a JSON object a line.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{MOST_RAILS, Node};
use crate::bench::Plan;
use crate::security::Fingerprint;

/// Spoken versions: raised when a message changes its meaning.
pub(super) const VERSION: u32 = 1;
/// No line is longer.
pub(super) const LONGEST: usize = 64 << 10;
/// No name is longer: that is as long as a host name may be.
const LONGEST_NAME: usize = 253;
/// Reasons are cut off here.
const LONGEST_REASON: usize = 1000;

/// Of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum FromAgent {
    /// First: takes part.
    Join {
        version: u32,
        software: String,
        node: Node,
        /// Where others reach it; otherwise where it came from.
        address: Option<IpAddr>,
    },
    /// Still there.
    Alive,
    /// The server of a test waits for its client.
    Listening { test: u64, port: u16 },
    /// The server's part ended well.
    Served { test: u64 },
    /// The client's part ended well: Gb/s, or microseconds.
    Measured { test: u64, figure: f64 },
    /// Either's part ended otherwise.
    Failed { test: u64, reason: String },
}

/// Of the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum FromCoordinator {
    /// Takes the agent in.
    Welcome { version: u32, nodes: usize },
    /// Doesn't, or no longer.
    Refuse { reason: String },
    /// Still there.
    Alive,
    /// Be the server of a test.
    Serve { test: u64, rail: usize, plan: Plan },
    /// Be its client.
    Run {
        test: u64,
        rail: usize,
        plan: Plan,
        host: IpAddr,
        port: u16,
        /// Of the certificate that the server showed to the coordinator.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        certificate: Option<Fingerprint>,
    },
    /// All is measured.
    Finished,
}

impl FromAgent {
    /// What an agent sent, or why it can't be used.
    pub(super) fn decode(line: &[u8]) -> Result<FromAgent, String> {
        version(line)?;
        let mut message: FromAgent = serde_json::from_slice(line)
            .map_err(|error| format!("it sent what we can't read: {error}"))?;
        match &mut message {
            FromAgent::Join { node, address, .. } => {
                check_node(node)?;
                if address.is_some_and(|address| address.is_unspecified() || address.is_multicast())
                {
                    return Err("it gave an address that nobody can reach".to_owned());
                }
            }
            FromAgent::Listening { port: 0, .. } => return Err("it listens on port 0".to_owned()),
            FromAgent::Measured { figure, .. } if !(figure.is_finite() && *figure >= 0.0) => {
                return Err(format!("it measured {figure}"));
            }
            FromAgent::Failed { reason, .. } => *reason = printable(reason),
            _ => {}
        }
        Ok(message)
    }
}

impl FromCoordinator {
    /// What a coordinator sent, or why it can't be used.
    pub(super) fn decode(line: &[u8]) -> Result<FromCoordinator, String> {
        version(line)?;
        let mut message: FromCoordinator = serde_json::from_slice(line)
            .map_err(|error| format!("it sent what we can't read: {error}"))?;
        match &mut message {
            FromCoordinator::Serve { plan, .. } | FromCoordinator::Run { plan, .. } => {
                plan.check().map_err(|error| error.to_string())?;
            }
            FromCoordinator::Refuse { reason } => *reason = printable(reason),
            _ => {}
        }
        Ok(message)
    }
}

/// Names a version that we don't speak, whatever else the message holds.
fn version(line: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Spoken {
        version: u32,
    }
    match serde_json::from_slice::<Spoken>(line) {
        Ok(spoken) if spoken.version != VERSION => Err(format!(
            "it speaks version {}, we speak {VERSION}: use the same release on all nodes",
            spoken.version
        )),
        _ => Ok(()),
    }
}

/// Whether a node's description is one.
pub(super) fn check_node(node: &Node) -> Result<(), String> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name.chars().all(|c| !c.is_control() && !c.is_whitespace())
    };
    if !is_name(&node.name) {
        return Err(format!(
            "{:?} is no name of a node: 1 to {LONGEST_NAME} characters without spaces",
            printable(&node.name)
        ));
    }
    if node.ports.is_empty() || node.ports.len() > MOST_RAILS {
        return Err(format!(
            "{} has {} ports: 1 to {MOST_RAILS} can take part",
            node.name,
            node.ports.len()
        ));
    }
    match node.ports.iter().find(|port| !is_name(&port.device)) {
        Some(port) => Err(format!("{:?} is no device", printable(&port.device))),
        None => Ok(()),
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .take(LONGEST_REASON)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::NodePort;
    use super::*;

    fn join(name: &str, ports: usize) -> FromAgent {
        let port = NodePort {
            device: "mlx5_0".to_owned(),
            port: 1,
        };
        FromAgent::Join {
            version: VERSION,
            software: "trackbed".to_owned(),
            node: Node {
                name: name.to_owned(),
                ports: vec![port; ports],
            },
            address: None,
        }
    }

    fn coded(message: &FromAgent) -> Result<FromAgent, String> {
        FromAgent::decode(&serde_json::to_vec(message).expect("JSON"))
    }

    #[test]
    fn a_node_is_taken_with_a_name_and_ports_only() {
        assert_eq!(coded(&join("node-1", 8)), Ok(join("node-1", 8)));
        for (name, ports) in [
            ("", 1),
            ("a b", 1),
            ("a\n", 1),
            ("node-1", 0),
            ("node-1", 65),
        ] {
            assert!(coded(&join(name, ports)).is_err(), "{name:?}, {ports}");
        }
        assert!(coded(&join(&"n".repeat(254), 1)).is_err());
        let unreachable = FromAgent::Listening { test: 1, port: 0 };
        assert!(coded(&unreachable).is_err());
    }

    #[test]
    fn another_version_is_named_as_such() {
        let text = serde_json::to_string(&join("node-1", 1)).expect("JSON");
        let newer = text.replace("\"version\":1", "\"version\":9");
        let error = FromAgent::decode(newer.as_bytes()).expect_err("another version");
        assert!(error.contains("speaks version 9"), "{error}");
    }

    #[test]
    fn a_reason_cannot_write_to_a_terminal_or_fill_a_disk() {
        let failed = FromAgent::Failed {
            test: 1,
            reason: "\u{1b}[2J".repeat(1000),
        };
        let Ok(FromAgent::Failed { reason, .. }) = coded(&failed) else {
            panic!("it is a message");
        };
        assert!(!reason.contains('\u{1b}') && reason.len() <= LONGEST_REASON);
    }

    proptest! {
        #[test]
        fn arbitrary_lines_are_a_message_or_an_error(line in proptest::collection::vec(any::<u8>(), 0..256)) {
            FromAgent::decode(&line).ok();
            FromCoordinator::decode(&line).ok();
        }
    }
}
