//! The process that does the demo's work, inside the sandbox: it lays the network, starts nodes,
//! has a dataset registered and mounted, reads it, compares, reports, and takes all down again.

use super::certificates::Authority;
use super::dataset::Chosen;
use super::mounts::Mount;
use super::network::Network;
use super::nodes::{Node, Start};
use super::progress::Progress;
use super::report::{Report, next_steps};
use super::sandbox::{INIT_PID_FILE, Inside};
use super::scene::Scene;
use super::tree::Tree;
use super::{DemoArgs, NetworkChoice, dataset, registry, roce, supervise, workdir};
use crate::exit::Failure;
use crate::node::FabricChoice;
use crate::output::{Output, print};
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use trackbed_proto::node::v1::RegisterDatasetRequest;
use trackbed_proto::node::v1::register_dataset_event::Event;

/// The dataset's name in the registry.
const DATASET: &str = "demo";

/// Nodes that mount and read; the others own chunks and serve.
const READERS: usize = 2;

/// Plays the demo, and takes everything down whatever comes of it.
pub(crate) fn conduct(args: DemoArgs, inside: Inside) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the demo's runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let ending = ending()?;
        let progress = Progress::new(args.output == Output::Table);
        let mut scene = Scene::default();
        let outcome = tokio::select! {
            outcome = play(&args, &inside, &mut scene, &progress) => outcome,
            // Once all is said, the signal is the end that was waited for.
            () = ending => if scene.kept { Ok(()) } else { Err(Failure::interrupted()) },
        };
        progress.cancel();
        progress.clear();
        let taken_down = scene.take_down(outcome.is_ok()).await;
        outcome.and(taken_down)
    });
    // Readers still on a thread have been told to end; the sandbox ends them anyway.
    runtime.shutdown_background();
    outcome
}

/// Resolves when a signal asks for the end. Handlers are in place before the signals, blocked
/// since before this process was started, may arrive.
fn ending() -> Result<impl Future<Output = ()>, Failure> {
    let refuse =
        |error: &dyn std::fmt::Display| Failure::failed(format!("cannot handle signals: {error}"));
    let listen = |kind| signal(kind).map_err(|error| refuse(&error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut quit = listen(SignalKind::quit())?;
    supervise::unblock_signals().map_err(|errno| refuse(&errno))?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    })
}

async fn play(
    args: &DemoArgs,
    inside: &Inside,
    scene: &mut Scene,
    progress: &Progress,
) -> Result<(), Failure> {
    check_fuse()?;
    let (origin, expected) = survey(args, progress).await?;
    workdir::check_space(
        &inside.work,
        expected
            .bytes
            .saturating_mul(args.nodes.into())
            .saturating_add(64 << 20),
    )?;

    let mut notes = Vec::new();
    let network = lay_network(args, inside)?;
    if let Some(because) = &network.loopback_because
        && args.network == NetworkChoice::Auto
    {
        notes.push(format!("the nodes share loopback: {because}"));
    }
    let fabric = choose_fabric(args, &network, &mut notes)?;
    start_nodes(args, inside, scene, &network, fabric, progress).await?;
    register(&scene.nodes[0], &origin.url(), progress).await?;
    for node in &scene.nodes[..READERS] {
        scene.mounts.push(Mount::make(node, DATASET).await?);
    }

    let devices_before = roce::read_counters(&network);
    let expected = Arc::new(expected);
    let (nodes, differences) = scene.read(&expected, progress).await?;
    let counters = scene.counters().await?;
    let received: u64 = counters
        .iter()
        .filter_map(|of| of.fabric.as_ref())
        .map(|f| f.bytes_received)
        .sum();
    let used = counters
        .iter()
        .find_map(|of| of.fabric.as_ref())
        .map(|fabric| fabric.kind.clone());
    let used = used.unwrap_or_default();
    let report = Report {
        dataset_files: expected.files,
        dataset_bytes: expected.bytes,
        origin_bytes: counters.iter().map(|of| of.origin_bytes).sum(),
        peer_bytes: counters.iter().map(|of| of.peer_bytes).sum(),
        verbs: (used == "verbs")
            .then(|| roce::compare(&devices_before, roce::read_counters(&network), received)),
        fabric: used,
        digest_ok: differences.is_empty(),
        nodes,
        dataset: origin.shown(),
        network: if network.loopback_because.is_some() {
            "loopback"
        } else {
            "namespaces"
        },
    };
    progress.clear();
    report.print(args.output, &notes)?;
    let mut faults = report.faults();
    faults.extend(differences);
    if !faults.is_empty() {
        faults.extend(scene.warnings());
        return Err(Failure::failed(faults.join("\ntrackbed: ")));
    }
    if args.output == Output::Table {
        print(&format!(
            "\n{}",
            next_steps(&report, args.dataset.is_some())
        ))?;
    }
    if args.keep {
        scene.kept = true;
        keep(scene, inside).await;
    }
    Ok(())
}

/// Before anything is read: without FUSE there will be no mount.
fn check_fuse() -> Result<(), Failure> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened.map(drop).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "run `modprobe fuse`; in a container, give it the device",
            io::ErrorKind::PermissionDenied => {
                "run the demo as root; in a container, give it the device (docker run --privileged)"
            }
            _ => "run `modprobe fuse`, or ask whoever runs this machine",
        };
        Failure::unable(format!(
            "cannot mount a dataset: /dev/fuse: {error}: {remedy}"
        ))
    })
}

/// Looks at the origin: what it is, and what is in it.
async fn survey(args: &DemoArgs, progress: &Progress) -> Result<(Chosen, Tree), Failure> {
    let named = args.dataset.clone();
    let bar = progress.start("reading the origin");
    blocking(move || {
        let dataset = dataset::choose(named.as_deref(), &bar)?;
        let tree = dataset::survey(&dataset, &bar)?;
        Ok((dataset, tree))
    })
    .await
}

fn lay_network(args: &DemoArgs, inside: &Inside) -> Result<Network, Failure> {
    let loopback_because = match (inside.own_network, args.network) {
        (_, NetworkChoice::Loopback) => Some("as asked for".to_owned()),
        (false, _) => Some("the dataset is on the network".to_owned()),
        (true, _) => None,
    };
    let network = Network::lay(args.nodes, loopback_because)?;
    match &network.loopback_because {
        Some(because) if args.network == NetworkChoice::Namespaces => {
            Err(Failure::unable(format!(
                "the nodes cannot have network namespaces: {because}: run the demo as root, or \
                 with --network loopback"
            )))
        }
        _ => Ok(network),
    }
}

/// The fabric that the nodes are started with, its devices made.
fn choose_fabric(
    args: &DemoArgs,
    network: &Network,
    notes: &mut Vec<String>,
) -> Result<&'static str, Failure> {
    if args.fabric == FabricChoice::Tcp {
        return Ok("tcp");
    }
    match roce::make_devices(network) {
        Ok(()) => Ok("verbs"),
        Err(why) if args.fabric == FabricChoice::Verbs => Err(roce::no_verbs(&why)),
        // That they share loopback is noted already.
        Err(_) if network.loopback_because.is_some() => Ok("tcp"),
        Err(why) => {
            notes.push(format!(
                "peers talk TCP, as the nodes have no RDMA device: {why}"
            ));
            Ok("tcp")
        }
    }
}

async fn start_nodes(
    args: &DemoArgs,
    inside: &Inside,
    scene: &mut Scene,
    network: &Network,
    fabric: &'static str,
    progress: &Progress,
) -> Result<(), Failure> {
    let bar = progress.start("starting nodes");
    let authority = Authority::new().map_err(Failure::failed)?;
    for (index, place) in network.places().iter().enumerate() {
        scene.nodes.push(Node::new(&inside.work, index, place)?);
    }
    let folder = inside.work.join("registry");
    registry::write_members(&folder, &scene.nodes)?;
    let start = Start {
        registry: &folder,
        fabric,
        log: args.node_log.as_deref(),
    };
    for (index, (node, place)) in scene.nodes.iter_mut().zip(network.places()).enumerate() {
        let identity = authority
            .issue(&node.name, &node.folder)
            .map_err(Failure::failed)?;
        node.start(index, place, &identity, &start)?;
    }
    for node in &mut scene.nodes {
        bar.say(node.name.clone());
        node.ready().await?;
    }
    Ok(())
}

/// Has `node` make the origin a dataset.
async fn register(node: &Node, origin: &str, progress: &Progress) -> Result<(), Failure> {
    let bar = progress.start("registering the dataset");
    let refused = |status: tonic::Status| {
        Failure::failed(format!(
            "{} cannot register {origin}: {}",
            node.name,
            status.message()
        ))
    };
    let request = RegisterDatasetRequest {
        name: DATASET.into(),
        origin: origin.into(),
        readers: None,
    };
    let mut events = node
        .admin()
        .await?
        .register_dataset(request)
        .await
        .map_err(refused)?
        .into_inner();
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Progress(progress)) => bar.say(format!("{} entries", progress.entries)),
            Some(Event::Registered(_)) => return Ok(()),
            None => {}
        }
    }
    Err(node.failed("broke off the registration"))
}

/// Leaves everything as it is until a signal comes, and says how to look around.
async fn keep(scene: &Scene, inside: &Inside) {
    let init = std::fs::read_to_string(inside.work.join(INIT_PID_FILE)).unwrap_or_default();
    let user = if inside.own_users {
        " --user --preserve-credentials"
    } else {
        ""
    };
    let paths: Vec<_> = scene
        .mounts
        .iter()
        .map(|mount| mount.path().display())
        .collect();
    eprintln!(
        "\nThe nodes stay up until Ctrl-C. To look at the mounts from another terminal:\n  \
         nsenter --target {init}{user} --mount --pid ls {}",
        paths
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    );
    std::future::pending::<()>().await;
}

/// Runs what blocks on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match spawn_blocking(act).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Failure::interrupted()),
    }
}
