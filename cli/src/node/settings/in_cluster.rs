//! What a node in a Kubernetes cluster is told beside the rest.

use std::net::SocketAddr;
use std::time::Duration;

use super::Settings;
use crate::exit::Failure;
use crate::node::kubernetes::{KubernetesConfig, check_folders};

impl Settings {
    /// How the node takes part in a cluster, if it does.
    pub(super) fn in_cluster(
        &self,
        control_listen: SocketAddr,
    ) -> Result<Option<KubernetesConfig>, Failure> {
        if self.kubernetes != Some(true) {
            return Ok(None);
        }
        let address = match &self.control_advertise {
            Some(address) => address.clone(),
            None if !control_listen.ip().is_unspecified() => control_listen.to_string(),
            None => {
                return Err(Failure::usage(
                    "where do peers reach this node? Give --control-advertise HOST:PORT (in a pod: \
                     TRACKBED_CONTROL_ADVERTISE of status.podIP and the port), or --control-listen \
                     with one address",
                ));
            }
        };
        let port = address
            .rsplit_once(':')
            .map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
        if !matches!(port, Some((false, Ok(1..)))) {
            return Err(Failure::usage(format!(
                "--control-advertise {address:?} is not HOST:PORT"
            )));
        }
        let shared_folders = self.share_folders.clone().unwrap_or_default();
        check_folders(&shared_folders)
            .map_err(|why| Failure::usage(format!("--share-folder: {why}")))?;
        for (flag, value) in [("zone", &self.zone), ("rack", &self.rack)] {
            let fits = |it: &String| {
                let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                let ends = [it.chars().next(), it.chars().next_back()];
                it.len() <= 63
                    && it.chars().all(inner)
                    && ends
                        .iter()
                        .all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
            };
            if let Some(value) = value.as_ref().filter(|value| !fits(value)) {
                return Err(Failure::usage(format!(
                    "--{flag} {value:?} is no label's value: use up to 63 of A-Z a-z 0-9 - _ . with a \
                     letter or digit at both ends"
                )));
            }
        }
        Ok(Some(KubernetesConfig {
            address,
            report_every: Duration::from_secs(self.report_every.unwrap_or(30).max(1).into()),
            weight: self.weight.map(|weight| weight.min(1000)),
            zone: self.zone.clone(),
            rack: self.rack.clone(),
            shared_folders,
            share_credentials: self.share_credentials.unwrap_or(false),
        }))
    }
}
