//! `trackbed mount`: a dataset or an origin as a folder, on a machine without Kubernetes and without a
//! node. The engine runs in this process, with a cache of its own for each origin; a keeper serves the
//! mount, so that killing this process fails no read.

mod alone;

use crate::exit::Failure;
use crate::keeper::PassthroughChoice;
use crate::node::{DEFAULT_MEMORY, ExposeChoice, Images, engine, keeper};
use crate::size::Size;
use alone::{Alone, NoPeers};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use trackbed_cache::origin::{ListProgress, Origins};
use trackbed_cache::registry::FileRegistry;
use trackbed_cache::{Agent, AgentConfig, DatasetName, Digest, OriginUrl, Registry};
use trackbed_csi::expose::erofs;
use trackbed_csi::expose::mountinfo::{Mount, MountTable};
use trackbed_csi::expose::native::NativeFirst;
use trackbed_csi::expose::{Expose, Exposed, VersionView};
use trackbed_csi::keeper::KeptMounts;

/// How often it is looked whether somebody has unmounted the folder.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The name of the one dataset of a mount's own registry.
const NAME: &str = "mounted";

const AFTER_HELP: &str = "\
Examples:
  trackbed mount 's3://bucket/dogs?region=eu-central-1' /mnt/dogs
  trackbed mount --registry /etc/trackbed/registry cats /mnt/cats
  trackbed mount --warm file:///mnt/nfs/cats /mnt/cats

It lists the origin, mounts what is there, and goes on until Ctrl-C, or until somebody unmounts the
folder. What was read stays in the cache for the next time. It takes root, since it mounts.";

/// Show a dataset as a folder, without Kubernetes and without a node
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct MountArgs {
    /// The origin's URL, as of `trackbed dataset register`, or the name of a dataset of --registry
    source: String,

    /// The folder to mount on: it must be there, and empty
    path: PathBuf,

    /// Folder of a registry, to mount a dataset of it by its name
    #[arg(long, env = "TRACKBED_REGISTRY", value_name = "FOLDER")]
    registry: Option<PathBuf>,

    /// Folder in which each origin has a cache of its own
    #[arg(
        long,
        env = "TRACKBED_MOUNT_CACHE",
        value_name = "FOLDER",
        default_value = "/var/cache/trackbed"
    )]
    cache_dir: PathBuf,

    /// How much of this origin the cache may hold [default: what the disk has free, less 5%]
    #[arg(long, value_name = "SIZE")]
    cache_capacity: Option<Size>,

    /// Pinned memory for data on its way [default: 128MiB]
    #[arg(long, env = "TRACKBED_MEMORY", value_name = "SIZE")]
    memory: Option<Size>,

    /// Bring all of it before it is mounted, so that it can be shown natively
    #[arg(long)]
    warm: bool,

    /// How it is shown
    #[arg(
        long,
        env = "TRACKBED_EXPOSE",
        value_name = "HOW",
        default_value = "auto"
    )]
    expose: ExposeChoice,

    /// Whether the kernel may read whole files by itself, unchecked by us
    #[arg(
        long,
        env = "TRACKBED_PASSTHROUGH",
        value_name = "WHEN",
        default_value = "auto"
    )]
    passthrough: PassthroughChoice,
}

/// Mounts, and waits for the end.
pub(crate) fn run(args: &MountArgs) -> Result<(), Failure> {
    let target = folder(&args.path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Failure::unable(format!("cannot start the control threads: {error}")))?;
    let outcome = runtime.block_on(mount(args, &target));
    runtime.shutdown_background();
    outcome
}

/// The folder to mount on, without links in its path.
fn folder(path: &Path) -> Result<PathBuf, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Failure::usage(format!("{}: {why}", path.display()));
    let target = path.canonicalize().map_err(|error| refuse(&error))?;
    // One that was killed has left its mount, which is taken over.
    let table = MountTable::read().map_err(|error| refuse(&error))?;
    if table.top(&target).is_some_and(Mount::is_ours) {
        return Ok(target);
    }
    let mut entries = std::fs::read_dir(&target).map_err(|error| refuse(&error))?;
    if entries.next().is_some() {
        return Err(refuse(
            &"it is not empty: what is in it would be hidden; make a folder for the mount",
        ));
    }
    Ok(target)
}

/// What to mount.
struct Source {
    origin: OriginUrl,
    /// The version that the registry says, if it was asked.
    version: Option<Digest>,
}

fn source(args: &MountArgs) -> Result<Source, Failure> {
    let named = !args.source.contains([':', '/']);
    if !named {
        let origin = args.source.parse().map_err(Failure::usage)?;
        return Ok(Source {
            origin,
            version: None,
        });
    }
    let name: DatasetName = args.source.parse().map_err(Failure::usage)?;
    let registry = args.registry.as_deref().ok_or_else(|| {
        Failure::usage(format!(
            "{name} is the name of a dataset: say in which registry it is by --registry, or give the \
             origin's URL"
        ))
    })?;
    let registry = FileRegistry::open(registry).map_err(Failure::usage)?;
    let record = registry.dataset(&name).map_err(Failure::failed)?;
    let record = record.ok_or_else(|| {
        Failure::usage(format!(
            "there is no dataset {name}: register it first, or check the name"
        ))
    })?;
    Ok(Source {
        origin: record.origin,
        version: Some(record.version),
    })
}

async fn mount(args: &MountArgs, target: &Path) -> Result<(), Failure> {
    let mut ending = engine::ending()?;
    let source = source(args)?;
    let own = Digest::of(source.origin.to_string().as_bytes());
    let cache = args.cache_dir.join(own.short());
    let made = std::fs::create_dir_all(&cache);
    made.map_err(|error| Failure::failed(format!("cannot make {}: {error}", cache.display())))?;
    // Nobody else may list what is in the cache.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&cache, private)
        .map_err(|error| Failure::failed(format!("{}: {error}", cache.display())))?;
    let images = Images::find(args.expose, &cache).await;
    let agent = start(args, images, &cache).await?;
    let working = async {
        let version = list(&agent, &source).await?;
        let name: DatasetName = NAME.parse().map_err(Failure::failed)?;
        let open = agent
            .open(&name, Some(version))
            .await
            .map_err(Failure::failed)?;
        if args.warm {
            open.warm().await.map_err(Failure::failed)?;
        }
        Ok(open as Arc<dyn VersionView>)
    };
    let view = tokio::select! {
        view = working => view?,
        _ = ending.recv() => return Err(Failure::interrupted()),
    };
    let shown = show(args, images, &cache, target, view).await?;
    agent.when_images_are_mended(Box::new(erofs::forget_pages));
    tracing::info!(path = %target.display(), "mounted: Ctrl-C, or umount, ends it");
    tokio::select! {
        _ = ending.recv() => {}
        () = shown.unmounted() => {}
    }
    let ended = shown.end().await;
    agent.flush().await;
    ended
}

async fn start(args: &MountArgs, images: Images, cache: &Path) -> Result<Agent, Failure> {
    engine::raise_memory_lock_limit();
    let shard = engine::start_shard(args.memory.unwrap_or(DEFAULT_MEMORY).0)?;
    let mut config = AgentConfig::new(NAME, cache);
    if let Some(capacity) = args.cache_capacity {
        config.capacity = capacity.0;
    }
    config.lay_out = args.expose != ExposeChoice::Fuse;
    config.image_from = images.from;
    let slab = shard.slab().clone();
    let registry = Arc::new(Alone::default());
    let origins = Arc::new(Origins::default());
    Agent::start(config, shard, slab, registry, Arc::new(NoPeers), origins)
        .await
        .map_err(Failure::failed)
}

/// Lists the origin; gives the version that is there, which must be the one that was asked for.
async fn list(agent: &Agent, source: &Source) -> Result<Digest, Failure> {
    let name: DatasetName = NAME.parse().map_err(Failure::failed)?;
    let progress = ListProgress::default();
    let record = agent.register(&name, &source.origin, &progress).await;
    let record = record.map_err(Failure::failed)?;
    match source.version {
        Some(version) if version != record.version => Err(Failure::failed(format!(
            "the origin {} has changed since the dataset was registered (version {}, now {}): register it \
             again, or mount the URL for what is there now",
            source.origin,
            version.short(),
            record.version.short()
        ))),
        _ => Ok(record.version),
    }
}

/// A version that is mounted.
struct Shown {
    mount: Box<dyn Exposed>,
    kept: KeptMounts,
}

async fn show(
    args: &MountArgs,
    images: Images,
    cache: &Path,
    target: &Path,
    view: Arc<dyn VersionView>,
) -> Result<Shown, Failure> {
    let (cache, target) = (cache.to_owned(), target.to_owned());
    let (expose, passthrough) = (args.expose, args.passthrough);
    let source = args.source.clone();
    // The kernel's handshake, and starting the keeper, block.
    let showing = tokio::task::spawn_blocking(move || {
        let kept = keeper::connect(&cache, None, passthrough)?;
        let ways = NativeFirst::new(Arc::new(kept.clone()), expose.into()).with_images(images.way);
        let adopted = ways.adopt(&view, &target).map(Ok);
        match adopted.unwrap_or_else(|| ways.show(&view, &source, &target)) {
            Ok(mount) => Ok(Shown { mount, kept }),
            Err(error) => {
                if let Err(left) = kept.end() {
                    tracing::warn!(error = %left, "the keeper is left to end by itself");
                }
                Err(Failure::failed(error))
            }
        }
    });
    showing.await.map_err(Failure::failed)?
}

impl Shown {
    /// Waits until somebody else has unmounted it.
    async fn unmounted(&self) {
        let there = |table: &MountTable| {
            let top = table.top(self.mount.mount_point());
            top.is_some_and(|top| self.mount.shows(top))
        };
        while MountTable::read().map_or(true, |table| there(&table)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Takes the mount away, and the keeper with it.
    async fn end(self) -> Result<(), Failure> {
        let ending = tokio::task::spawn_blocking(move || {
            drop(self.mount);
            self.kept.end().map_err(Failure::failed)
        });
        ending.await.map_err(Failure::failed)?
    }
}
