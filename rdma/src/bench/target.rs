//! What of this machine an end uses.

use std::sync::Arc;

use super::BenchError;
use super::memory::Memory;
use crate::devices::Inventory;
use crate::security::Identity;
use crate::verbs::{Context, GidChoice, PortState, device_names};

/// Which device an end uses and what on it, its memory, and how it shows who it is.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The device.
    pub device: DeviceChoice,
    /// The port; the first active one otherwise.
    pub port: Option<u8>,
    /// The GID. A server that leaves it open takes one of the client's kind.
    pub gid: GidChoice,
    /// The kind of memory that messages lie in.
    pub memory: Memory,
    /// The NUMA node that memory and measuring thread are bound to; neither is when `None`.
    pub numa: Option<u32>,
    /// The nominal rate of the port in Gb/s, where what the port says is not it.
    pub line_rate_gbit_per_second: Option<f64>,
    /// With it, the two ends meet over mutual TLS; without, over plain TCP.
    pub identity: Option<Arc<Identity>>,
}

/// A device.
#[derive(Debug, Clone, Default)]
pub enum DeviceChoice {
    /// The first one with an active port.
    #[default]
    Any,
    /// The one with this name.
    Named(String),
    /// One that is open already.
    Open(Arc<Context>),
}

impl Target {
    pub(super) fn open(&self) -> Result<Arc<Context>, BenchError> {
        match &self.device {
            DeviceChoice::Open(context) => return Ok(Arc::clone(context)),
            DeviceChoice::Named(name) => return Ok(Context::open(name)?),
            DeviceChoice::Any => {}
        }
        for name in device_names()? {
            let context = Context::open(&name)?;
            for port in 1..=context.limits().ports {
                if context.port(port)?.state == PortState::Active {
                    return Ok(context);
                }
            }
        }
        Err(BenchError::NoDevice)
    }

    /// The nominal rate of a port in Gb/s, when it is known.
    pub(super) fn line_rate(&self, device: &str, port: u8) -> Option<f64> {
        self.line_rate_gbit_per_second.or_else(|| {
            let inventory = Inventory::here().ok()?;
            let device = inventory
                .devices
                .iter()
                .find(|found| found.name == device)?;
            let port = device
                .ports
                .iter()
                .find(|found| found.number == u32::from(port))?;
            port.rate_gbps.filter(|rate| *rate > 0.0)
        })
    }
}
