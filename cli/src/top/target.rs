//! Whom to ask: daemons' metrics, by name or as a registry or the API server knows them.

use std::fmt;
use std::str::FromStr;

use trackbed_cache::registry::Member;
use trackbed_controller::api::CacheNode;
use url::Url;

/// A daemon that serves metrics.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// What its node is called.
    pub(crate) node: String,
    /// Where it listens, as host:port.
    pub(crate) address: String,
    path: String,
    /// What it is, if that is known before it has answered.
    pub(crate) role: Option<Role>,
}

/// What a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Agent,
    DevicePlugin,
}

/// Why a text names no daemon.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not where metrics are: {why}: write HOST:PORT, or NAME=HOST:PORT")]
pub(crate) struct TargetError {
    text: String,
    why: String,
}

/// The ports on which daemons serve metrics on every node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) agent: u16,
    pub(crate) device_plugin: u16,
}

/// Where metrics are.
const PATH: &str = "/metrics";

impl Target {
    /// What is asked for there.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The daemons of a node whose control interface has this address, as host:port.
    fn of(node: &str, control: &str, ports: Ports) -> Vec<Target> {
        let host = control.rsplit_once(':').map_or(control, |(host, _)| host);
        let roles = [
            (Role::Agent, ports.agent),
            (Role::DevicePlugin, ports.device_plugin),
        ];
        let target = |(role, port)| Target {
            node: node.to_owned(),
            address: format!("{host}:{port}"),
            path: PATH.to_owned(),
            role: Some(role),
        };
        roles.map(target).into()
    }

    /// The daemons of a registry's members.
    pub(crate) fn of_members(members: &[Member], ports: Ports) -> Vec<Target> {
        let of = |member: &Member| Target::of(&member.name, &member.control, ports);
        members.iter().flat_map(of).collect()
    }

    /// The daemons of a cluster's nodes.
    pub(crate) fn of_nodes(nodes: &[CacheNode], ports: Ports) -> Vec<Target> {
        let of = |node: &CacheNode| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            Target::of(name, &node.spec.address, ports)
        };
        nodes.iter().flat_map(of).collect()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let refuse = |why: &dyn fmt::Display| TargetError {
            text: text.to_owned(),
            why: why.to_string(),
        };
        let (node, place) = match text.split_once('=') {
            Some((node, place)) if !node.contains('/') => (Some(node), place),
            _ => (None, text),
        };
        if node.is_some_and(|node| node.trim().is_empty()) {
            return Err(refuse(&"the name is empty"));
        }
        let url = match place.contains("://") {
            true => Url::parse(place),
            false => Url::parse(&format!("http://{place}")),
        };
        let url = url.map_err(|error| refuse(&error))?;
        if url.scheme() != "http" {
            return Err(refuse(&"daemons serve metrics by plain http"));
        }
        let host = url.host_str().ok_or_else(|| refuse(&"it has no host"))?;
        // 80 is what http means, and never said then.
        let address = format!("{host}:{}", url.port().unwrap_or(80));
        Ok(Target {
            node: node.unwrap_or(&address).to_owned(),
            address,
            path: match url.path() {
                "/" => PATH.to_owned(),
                path => path.to_owned(),
            },
            role: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> [String; 3] {
        let target: Target = text.parse().expect("a target");
        [target.node, target.address, target.path]
    }

    #[test]
    fn a_daemon_is_named_by_an_address_or_a_url_with_or_without_a_name() {
        assert_eq!(
            parsed("10.0.0.1:7422"),
            ["10.0.0.1:7422", "10.0.0.1:7422", "/metrics"]
        );
        assert_eq!(parsed("n1=[::1]:7422"), ["n1", "[::1]:7422", "/metrics"]);
        assert_eq!(
            parsed("http://gate/agents/n1?x=y"),
            ["gate:80", "gate:80", "/agents/n1"]
        );
        for wrong in ["", "=n1:7422", "https://n1:7422", "n1:port", "http://"] {
            let refused = wrong.parse::<Target>().expect_err(wrong).to_string();
            assert!(refused.contains("HOST:PORT"), "{refused}");
        }
    }

    #[test]
    fn a_member_s_daemons_are_at_the_host_of_its_control_interface() {
        let members = [("n1", "10.0.0.1:7420"), ("n2", "[fd00::1]:7420")];
        let members = members.map(|(name, control)| Member {
            name: name.to_owned(),
            control: control.to_owned(),
            weight: 100,
        });
        let ports = Ports {
            agent: 1,
            device_plugin: 2,
        };
        let found = Target::of_members(&members, ports);
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.node.as_str(), it.address.as_str(), it.role))
            .collect();
        let (agent, plugin) = (Some(Role::Agent), Some(Role::DevicePlugin));
        assert_eq!(
            found,
            [
                ("n1", "10.0.0.1:1", agent),
                ("n1", "10.0.0.1:2", plugin),
                ("n2", "[fd00::1]:1", agent),
                ("n2", "[fd00::1]:2", plugin),
            ]
        );
    }
}
