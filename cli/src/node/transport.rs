//! Which fabric the node has, and giving it to the agent.

use super::metrics::{self, Kind, Metric};
use super::settings::{FabricChoice, NodeConfig};
use crate::exit::Failure;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use trackbed_cache::{Agent, Registry};
use trackbed_rdma::fabric::{Fabric, FabricConfig, FabricCounters, FabricError, FabricKind};
use trackbed_rdma::shard::Shard;

/// Makes the fabric that was chosen and hands it to the agent. Returns the verbs device in use,
/// empty with TCP.
pub(crate) fn connect(
    config: &NodeConfig,
    agent: &Agent,
    shard: &Shard,
    registry: &Arc<dyn Registry>,
) -> Result<String, Failure> {
    let fabric = match config.fabric {
        FabricChoice::Tcp => tcp(config, agent, shard, registry)?,
        FabricChoice::Verbs => verbs(config, agent, shard).map_err(|error| {
            Failure::unable(format!(
                "--fabric verbs: {error}: `trackbed rdma devices` shows what is here; --fabric \
                 tcp does without"
            ))
        })?,
        FabricChoice::Auto => match verbs(config, agent, shard) {
            Ok(fabric) => fabric,
            Err(error) => {
                tracing::info!(%error, "peers' data goes over TCP");
                tcp(config, agent, shard, registry)?
            }
        },
    };
    let device = match fabric.kind() {
        FabricKind::Tcp => String::new(),
        FabricKind::Verbs => fabric.device().unwrap_or_default().to_owned(),
    };
    tracing::info!(kind = %fabric.kind(), device, address = ?fabric.data_address(), "peers' data");
    agent.set_fabric(fabric);
    Ok(device)
}

fn verbs(config: &NodeConfig, agent: &Agent, shard: &Shard) -> Result<Fabric, FabricError> {
    let settings = FabricConfig::verbs(config.rdma_device.clone());
    Fabric::new(
        adjust(settings, config, shard),
        shard.clone(),
        agent.source(),
    )
}

/// Arenas in proportion to the node's memory, as each peer that is asked takes up to a quarter of
/// it, and the patience that is configured.
fn adjust(settings: FabricConfig, config: &NodeConfig, shard: &Shard) -> FabricConfig {
    FabricConfig {
        arena_slots: (shard.slab().slots() / 4).clamp(2, 16),
        deadline: config.peer_timeout,
        ..settings
    }
}

fn tcp(
    config: &NodeConfig,
    agent: &Agent,
    shard: &Shard,
    registry: &Arc<dyn Registry>,
) -> Result<Fabric, Failure> {
    let mut settings = FabricConfig::tcp(config.fabric_listen);
    settings.advertise = match config.fabric_advertise {
        None if config.fabric_listen.ip().is_unspecified() => Some(own_address(config, registry)?),
        named => named,
    };
    Fabric::new(
        adjust(settings, config, shard),
        shard.clone(),
        agent.source(),
    )
    .map_err(|error| Failure::usage(format!("--fabric-listen: {error}")))
}

/// The address under which peers know this node: where they reach its control interface.
fn own_address(config: &NodeConfig, registry: &Arc<dyn Registry>) -> Result<IpAddr, Failure> {
    let members = registry.members().map_err(Failure::usage)?;
    let own = members.iter().find(|member| member.name == config.name);
    let control = own.map(|member| member.control.clone()).unwrap_or_default();
    let resolved = control
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next());
    resolved.map(|address| address.ip()).ok_or_else(|| {
        Failure::usage(format!(
            "cannot tell peers where to fetch data: the registry says {control:?} for this node, \
             which has no address here: give --fabric-listen an address that peers can reach"
        ))
    })
}

/// The fabric's counters in the Prometheus text format.
pub(crate) fn prometheus_text(counters: &FabricCounters) -> String {
    let counter = |name, help, value| Metric {
        name,
        help,
        kind: Kind::Counter,
        value,
    };
    let open = counters.links_opened.saturating_sub(counters.links_ended);
    let metrics = [
        Metric {
            name: "trackbed_fabric_links_open",
            help: "Peers this node can ask at the moment.",
            kind: Kind::Gauge,
            value: open,
        },
        counter(
            "trackbed_fabric_requests_sent_total",
            "Chunks asked of peers.",
            counters.requests_sent,
        ),
        counter(
            "trackbed_fabric_requests_received_total",
            "Chunks that peers asked for.",
            counters.requests_received,
        ),
        counter(
            "trackbed_fabric_received_bytes_total",
            "Payload received from peers: chunks and their seals.",
            counters.payload_bytes_received,
        ),
        counter(
            "trackbed_fabric_sent_bytes_total",
            "Payload sent to peers: chunks and their seals.",
            counters.payload_bytes_sent,
        ),
        counter(
            "trackbed_fabric_refusals_received_total",
            "Requests that a peer answered with no.",
            counters.refusals_received,
        ),
        counter(
            "trackbed_fabric_intrusions_total",
            "Connections and frames refused as malformed or not authorised.",
            counters.intrusions,
        ),
        counter(
            "trackbed_fabric_work_failed_total",
            "RDMA work that completed with an error.",
            counters.verbs_work_failed,
        ),
    ];
    metrics::text(&metrics, &[("kind", &counters.kind.to_string())])
}
