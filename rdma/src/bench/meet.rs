//! The two ends meet: the client says what it wants, the server checks it, both connect.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::channel::{Channel, unexpected};
use super::end::{End, Half};
use super::memory::Side;
use super::message::{Address, Message, Name, SOFTWARE};
use super::plan::Plan;
use super::roles::Serve;
use super::target::Target;
use super::{BenchError, Report, Row, SCHEMA};
use crate::verbs::{Context, GidChoice, GidKind, LocalPort};

/// What a report says of the two ends.
pub(super) struct About {
    began: u64,
    ours: Name,
    theirs: Name,
    port: LocalPort,
    peer_gid: String,
    mtu: u32,
    inline_bytes: u32,
    pub(super) line_rate: Option<f64>,
}

impl About {
    fn new(
        target: &Target,
        port: LocalPort,
        plan: &Plan,
        end: &End,
        ours: Name,
        theirs: &Name,
        address: &Address,
    ) -> Result<About, BenchError> {
        let stranger = |reason| BenchError::Stranger { reason };
        let (endpoints, _) = address.decode().map_err(stranger)?;
        let peer = endpoints
            .first()
            .ok_or_else(|| stranger("it has no queue pair".to_owned()))?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(About {
            began: since.map_or(0, |since| since.as_secs()),
            line_rate: target.line_rate(&ours.device, port.port),
            ours,
            theirs: theirs.bounded(),
            port,
            peer_gid: peer.gid.to_string(),
            mtu: port.mtu.min(peer.mtu).min(plan.mtu()).bytes(),
            inline_bytes: end.inline_bytes,
        })
    }

    pub(super) fn report(&self, role: &str, plan: &Plan, rows: Vec<Row>) -> Report {
        Report {
            schema: SCHEMA,
            software: SOFTWARE.to_owned(),
            bench: plan.name(),
            role: role.to_owned(),
            host: self.ours.host.clone(),
            device: self.ours.device.clone(),
            port: self.port.port,
            gid: self.port.gid.to_string(),
            gid_index: self.port.gid_index,
            peer_host: self.theirs.host.clone(),
            peer_device: self.theirs.device.clone(),
            peer_gid: self.peer_gid.clone(),
            mtu: self.mtu,
            inline_bytes: self.inline_bytes,
            line_rate_gbit_per_second: self.line_rate,
            began_unix_seconds: self.began,
            plan: plan.clone(),
            rows,
            verdict: None,
        }
    }
}

fn own_name(context: &Context) -> Name {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Name {
        host: host.trim().to_owned(),
        device: context.name().to_owned(),
    }
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

/// The client's side: opens the device, and tells the server what it wants.
pub(super) fn as_client(
    channel: &mut Channel,
    target: &Target,
    plan: &Plan,
) -> Result<(End, About), BenchError> {
    let context = target.open()?;
    let port = context.local_port(target.port, &target.gid)?;
    let kind = kind_of(&context, &port)?;
    let half = Half::new(&context, port, plan, Side::Client, target)?;
    let ours = own_name(&context);
    channel.send(&Message::hello(plan, kind, ours.clone(), half.address()))?;
    let (theirs, peer) = match channel.receive("waiting for its welcome")? {
        Message::Welcome { end, address } => (end, address),
        other => return Err(unexpected(&other, "a welcome")),
    };
    let end = half.connect(&peer, plan)?;
    let about = About::new(target, port, plan, &end, ours, &theirs, &peer)?;
    ready(channel)?;
    Ok((end, about))
}

/// What a client wants, and who it is.
pub(super) struct Wish {
    pub(super) plan: Plan,
    kind: GidKind,
    name: Name,
    address: Address,
}

/// The hello of a client, checked against what this server was told.
pub(super) fn hello(channel: &mut Channel, serve: &Serve) -> Result<Wish, BenchError> {
    let (plan, gid_kind, name, address) = match channel.receive("waiting for its hello")? {
        Message::Hello {
            plan,
            gid_kind,
            end,
            address,
            ..
        } => (*plan, gid_kind, end, address),
        other => return Err(unexpected(&other, "a hello")),
    };
    plan.check()?;
    serve.check(&plan)?;
    let kind = gid_kind
        .parse()
        .map_err(|reason| BenchError::Stranger { reason })?;
    Ok(Wish {
        plan,
        kind,
        name,
        address,
    })
}

/// The server's side: queue pairs for the client that said hello.
pub(super) fn as_server(
    channel: &mut Channel,
    target: &Target,
    wish: &Wish,
) -> Result<(End, About), BenchError> {
    let context = target.open()?;
    let choice = match target.gid {
        GidChoice::Automatic => GidChoice::Kind(wish.kind),
        chosen => chosen,
    };
    let port = context.local_port(target.port, &choice)?;
    let half = Half::new(&context, port, &wish.plan, Side::Server, target)?;
    let (ours, address) = (own_name(&context), half.address());
    let end = half.connect(&wish.address, &wish.plan)?;
    let about = About::new(
        target,
        port,
        &wish.plan,
        &end,
        ours.clone(),
        &wish.name,
        &wish.address,
    )?;
    channel.send(&Message::Welcome { end: ours, address })?;
    ready(channel)?;
    Ok((end, about))
}

/// Both ends are connected when both have said so.
fn ready(channel: &mut Channel) -> Result<(), BenchError> {
    channel.send(&Message::Ready)?;
    match channel.receive("waiting for it to connect")? {
        Message::Ready => Ok(()),
        other => Err(unexpected(&other, "that it is ready")),
    }
}
