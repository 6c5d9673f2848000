//! Bringing a node up, serving, and taking it down again.

use super::Images;
use super::admin::AdminService;
use super::engine;
use super::identity::Identity;
use super::keeper;
use super::kubernetes::{self, ApiSecrets, KubernetesRegistry};
use super::metrics;
use super::peer_service::PeerService;
use super::peers::Peers;
use super::settings::{ExposeChoice, NodeConfig};
use super::transport;
use crate::exit::Failure;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;
use trackbed_cache::origin::Origins;
use trackbed_cache::registry::FileRegistry;
use trackbed_cache::{Agent, AgentConfig, Registry};
use trackbed_csi::driver::{Driver, DriverConfig};
use trackbed_csi::expose::{erofs, native::NativeFirst};
use trackbed_csi::keeper::KeptMounts;
use trackbed_proto::endpoint::{self, Endpoint};
use trackbed_rdma::shard::Shard;

/// Calls of one peer that are worked on at a time.
const PEER_CALLS: usize = 32;

/// A control connection on which nothing comes back for this long is closed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long calls under way may take to end once the node is asked to.
const DRAIN: Duration = Duration::from_secs(3);

/// Something that serves, and ends with a reason if it ends by itself.
type Serving = JoinSet<Result<(), Failure>>;

/// Runs the node until a signal, or until a part of it fails.
pub(crate) async fn run(config: NodeConfig, identity: Identity) -> Result<(), Failure> {
    let mut ending = engine::ending()?;
    let (stop, stopped) = watch::channel(());
    engine::raise_memory_lock_limit();
    let cluster = connect(&config).await?;
    let registry: Arc<dyn Registry> = match &cluster {
        Some(cluster) => cluster.registry.clone(),
        None => open_registry(&config)?,
    };
    let shard = engine::start_shard(config.memory)?;
    let origins = cluster.as_ref().map_or_else(Origins::default, |cluster| {
        Origins::with_secrets(cluster.secrets.clone())
    });
    let images = match config.csi_endpoint {
        Some(_) => Images::find(config.expose, config.own_dir()).await,
        None => Images::default(),
    };
    let agent = start_agent(&config, images, &identity, &registry, &shard, origins).await?;
    let device = transport::connect(&config, &agent, &shard, &registry)?;

    let mut serving = Serving::new();
    serve_peers(
        &config,
        &identity,
        &agent,
        &registry,
        stopped.clone(),
        &mut serving,
    )
    .await?;
    let kept = serve_csi(&config, images, &agent, stopped.clone(), &mut serving).await?;
    serve_metrics(&config, &agent, kept.clone(), stopped.clone(), &mut serving).await?;
    // Last, as whoever gets an answer here takes the node for ready.
    let ended = stopped.clone();
    serve_admin(&config, &agent, &registry, device, stopped, &mut serving)?;
    if let Some(cluster) = cluster {
        let tending = kubernetes::tend(cluster.registry, agent.clone());
        serving.spawn(async {
            tokio::select! {
                () = tending => {}
                () = stopping(ended) => {}
            }
            Ok(())
        });
    }
    tracing::info!(node = config.name, control = %config.control_listen, "the node is up");

    let outcome = tokio::select! {
        _ = ending.recv() => Ok(()),
        Some(ended) = serving.join_next() => flatten(ended),
    };
    tracing::info!(node = config.name, "the node ends");
    // Nobody listens when all have ended already.
    let _ = stop.send(());
    drop(stop);
    let drained = drain(&mut serving).await;
    if let Some(kept) = kept.filter(|_| config.unmount_on_exit && config.keeper.is_none()) {
        end_keeper(kept).await;
    }
    agent.flush().await;
    outcome.and(drained)
}

/// Waits for what serves to end in order, and gives up on what does not.
async fn drain(serving: &mut Serving) -> Result<(), Failure> {
    let mut outcome = Ok(());
    let all = async {
        while let Some(ended) = serving.join_next().await {
            outcome = std::mem::replace(&mut outcome, Ok(())).and(flatten(ended));
        }
    };
    // The driver bounds its own calls; unmounting comes after them.
    if tokio::time::timeout(DRAIN * 3, all).await.is_err() {
        tracing::warn!("some calls did not end in time and are cut off");
    }
    serving.abort_all();
    outcome
}

fn flatten(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    match ended {
        Ok(outcome) => outcome,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "a part of the node failed: {error}"
        ))),
    }
}

/// Nobody else uses a keeper that the node has started for itself.
async fn end_keeper(kept: KeptMounts) {
    match tokio::task::spawn_blocking(move || kept.end()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the keeper is left to end by itself"),
        Err(error) => tracing::warn!(%error, "the keeper is left to end by itself"),
    }
}

/// What a node in Kubernetes has of its cluster.
struct Cluster {
    registry: Arc<KubernetesRegistry>,
    secrets: Arc<ApiSecrets>,
}

/// Gets to know the cluster, if the node is in one.
async fn connect(config: &NodeConfig) -> Result<Option<Cluster>, Failure> {
    let Some(kubernetes) = &config.kubernetes else {
        return Ok(None);
    };
    let unusable = |error: io::Error| {
        Failure::failed(format!(
            "cannot make {}: {error}",
            config.own_dir().display()
        ))
    };
    std::fs::create_dir_all(config.own_dir()).map_err(unusable)?;
    let client = kubernetes::connect().await?;
    let file = config.own_dir().join("kubernetes.json");
    let registry = KubernetesRegistry::new(client.clone(), &config.name, kubernetes.clone(), file);
    let registry = Arc::new(registry);
    kubernetes::run(&registry);
    registry.known().await;
    Ok(Some(Cluster {
        registry,
        secrets: Arc::new(ApiSecrets::new(client)),
    }))
}

fn open_registry(config: &NodeConfig) -> Result<Arc<dyn Registry>, Failure> {
    let registry = FileRegistry::open(&config.registry).map_err(Failure::usage)?;
    let members = registry.members().map_err(Failure::usage)?;
    if !members.iter().any(|member| member.name == config.name) {
        return Err(Failure::usage(format!(
            "{} is not a member in the registry {}: add it there with its control address, or \
             correct --name",
            config.name,
            config.registry.display()
        )));
    }
    Ok(Arc::new(registry))
}

async fn start_agent(
    config: &NodeConfig,
    images: Images,
    identity: &Identity,
    registry: &Arc<dyn Registry>,
    shard: &Shard,
    origins: Origins,
) -> Result<Agent, Failure> {
    let peers = Peers::new(identity.clone(), tokio::runtime::Handle::current());
    let mut agent = AgentConfig::new(&config.name, config.own_dir());
    agent.cache_dirs = config.cache_dirs.clone();
    if let Some(capacity) = config.cache_capacity {
        agent.capacity = capacity;
    }
    agent.disk_percent = config.cache_disk_percent;
    agent.quotas = config.cache_quotas.clone();
    agent.lay_out = config.csi_endpoint.is_some() && config.expose != ExposeChoice::Fuse;
    agent.image_from = images.from;
    let slab = shard.slab().clone();
    let origins = Arc::new(origins);
    Agent::start(
        agent,
        shard.clone(),
        slab,
        registry.clone(),
        Arc::new(peers),
        origins,
    )
    .await
    .map_err(Failure::failed)
}

async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another process has it: stop that, or choose another port",
            io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
            io::ErrorKind::PermissionDenied => "choose a port above 1023, or run as root",
            _ => "choose another address",
        };
        Failure::usage(format!("--{flag} {address}: {error}: {remedy}"))
    })
}

async fn stopping(mut stopped: watch::Receiver<()>) {
    // The sender sends once, or is dropped: both mean the end.
    let _ = stopped.changed().await;
}

async fn serve_peers(
    config: &NodeConfig,
    identity: &Identity,
    agent: &Agent,
    registry: &Arc<dyn Registry>,
    stopped: watch::Receiver<()>,
    serving: &mut Serving,
) -> Result<(), Failure> {
    let listener = listen("control-listen", config.control_listen).await?;
    let service = PeerService::server(Arc::new(agent.clone()), registry.clone());
    let server = Server::builder()
        .tls_config(identity.server())
        .map_err(|error| {
            let why = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
            Failure::usage(format!(
                "--tls-cert {} and --tls-key {} do not work together: {error}: {why}",
                config.tls_cert.display(),
                config.tls_key.display()
            ))
        })?
        .concurrency_limit_per_connection(PEER_CALLS)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopping(stopped.clone()));
    serving.spawn(drained(server, stopped, "the control interface"));
    Ok(())
}

async fn serve_metrics(
    config: &NodeConfig,
    agent: &Agent,
    kept: Option<KeptMounts>,
    stopped: watch::Receiver<()>,
    serving: &mut Serving,
) -> Result<(), Failure> {
    let Some(address) = config.metrics_listen else {
        return Ok(());
    };
    let listener = listen("metrics-listen", address).await?;
    let agent = agent.clone();
    let render = move || {
        let mut text = agent.counters().prometheus_text();
        text.push_str(&metrics::of_disks(&agent.disks()));
        match agent.datasets_here() {
            Ok(datasets) => text.push_str(&metrics::of_datasets(&datasets)),
            Err(error) => tracing::debug!(%error, "how much is here of datasets can't be told"),
        }
        if let Some(fabric) = agent.fabric() {
            text.push_str(&transport::prometheus_text(&fabric.counters()));
        }
        if let Some(kept) = &kept {
            text.push_str(&kept.prometheus_text());
        }
        text
    };
    let pages = metrics::Pages {
        metrics: Arc::new(render),
        checks: Vec::new(),
    };
    serving.spawn(async move {
        tokio::select! {
            () = metrics::serve(listener, pages) => {}
            () = stopping(stopped) => {}
        }
        Ok(())
    });
    Ok(())
}

async fn serve_csi(
    config: &NodeConfig,
    images: Images,
    agent: &Agent,
    stopped: watch::Receiver<()>,
    serving: &mut Serving,
) -> Result<Option<KeptMounts>, Failure> {
    let Some(endpoint) = config.csi_endpoint.clone() else {
        agent.begin_evicting(Box::new(HashSet::new));
        return Ok(None);
    };
    let driver = DriverConfig {
        node_id: config.name.clone(),
        state_dir: config.state_dir.clone(),
        registry: config.registry.clone(),
        plugins_registry: config.kubelet_plugins_registry.clone(),
        topology: BTreeMap::new(),
        unmount_on_exit: config.unmount_on_exit,
    };
    let datasets = Arc::new(agent.clone());
    let config = config.clone();
    let making = tokio::task::spawn_blocking(move || {
        let socket = config.keeper.as_ref().map(Endpoint::path);
        let kept = keeper::connect(config.own_dir(), socket, config.passthrough)?;
        let expose =
            NativeFirst::new(Arc::new(kept.clone()), config.expose.into()).with_images(images.way);
        let driver = Driver::new(driver, datasets, Arc::new(expose));
        Ok((kept, driver.map_err(Failure::usage)?))
    });
    let (kept, driver) = making.await.map_err(Failure::failed)??;
    agent.when_images_are_mended(Box::new(erofs::forget_pages));
    // Not before it is known what an earlier node has left mounted.
    agent.begin_evicting(Box::new(driver.mounted()));
    serving.spawn(async move {
        driver
            .serve(endpoint, stopping(stopped))
            .await
            .map_err(Failure::failed)
    });
    Ok(Some(kept))
}

fn serve_admin(
    config: &NodeConfig,
    agent: &Agent,
    registry: &Arc<dyn Registry>,
    device: String,
    stopped: watch::Receiver<()>,
    serving: &mut Serving,
) -> Result<(), Failure> {
    let (listener, socket_file) = endpoint::listen(&config.admin_socket)
        .map_err(|error| Failure::usage(format!("--admin-socket: {error}")))?;
    let server = Server::builder()
        .add_service(AdminService::server(
            agent.clone(),
            registry.clone(),
            device,
        ))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopping(stopped.clone()));
    serving.spawn(async move {
        let ended = drained(server, stopped, "the admin socket").await;
        drop(socket_file);
        ended
    });
    Ok(())
}

/// Runs a server to its end; once asked to stop it has [`DRAIN`] to finish its calls.
async fn drained(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    stopped: watch::Receiver<()>,
    what: &str,
) -> Result<(), Failure> {
    let cut_off = async {
        stopping(stopped).await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = server => ended.map_err(|error| Failure::failed(format!("{what} ended: {error}"))),
        () = cut_off => Ok(()),
    }
}
