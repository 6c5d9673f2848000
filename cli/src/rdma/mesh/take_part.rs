//! A process of a mesh: coordinates, takes part, or both.

use super::{Role, RunArgs, failure, show, with_port};
use crate::exit::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use trackbed_rdma::bench::{DeviceChoice, Identity, Target};
use trackbed_rdma::check::Selection;
use trackbed_rdma::devices::Inventory;
use trackbed_rdma::mesh::{
    AgentOptions, AgentProgress, AgentRail, CoordinateOptions, Journal, Mesh, MeshError, NodePort,
    Progress, coordinate, join,
};

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    // What is wrong with the options is said before anybody is waited for.
    args.judge.tolerance()?;
    args.measure.plan()?;
    if args.local {
        return local(args);
    }
    let (Some(meet), Some(nodes)) = (&args.meet, args.nodes) else {
        return Err(Failure::unable("give --meet and --nodes, or --local"));
    };
    let meet = with_port(meet);
    let identity = args.tls.identity()?;
    let listener = match args.role {
        Role::Join => None,
        Role::Auto => listen(&meet)?,
        Role::Coordinate => Some(listen(&meet)?.ok_or_else(|| {
            Failure::unable(format!(
                "{meet} is no address of this machine, or another process has it: \
                 a coordinator is met at its own"
            ))
        })?),
    };
    let takes_part = args.role != Role::Coordinate;
    let agent = takes_part
        .then(|| {
            let name = match &args.name {
                Some(name) => Some(name.clone()),
                None => crate::rdma::node_name(),
            };
            let name = name.ok_or_else(|| Failure::unable("this host has no name: give --name"))?;
            Ok::<_, Failure>(AgentOptions {
                name,
                rails: rails(&args.device)?,
                meet: meet.clone(),
                identity: identity.clone(),
                address: args.address,
                patience: Duration::from_secs(args.wait),
                client_patience: AgentOptions::CLIENT_PATIENCE,
            })
        })
        .transpose()?;
    match (listener, agent) {
        (Some(listener), agent) => {
            let own = agent.map(|options| thread::spawn(move || join(&options, &mut |_| {})));
            let outcome = lead(args, listener, identity, nodes);
            match (outcome, own.map(thread::JoinHandle::join)) {
                (Ok(mesh), _) => finish(args, &mesh),
                // What the coordinator told its own agent is why.
                (Err(error), _) => Err(failure(error)),
            }
        }
        (None, Some(options)) => follow(&options),
        (None, None) => Err(Failure::unable(
            "nothing to do: --role coordinate, join or auto",
        )),
    }
}

/// Each device is a node.
fn local(args: &RunArgs) -> Result<(), Failure> {
    let rails = rails(&args.device)?;
    if rails.len() < 2 {
        return Err(Failure::unable(
            "--local needs two ports or more: this machine has one, or one --device was given",
        ));
    }
    let listener = TcpListener::bind("127.0.0.1:0")
        .map_err(|error| Failure::unable(format!("cannot listen on 127.0.0.1: {error}")))?;
    let meet = listener
        .local_addr()
        .map_err(|error| Failure::unable(format!("cannot listen on 127.0.0.1: {error}")))?;
    let nodes = rails.len();
    let agents: Vec<_> = rails
        .into_iter()
        .map(|rail| AgentOptions {
            name: format!("{}/{}", rail.port.device, rail.port.port),
            rails: vec![rail],
            meet: meet.to_string(),
            identity: None,
            address: None,
            patience: Duration::from_secs(10),
            client_patience: AgentOptions::CLIENT_PATIENCE,
        })
        .map(|options| thread::spawn(move || join(&options, &mut |_| {})))
        .collect();
    let mesh = lead(args, listener, None, nodes).map_err(failure)?;
    for agent in agents {
        if let Ok(Err(error)) = agent.join() {
            eprintln!("a local node ended early: {error}");
        }
    }
    finish(args, &mesh)
}

fn finish(args: &RunArgs, mesh: &Mesh) -> Result<(), Failure> {
    show::show(mesh, &args.judge.tolerance()?, args.output)
}

fn journal(args: &RunArgs) -> Result<Journal, MeshError> {
    let plan = args
        .measure
        .plan()
        .map_err(|failure| MeshError::Options(failure.to_string()))?;
    match &args.state {
        Some(path) => Journal::open(path, plan),
        None => Ok(Journal::in_memory(plan)),
    }
}

fn lead(
    args: &RunArgs,
    listener: TcpListener,
    identity: Option<Arc<Identity>>,
    nodes: usize,
) -> Result<Mesh, MeshError> {
    let options = CoordinateOptions {
        listener,
        identity,
        nodes,
        patience: Duration::from_secs(args.wait),
        journal: journal(args)?,
    };
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(
        "{elapsed_precise} {bar:32} {pos}/{len} pairs, {msg}, {eta} left",
    ) {
        bar.set_style(style);
    }
    let outcome = coordinate(options, &mut |progress| match progress {
        Progress::Joined { node, came } => {
            let ports: Vec<String> = node
                .ports
                .iter()
                .map(|port| format!("{}/{}", port.device, port.port))
                .collect();
            bar.suspend(|| eprintln!("{came} of {nodes}: {} with {}", node.name, ports.join(", ")));
        }
        Progress::Refused { from, reason } => {
            bar.suspend(|| eprintln!("{from} was refused: {reason}"));
        }
        Progress::Begins { pairs, known } => {
            bar.set_length(pairs as u64);
            bar.set_position(known as u64);
            if known > 0 {
                bar.suspend(|| eprintln!("{known} of {pairs} pairs are known already"));
            }
        }
        Progress::Round { number, of, .. } => bar.set_message(format!("round {number} of {of}")),
        Progress::Done(pair, nodes) => {
            bar.inc(1);
            if let Some(failure) = &pair.failure {
                let (a, b) = (
                    nodes[pair.a].port_name(pair.rail),
                    nodes[pair.b].port_name(pair.rail),
                );
                bar.suspend(|| eprintln!("{a} and {b}: {failure}"));
            }
        }
        Progress::Left { name, reason } => {
            bar.suspend(|| eprintln!("{name} left: {reason}"));
        }
    });
    bar.finish_and_clear();
    outcome
}

/// Takes part in what another process coordinates, which prints the result.
fn follow(options: &AgentOptions) -> Result<(), Failure> {
    let spinner = ProgressBar::new_spinner();
    spinner.set_message(format!("waiting for the coordinator at {}", options.meet));
    spinner.enable_steady_tick(Duration::from_millis(200));
    let mut tests = 0u64;
    let outcome = join(options, &mut |progress| match progress {
        AgentProgress::Welcome { nodes } => {
            spinner.set_message(format!("waiting for all {nodes} nodes"));
        }
        AgentProgress::Test => {
            tests += 1;
            spinner.set_message(format!("test {tests}"));
        }
    });
    spinner.finish_and_clear();
    outcome.map_err(failure)?;
    eprintln!(
        "took part in {tests} tests; {} has the result",
        options.meet
    );
    Ok(())
}

/// Listens at the meeting place when it is ours, and nobody else of this machine does.
fn listen(meet: &str) -> Result<Option<TcpListener>, Failure> {
    let addresses: Vec<SocketAddr> = meet
        .to_socket_addrs()
        .map_err(|error| {
            Failure::unable(format!(
                "--meet {meet}: {error}: give a node's name or address"
            ))
        })?
        .collect();
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
                ) => {}
            Err(error) => {
                return Err(Failure::unable(format!(
                    "cannot listen on {address}: {error}"
                )));
            }
        }
    }
    Ok(None)
}

/// The ports that take part: those given, else each active one.
fn rails(given: &[Selection]) -> Result<Vec<AgentRail>, Failure> {
    let inventory = Inventory::here().map_err(Failure::unable)?;
    let is_active = |state: &Option<String>| state.as_deref() == Some("ACTIVE");
    let mut found = Vec::new();
    let mut add = |device: &str, port: u32| -> Result<(), Failure> {
        let number = u8::try_from(port)
            .map_err(|_| Failure::unable(format!("{device} has no port {port}")))?;
        found.push(AgentRail {
            target: Target {
                device: DeviceChoice::Named(device.to_owned()),
                port: Some(number),
                ..Target::default()
            },
            port: NodePort {
                device: device.to_owned(),
                port: number,
            },
        });
        Ok(())
    };
    if given.is_empty() {
        for device in &inventory.devices {
            for port in device.ports.iter().filter(|port| is_active(&port.state)) {
                add(&device.name, port.number)?;
            }
        }
        if found.is_empty() {
            let notes = inventory.notes.join(" ");
            return Err(Failure::unable(format!("no RDMA port is active. {notes}")));
        }
        return Ok(found);
    }
    for wanted in given {
        let device = inventory
            .devices
            .iter()
            .find(|device| device.name == wanted.device)
            .ok_or_else(|| {
                let known: Vec<&str> = inventory
                    .devices
                    .iter()
                    .map(|device| device.name.as_str())
                    .collect();
                Failure::unable(format!(
                    "there is no RDMA device {}; there is {}",
                    wanted.device,
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                ))
            })?;
        let port = match wanted.port {
            Some(port) => port,
            None => device
                .ports
                .iter()
                .find(|port| is_active(&port.state))
                .map(|port| port.number)
                .ok_or_else(|| {
                    Failure::unable(format!(
                        "{} has no active port: see `trackbed rdma check`",
                        device.name
                    ))
                })?,
        };
        add(&device.name, port)?;
    }
    Ok(found)
}
