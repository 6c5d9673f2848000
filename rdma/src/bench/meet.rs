//! From a device and a channel to a connected queue pair with a window on either side.

use std::io;
use std::sync::Arc;

use super::channel::{Channel, unexpected};
use super::message::{Address, Message};
use super::plan::{Measure, Plan, PlanError};
use super::roles::Serve;
use super::{BenchError, Report, Row, SCHEMA, latency};
use crate::verbs::{
    Access, CompletionQueue, ConnectOptions, Context, GidChoice, GidKind, LocalPort, Mapping,
    MemoryRegion, Piece, PortState, ProtectionDomain, QueuePair, QueuePairConfig, RemoteMemory,
    RemoteWindow, Source, UnconnectedQueuePair, device_names,
};

/// The window of an end that nobody writes to.
const NO_WINDOW: u64 = 4096;

/// Which device to use, and what on it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// The device.
    pub device: DeviceChoice,
    /// The port; the first active one otherwise.
    pub port: Option<u8>,
    /// The GID. A server that leaves it open takes one of the client's kind.
    pub gid: GidChoice,
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
}

/// One end, connected.
pub(super) struct Connection<S: Source> {
    pub(super) queue_pair: QueuePair<S, ()>,
    pub(super) queue: CompletionQueue,
    pub(super) window: RemoteWindow,
    pub(super) remote: RemoteMemory,
    pub(super) pieces: Vec<Piece>,
    pub(super) about: About,
}

/// What a report says of a connection.
pub(super) struct About {
    device: String,
    port: LocalPort,
    peer_gid: String,
    mtu: u32,
}

impl About {
    pub(super) fn report(&self, role: &str, plan: &Plan, rows: Vec<Row>) -> Report {
        Report {
            schema: SCHEMA,
            software: concat!("trackbed ", env!("CARGO_PKG_VERSION")).to_owned(),
            bench: plan.name(),
            role: role.to_owned(),
            host: String::new(),
            device: self.device.clone(),
            port: self.port.port,
            gid: self.port.gid.to_string(),
            gid_index: self.port.gid_index,
            peer_host: String::new(),
            peer_device: String::new(),
            peer_gid: self.peer_gid.clone(),
            mtu: self.mtu,
            inline_bytes: plan.inline,
            line_rate_gbit_per_second: None,
            began_unix_seconds: 0,
            plan: plan.clone(),
            rows,
            verdict: None,
        }
    }
}

/// One end, before it knows the other.
struct Half<S: Source> {
    queue_pair: UnconnectedQueuePair<S, ()>,
    queue: CompletionQueue,
    window: RemoteWindow,
    pieces: Vec<Piece>,
    context: Arc<Context>,
    port: LocalPort,
}

impl<S: Source> Half<S> {
    /// `pieces` of the largest message each to send from, and a window of `window` bytes.
    fn new(
        context: Arc<Context>,
        port: LocalPort,
        plan: &Plan,
        pieces: usize,
        window: u64,
    ) -> Result<Half<S>, BenchError> {
        check_device(&context, port.port, plan)?;
        let send_depth = match plan.measure {
            Measure::Bandwidth => plan.depth,
            Measure::Latency => latency::PIECES as u32,
        };
        let pd = ProtectionDomain::new(&context)?;
        let queue = CompletionQueue::new(&context, send_depth + 2)?;
        let config = QueuePairConfig {
            send_depth,
            receive_depth: 1,
            segments: 1,
            inline_bytes: plan.inline,
            remote_writes: true,
        };
        let mut queue_pair = UnconnectedQueuePair::new(&pd, &queue, port, &config)?;
        let piece_bytes = usize::try_from(plan.largest()).unwrap_or(usize::MAX);
        let bytes = piece_bytes.saturating_mul(pieces);
        let (mapping, pieces) = Mapping::split(piece_bytes, pieces)
            .map_err(|source| BenchError::Memory { bytes, source })?;
        queue_pair.attach(&MemoryRegion::register(&pd, mapping, Access::LocalRead)?)?;
        let window = RemoteWindow::new(&pd, usize::try_from(window).unwrap_or(usize::MAX))?;
        Ok(Half {
            queue_pair,
            queue,
            window,
            pieces,
            context,
            port,
        })
    }

    fn address(&self) -> Address {
        Address::new(&self.queue_pair.endpoint(), &self.window.remote())
    }

    fn connect(self, peer: &Address, plan: &Plan) -> Result<Connection<S>, BenchError> {
        let (endpoint, remote) = peer
            .decode()
            .map_err(|reason| BenchError::Stranger { reason })?;
        let options = ConnectOptions {
            mtu: plan.mtu(),
            ..ConnectOptions::default()
        };
        let about = About {
            device: self.context.name().to_owned(),
            port: self.port,
            peer_gid: endpoint.gid.to_string(),
            mtu: self.port.mtu.min(endpoint.mtu).min(plan.mtu()).bytes(),
        };
        let queue_pair = self
            .queue_pair
            .connect(&endpoint, &options)
            .map_err(|failed| failed.error)?;
        Ok(Connection {
            queue_pair,
            queue: self.queue,
            window: self.window,
            remote,
            pieces: self.pieces,
            about,
        })
    }
}

/// Refuses early and with the limit's name what a device would refuse with EINVAL.
fn check_device(context: &Context, port: u8, plan: &Plan) -> Result<(), BenchError> {
    let limits = context.limits();
    let message_bytes = context.port(port)?.max_message_bytes;
    let checks = [
        (
            "queue depth (one is ours)",
            u64::from(limits.queue_depth),
            u64::from(plan.depth) + 1,
        ),
        ("message size", u64::from(message_bytes), plan.largest()),
        ("memory region", limits.region_bytes, plan.largest()),
    ];
    for (what, limit, wanted) in checks {
        if wanted > limit {
            let device = context.name().to_owned();
            return Err(PlanError::Device {
                device,
                what,
                limit,
                wanted,
            }
            .into());
        }
    }
    Ok(())
}

fn kind_of(context: &Context, port: &LocalPort) -> Result<GidKind, BenchError> {
    let entries = context.gids(port.port)?;
    let entry = entries
        .iter()
        .find(|entry| entry.index == u32::from(port.gid_index));
    entry
        .map(|entry| entry.kind)
        .ok_or_else(|| BenchError::Channel {
            doing: "looking its own GID up again",
            source: io::Error::other("the port's addresses changed meanwhile: run it again"),
        })
}

/// Pieces to send from: for latency each message in flight has bytes of its own.
fn piece_count(plan: &Plan) -> usize {
    match plan.measure {
        Measure::Bandwidth => 1,
        Measure::Latency => latency::PIECES,
    }
}

/// The client's side: opens the device, and tells the server what it wants.
pub(super) fn as_client<S: Source>(
    channel: &mut Channel,
    target: &Target,
    plan: &Plan,
) -> Result<Connection<S>, BenchError> {
    let context = target.open()?;
    let port = context.local_port(target.port, &target.gid)?;
    let kind = kind_of(&context, &port)?;
    let window = match plan.measure {
        Measure::Bandwidth => NO_WINDOW,
        Measure::Latency => plan.largest(),
    };
    let half = Half::new(context, port, plan, piece_count(plan), window)?;
    channel.send(&Message::hello(plan, kind, half.address()))?;
    let peer = match channel.receive("waiting for its welcome")? {
        Message::Welcome { address } => address,
        other => return Err(unexpected(&other, "a welcome")),
    };
    let connection = half.connect(&peer, plan)?;
    if connection.remote.len < plan.largest() {
        let reason = format!("its window has only {} bytes", connection.remote.len);
        return Err(BenchError::Stranger { reason });
    }
    ready(channel)?;
    Ok(connection)
}

/// The hello of a client, checked against what this server was told.
pub(super) fn hello(
    channel: &mut Channel,
    serve: &Serve,
) -> Result<(Plan, GidKind, Address), BenchError> {
    let (plan, gid_kind, address) = match channel.receive("waiting for its hello")? {
        Message::Hello {
            plan,
            gid_kind,
            address,
            ..
        } => (plan, gid_kind, address),
        other => return Err(unexpected(&other, "a hello")),
    };
    plan.check()?;
    serve.check(&plan)?;
    let kind = gid_kind
        .parse()
        .map_err(|reason| BenchError::Stranger { reason })?;
    Ok((plan, kind, address))
}

/// The server's side: a queue pair for the client that said hello.
pub(super) fn as_server<S: Source>(
    channel: &mut Channel,
    target: &Target,
    plan: &Plan,
    kind: GidKind,
    peer: &Address,
) -> Result<Connection<S>, BenchError> {
    let context = target.open()?;
    let choice = match target.gid {
        GidChoice::Automatic => GidChoice::Kind(kind),
        chosen => chosen,
    };
    let port = context.local_port(target.port, &choice)?;
    let half = Half::new(context, port, plan, piece_count(plan), plan.largest())?;
    let address = half.address();
    let connection = half.connect(peer, plan)?;
    channel.send(&Message::Welcome { address })?;
    ready(channel)?;
    Ok(connection)
}

/// Both ends are connected when both have said so.
fn ready(channel: &mut Channel) -> Result<(), BenchError> {
    channel.send(&Message::Ready)?;
    match channel.receive("waiting for it to connect")? {
        Message::Ready => Ok(()),
        other => Err(unexpected(&other, "that it is ready")),
    }
}
