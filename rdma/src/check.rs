//! Is this node fit for training over RDMA?
//!
//! [`gather`] collects facts and changes nothing; [`judge`] is a pure function from facts and
//! [`Expectation`] to [`Finding`]s. Between the two, [`load`](fn@load) may put a load on each port, so
//! that counters can be compared before and after. Facts come from below a root folder, so a tree
//! recorded on one machine is judged on another the same way.

mod counters;
mod dcb;
mod facts;
mod gather;
mod judge;
mod load;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use counters::Counters;
pub use facts::{
    Bridge, DeviceFacts, Facts, FlowControl, HugePages, LinkRate, Load, Memlock, NetDevice,
    NodeFacts, PciLink, PortFacts, Verbs,
};
pub use gather::{GatherError, Scope, gather, gather_node};
pub use judge::judge;
pub use load::{LoadOptions, load};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing to do.
    Note,
    /// Works, but slower or less safely than it could.
    Warning,
    /// It could not be found out, so the node can't be called fit.
    Unknown,
    /// Not fit.
    Failure,
}

impl Severity {
    /// All of them, from harmless to grave.
    pub const ALL: [Severity; 5] = [
        Severity::Ok,
        Severity::Note,
        Severity::Warning,
        Severity::Unknown,
        Severity::Failure,
    ];
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Unknown => "unknown",
            Severity::Failure => "failure",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, such as `pci/width`: stable, for scripts.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// `node`, a device (`mlx5_0`) or a port (`mlx5_0/1`).
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What was expected, where something was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without expectation and remedy.
    pub fn new(id: &str, severity: Severity, subject: &str, found: impl Into<String>) -> Finding {
        Finding {
            id: id.to_owned(),
            severity,
            subject: subject.to_owned(),
            found: found.into(),
            expected: None,
            remedy: None,
        }
    }

    /// What is as it should be.
    pub fn ok(id: &str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Ok, subject, found)
    }

    /// What is worth knowing.
    pub fn note(id: &str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Note, subject, found)
    }

    /// What works, but not as it could.
    pub fn warning(id: &str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Warning, subject, found)
    }

    /// What could not be found out.
    pub fn unknown(id: &str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Unknown, subject, found)
    }

    /// What makes the node unfit.
    pub fn failure(id: &str, subject: &str, found: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Failure, subject, found)
    }

    /// The same, with what was expected.
    pub fn expected(self, expected: impl Into<String>) -> Finding {
        Finding {
            expected: Some(expected.into()),
            ..self
        }
    }

    /// The same, with what to do about it.
    pub fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// What all findings come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Fit.
    Pass,
    /// At least one failure.
    Fail,
    /// No failure, but something that decides could not be found out.
    Inconclusive,
}

impl Verdict {
    /// Of these findings.
    pub fn of(findings: &[Finding]) -> Verdict {
        match findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Failure) => Verdict::Fail,
            Some(Severity::Unknown) | None => Verdict::Inconclusive,
            Some(_) => Verdict::Pass,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Inconclusive => "inconclusive",
        })
    }
}

/// The whole outcome, as it is printed and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The node's name.
    pub node: String,
    /// What it comes to.
    pub verdict: Verdict,
    /// What was looked at: the gravest first, then by subject.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Orders the findings and draws the verdict.
    pub fn new(node: String, mut findings: Vec<Finding>) -> CheckReport {
        // Stable: what is equally grave stays in the order of judging, device by device.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        CheckReport {
            node,
            verdict: Verdict::of(&findings),
            findings,
        }
    }
}

/// What a person knows better than the node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expectation {
    /// Each port's rate in Gb/s.
    pub rate_gbps: Option<f64>,
    /// Each port's active MTU in bytes.
    pub mtu: Option<u32>,
}

/// A device, or one port of it: `mlx5_0`, `mlx5_0/1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The device.
    pub device: String,
    /// The port; all of them otherwise.
    pub port: Option<u32>,
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Selection, String> {
        let (device, port) = match text.split_once('/') {
            Some((device, port)) => {
                let number = port.parse().ok().filter(|number| *number > 0);
                let number = number.ok_or_else(|| format!("{port:?} is no port: 1, 2, …"))?;
                (device, Some(number))
            }
            None => (text, None),
        };
        if device.is_empty() {
            return Err("give a device, such as mlx5_0, or a port of it, mlx5_0/1".to_owned());
        }
        Ok(Selection {
            device: device.to_owned(),
            port,
        })
    }
}
