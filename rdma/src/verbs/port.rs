//! Ports: their state and speed, and the one that queue pairs are put on.

use std::fmt;

use super::context::Context;
use super::endpoint::Mtu;
use super::error::VerbsError;
use super::gid::{Gid, GidChoice};
use crate::sys;

/// Whether a port can carry traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortState {
    /// No link.
    Down,
    /// A link, waiting for the subnet manager.
    Init,
    /// Configured, not yet enabled.
    Armed,
    /// Carries traffic.
    Active,
    /// A link that fails for a moment.
    ActiveDefer,
    /// Anything else.
    Unknown,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortState::Down => "DOWN",
            PortState::Init => "INIT",
            PortState::Armed => "ARMED",
            PortState::Active => "ACTIVE",
            PortState::ActiveDefer => "ACTIVE_DEFER",
            PortState::Unknown => "UNKNOWN",
        })
    }
}

/// What a port's link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand: addressed by LID.
    InfiniBand,
    /// Ethernet (RoCE): addressed by GID.
    Ethernet,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkLayer::InfiniBand => "InfiniBand",
            LinkLayer::Ethernet => "Ethernet",
        })
    }
}

/// A port at the moment it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAttributes {
    /// Its state.
    pub state: PortState,
    /// The largest MTU it supports.
    pub max_mtu: Mtu,
    /// The MTU it uses now.
    pub active_mtu: Mtu,
    /// Its local identifier, 0 on Ethernet.
    pub lid: u16,
    /// What its link is made of.
    pub link_layer: LinkLayer,
    /// Entries in its GID table, empty ones included.
    pub gid_table_len: u32,
    /// The largest message it carries, in bytes.
    pub max_message_bytes: u32,
}

/// A port and the address on it that queue pairs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPort {
    /// Port number, from 1.
    pub port: u8,
    /// Index of the GID in the port's table.
    pub gid_index: u8,
    /// The GID.
    pub gid: Gid,
    /// The LID, 0 on Ethernet.
    pub lid: u16,
    /// The port's active MTU.
    pub mtu: Mtu,
    /// What the link is made of.
    pub link_layer: LinkLayer,
}

impl Context {
    /// Asks a port for its state and attributes.
    pub fn port(&self, port: u8) -> Result<PortAttributes, VerbsError> {
        let ports = self.limits().ports;
        if port == 0 || port > ports {
            return Err(VerbsError::NoPort {
                device: self.name().to_owned(),
                port,
                ports,
            });
        }
        let mut raw = sys::ibv_port_attr::default();
        // SAFETY: the context is open.
        let code = match unsafe { sys::extended_operation!(self.as_ptr(), query_port) } {
            // SAFETY: the attributes are ours and as large as we say.
            Some(query_port) => unsafe {
                query_port(self.as_ptr(), port, &mut raw, size_of_val(&raw))
            },
            // SAFETY: the library fills the front part of the attributes, which old ones consist of.
            None => unsafe {
                (self.library().query_port)(self.as_ptr(), port, (&raw mut raw).cast())
            },
        };
        if code != 0 {
            let object = format!("{} port {port}", self.name());
            return Err(VerbsError::code("ibv_query_port", object, code));
        }
        Ok(PortAttributes {
            state: state(raw.state),
            max_mtu: Mtu::from_raw(raw.max_mtu),
            active_mtu: Mtu::from_raw(raw.active_mtu),
            lid: raw.lid,
            link_layer: match raw.link_layer {
                ETHERNET => LinkLayer::Ethernet,
                _ => LinkLayer::InfiniBand,
            },
            gid_table_len: u32::try_from(raw.gid_tbl_len).unwrap_or(0),
            max_message_bytes: raw.max_msg_sz,
        })
    }

    /// Chooses where queue pairs go: the given port or the first active one, and a GID on it.
    pub fn local_port(&self, port: Option<u8>, gid: &GidChoice) -> Result<LocalPort, VerbsError> {
        let (port, attributes) = match port {
            Some(port) => (port, self.port(port)?),
            None => self.first_active_port()?,
        };
        if attributes.state != PortState::Active {
            return Err(VerbsError::PortNotActive {
                device: self.name().to_owned(),
                port,
                state: attributes.state,
            });
        }
        let entries = self.gids(port)?;
        let no_gid = || VerbsError::NoGid {
            device: self.name().to_owned(),
            port,
            choice: *gid,
            known: entries.iter().map(ToString::to_string).collect(),
        };
        let entry = gid.pick(&entries).ok_or_else(no_gid)?;
        Ok(LocalPort {
            port,
            gid_index: u8::try_from(entry.index).map_err(|_| no_gid())?,
            gid: entry.gid,
            lid: attributes.lid,
            mtu: attributes.active_mtu,
            link_layer: attributes.link_layer,
        })
    }

    fn first_active_port(&self) -> Result<(u8, PortAttributes), VerbsError> {
        let mut first = None;
        for port in 1..=self.limits().ports {
            let attributes = self.port(port)?;
            if attributes.state == PortState::Active {
                return Ok((port, attributes));
            }
            first.get_or_insert((port, attributes));
        }
        first.ok_or_else(|| VerbsError::NoPort {
            device: self.name().to_owned(),
            port: 1,
            ports: 0,
        })
    }
}

/// `IBV_LINK_LAYER_ETHERNET`, of an anonymous enum in the headers.
const ETHERNET: u8 = 2;

fn state(raw: sys::ibv_port_state) -> PortState {
    match raw {
        sys::IBV_PORT_DOWN => PortState::Down,
        sys::IBV_PORT_INIT => PortState::Init,
        sys::IBV_PORT_ARMED => PortState::Armed,
        sys::IBV_PORT_ACTIVE => PortState::Active,
        sys::IBV_PORT_ACTIVE_DEFER => PortState::ActiveDefer,
        _ => PortState::Unknown,
    }
}
