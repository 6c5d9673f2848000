//! What of a pool's devices is offered, and whether it is well: as the configuration and the ports say.

use std::time::Instant;

use trackbed_rdma::devices::Port;

use crate::allocate::{Health, Marks, Offer, Place};
use crate::config::{Expectation, Mode, PoolConfig, Sorted};
use crate::function::Function;
use crate::port_watch::PortWatch;

/// What a pool offers, in the order of PCI addresses: each device, or each of its shares. `watched` knows
/// what ports were like before `now`.
pub fn offers(sorted: &Sorted<'_>, watched: &mut PortWatch, now: Instant) -> Vec<Offer> {
    let mut offer = |function: &&Function| {
        let whole = Offer {
            id: function.id.clone(),
            place: place(function),
            marks: marks(sorted.pool, function),
            health: health(sorted.pool, function, watched, now),
        };
        let shares = match sorted.pool.mode {
            Mode::Exclusive => None,
            Mode::Shared => sorted.pool.shares,
        };
        match shares {
            None => vec![whole],
            Some(shares) => (0..shares.get())
                .map(|share| Offer {
                    id: format!("{}-s{share}", whole.id),
                    ..whole.clone()
                })
                .collect(),
        }
    };
    sorted.functions.iter().flat_map(&mut offer).collect()
}

/// Where a function sits.
pub fn place(function: &Function) -> Place {
    Place {
        address: function.address,
        physical: function.virtual_of.map_or(function.address, |(pf, _)| pf),
        bridges: function.bridges.clone(),
        numa_node: function.numa_node,
    }
}

fn marks(pool: &PoolConfig, function: &Function) -> Marks {
    // A shared adapter stays where it is, and its settings are the administrator's.
    if pool.mode == Mode::Shared {
        return Marks::default();
    }
    let rdma = function.rdma.as_ref();
    Marks {
        mac: function.mac.clone(),
        node_guid: rdma.and_then(|rdma| rdma.device.node_guid.clone()),
    }
}

fn health(pool: &PoolConfig, function: &Function, watched: &mut PortWatch, now: Instant) -> Health {
    let trouble = trouble(pool, function);
    match trouble.or_else(|| watched.trouble(&pool.expect, function, now)) {
        Some(why) => Health::Unhealthy(why),
        None => Health::Healthy,
    }
}

/// Why a device is not to be given, if there is something.
fn trouble(pool: &PoolConfig, function: &Function) -> Option<String> {
    let Some(rdma) = &function.rdma else {
        return pool
            .select
            .rdma
            .then(|| "it has no RDMA device: is its driver's RDMA part loaded?".to_owned());
    };
    let name = &rdma.device.name;
    if rdma.device.node_guid.as_deref().is_some_and(is_zero) {
        return Some(format!(
            "{name} has no node GUID: set one for the virtual function and bind its driver again"
        ));
    }
    if !rdma
        .char_devices
        .iter()
        .any(|it| it.name.starts_with("uverbs"))
    {
        return Some(format!(
            "{name} has no uverbs device: load the module ib_uverbs"
        ));
    }
    if rdma.device.ports.is_empty() {
        return Some(format!("{name} shows no port"));
    }
    let ports = rdma.device.ports.iter();
    ports
        .filter_map(|port| port_trouble(&pool.expect, port))
        .map(|why| format!("{name} port {why}"))
        .next()
}

fn port_trouble(expect: &Expectation, port: &Port) -> Option<String> {
    let (number, state) = (port.number, port.state.as_deref().unwrap_or("unknown"));
    if state != "ACTIVE" {
        let physical = port.physical_state.as_deref().unwrap_or("unknown");
        return (!expect.allow_down)
            .then(|| format!("{number} is {state} (physically {physical})"));
    }
    let (expected, found) = (expect.rate_gbps?, port.rate_gbps?);
    (found < expected).then(|| format!("{number} does {found} Gb/s of the {expected} expected"))
}

/// sysfs writes a GUID as four groups of digits.
fn is_zero(guid: &str) -> bool {
    guid.chars().all(|c| c == '0' || c == ':')
}
