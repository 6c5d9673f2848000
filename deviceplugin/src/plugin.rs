//! All of it running: looks at the machine when something changes, asks kubelet who has what, serves.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};
use trackbed_proto::endpoint::EndpointError;

use crate::allocate::{Health, Offer, Place};
use crate::config::{Config, ConfigError, PoolName};
use crate::discover::{DiscoverError, Discovery};
use crate::events::KernelEvents;
use crate::function::PciAddress;
use crate::journal::{Journal, JournalError};
use crate::kubelet::{self, FolderWatch, held_by_pods};
use crate::offer::{offers, place};
use crate::port_watch::PortWatch;
use crate::probe::Probe;
use crate::settle::{Settle, Transition};
use crate::state::State;

/// How often the machine is looked at though nothing has told of a change.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How often kubelet is asked who has what: it tells of no change.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Where things are.
#[derive(Clone, Debug)]
pub struct PluginConfig {
    /// Which devices form which resource.
    pub config: Config,
    /// Below which `/sys` and `/dev` lie.
    pub root: PathBuf,
    /// The journal's folder; one that a reboot empties will do, and in memory is fastest.
    pub state_dir: PathBuf,
    /// The folder of kubelet's and its device plugins' sockets.
    pub kubelet_dir: PathBuf,
    /// The socket on which kubelet says which pod has what.
    pub pod_resources: PathBuf,
}

/// Why the plugin does not run.
#[derive(Debug, Error)]
pub enum PluginError {
    /// The configuration does not fit what is here.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine can't be looked at.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// What was given away can't be read or kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] EndpointError),
    /// A part of it broke.
    #[error("a part of the device plugin ended: {0}: this is a bug, report it with the log")]
    Broke(#[source] tokio::task::JoinError),
}

/// The device plugin of a node.
pub struct Plugin {
    /// What is offered, and who has what.
    pub state: Arc<State>,
    pod_resources: PathBuf,
    kubelet_dir: PathBuf,
    probe: Arc<dyn Probe>,
    /// Somebody wants the machine to be looked at.
    look: Notify,
    /// One at a time asks kubelet.
    asking: tokio::sync::Mutex<()>,
    /// One at a time tries what came back.
    probing: tokio::sync::Mutex<()>,
}

impl Plugin {
    /// Reads the journal and looks at the machine once. Nobody is told yet.
    pub async fn prepare(
        config: PluginConfig,
        probe: Arc<dyn Probe>,
    ) -> Result<(Arc<Plugin>, Looker), PluginError> {
        let PluginConfig {
            config,
            root,
            state_dir,
            kubelet_dir,
            pod_resources,
        } = config;
        let (journal, held) = Journal::open(&state_dir)?;
        let mut looker = Looker {
            discovery: Discovery::new(&root),
            watched: PortWatch::new(&root),
            settle: Settle::default(),
        };
        let state = State::new(config, root, journal, held);
        let (seen, overlaps) = looker.look(&state.config)?;
        if let Some(overlap) = overlaps.into_iter().next() {
            return Err(overlap.into());
        }
        state.see(seen.offers, seen.places);
        let plugin = Plugin {
            state,
            pod_resources,
            kubelet_dir,
            probe,
            look: Notify::new(),
            asking: tokio::sync::Mutex::default(),
            probing: tokio::sync::Mutex::default(),
        };
        Ok((Arc::new(plugin), looker))
    }

    /// Runs until a part of it fails.
    pub async fn run(self: &Arc<Plugin>, looker: Looker) -> PluginError {
        let mut parts = JoinSet::new();
        let folder = Arc::new(FolderWatch::new(&self.kubelet_dir));
        // Before anything is offered: kubelet may know of pods that the journal does not.
        self.reconcile().await;
        for pool in self.state.config.pools() {
            let (plugin, pool) = (Arc::clone(self), pool.name.clone());
            let changes = folder.changes();
            parts.spawn(async move {
                let folder = plugin.kubelet_dir.clone();
                kubelet::serve(&plugin, &pool, &folder, changes)
                    .await
                    .into()
            });
        }
        parts.spawn(async move { match folder.run().await {} });
        let plugin = Arc::clone(self);
        parts.spawn(async move { plugin.watch_machine(looker).await });
        let plugin = Arc::clone(self);
        parts.spawn(async move { plugin.watch_pods().await });
        loop {
            match parts.join_next().await {
                Some(Ok(error)) => return error,
                Some(Err(error)) => return PluginError::Broke(error),
                None => {}
            }
        }
    }

    /// Asks kubelet which pods have what; where it does not answer, all stays as it is known.
    pub async fn reconcile(&self) {
        let _one = self.asking.lock().await;
        let asked = SystemTime::now();
        let said = match held_by_pods(&self.pod_resources, &self.state.config).await {
            Ok(named) => self.state.reconcile(&named, asked).await,
            Err(error) => {
                tracing::debug!(%error, "who has what is not known anew");
                return;
            }
        };
        match said {
            Ok(false) => {}
            // What is given back is to be found, and to be tried.
            Ok(true) => self.look_again(),
            Err(error) => tracing::error!(%error, "who has what could not be written down"),
        }
    }

    /// Has the machine looked at, though the kernel has told of nothing.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    /// Tries devices that are back from pods; those that work can be given again.
    pub async fn probe_returned(&self) {
        // Two at a time could try a device that the first has given back and a pod has got.
        let _one = self.probing.lock().await;
        for (pool, offer) in self.state.to_probe() {
            match self.try_device(offer.place.address).await {
                Ok(()) => {
                    if let Err(error) = self.state.probed(&pool, &offer.id).await {
                        tracing::error!(%error, "that a device is back could not be written down");
                    }
                }
                Err(why) => {
                    tracing::warn!(%pool, device = offer.id, why, "a device came back and does not work");
                }
            }
        }
    }

    /// Tries a device, unless it is in a pod's network namespace.
    pub(crate) async fn try_if_here(&self, pool: &PoolName, at: PciAddress) -> Result<(), String> {
        let root = self.state.root.clone();
        let here = spawn_blocking(move || crate::discover::needs(&root, at)).await;
        match here {
            Ok(Ok(needs)) if needs.net_devices.is_empty() && needs.rdma.is_none() => Ok(()),
            _ => self.try_device(at).await.inspect_err(|why| {
                tracing::warn!(%pool, device = %at, why, "a container is not started: its device does not work");
            }),
        }
    }

    async fn try_device(&self, at: PciAddress) -> Result<(), String> {
        let probe = Arc::clone(&self.probe);
        let tried = spawn_blocking(move || probe.probe(at)).await;
        tried.unwrap_or_else(|error| Err(format!("the probe broke: {error}")))
    }

    async fn watch_pods(&self) -> PluginError {
        let mut changes = self.state.changes();
        loop {
            self.reconcile().await;
            changes.mark_unchanged();
            // Soon after a change, which may be an allocation: then its pod gets a name.
            let changed = async {
                let _ = changes.changed().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            };
            let _ = tokio::time::timeout(ASK_AGAIN, changed).await;
        }
    }

    async fn watch_machine(&self, looker: Looker) -> PluginError {
        let events = KernelEvents::listen();
        let mut looker = Some(looker);
        let mut next = None;
        loop {
            self.probe_returned().await;
            // Taken: after a look that fails the next one is not at once.
            let until = next.take().unwrap_or_else(|| Instant::now() + LOOK_AGAIN);
            tokio::select! {
                () = events.changed() => {}
                () = self.look.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
            let Some(mut looking) = looker.take() else {
                continue;
            };
            let state = Arc::clone(&self.state);
            let looked = spawn_blocking(move || {
                let seen = looking.look(&state.config);
                (looking, seen)
            });
            let (looking, seen) = match looked.await {
                Ok(looked) => looked,
                Err(error) => return PluginError::Broke(error),
            };
            looker = Some(looking);
            match seen {
                Ok((seen, overlaps)) => {
                    next = seen.again;
                    self.note(&seen.transitions);
                    self.state.see(seen.offers, seen.places);
                    for overlap in overlaps {
                        tracing::error!(%overlap, "a device is offered by neither of two pools");
                    }
                }
                // What was seen last stays offered: an allocation looks again.
                Err(error) => tracing::error!(%error, "the machine can't be looked at"),
            }
        }
    }

    fn note(&self, transitions: &[Transition]) {
        for Transition { id, health } in transitions {
            self.state.counters.turned(health);
            match health {
                Health::Healthy => tracing::info!(device = id, "a device is well again"),
                Health::Unhealthy(why) => {
                    tracing::warn!(device = id, why, "a device is not fit to be given");
                }
            }
        }
    }
}

/// Looks at the machine, remembering what was seen before.
#[derive(Debug)]
pub struct Looker {
    discovery: Discovery,
    watched: PortWatch,
    settle: Settle,
}

/// What a look has found.
struct Seen {
    offers: Vec<(PoolName, Vec<Offer>)>,
    /// Where all functions are, by their names.
    places: HashMap<String, Place>,
    transitions: Vec<Transition>,
    /// When to look again, if something may change by time alone.
    again: Option<Instant>,
}

impl Looker {
    fn look(&mut self, config: &Config) -> Result<(Seen, Vec<ConfigError>), DiscoverError> {
        let found = self.discovery.look()?;
        let (sorted, overlaps) = config.sort(&found);
        let mut seen = Seen {
            offers: Vec::new(),
            places: found.iter().map(|it| (it.id.clone(), place(it))).collect(),
            transitions: Vec::new(),
            again: None,
        };
        let mut there = HashSet::new();
        let now = Instant::now();
        for sorted in &sorted {
            let mut offered = offers(sorted, &mut self.watched, now);
            let (transitions, again) = self.settle.settle(&mut offered, now);
            seen.transitions.extend(transitions);
            seen.again = [seen.again, again].into_iter().flatten().min();
            there.extend(offered.iter().map(|offer| offer.id.clone()));
            seen.offers.push((sorted.pool.name.clone(), offered));
        }
        self.settle.keep(|id| there.contains(id));
        self.watched
            .keep(|address| found.iter().any(|it| it.address == address));
        Ok((seen, overlaps))
    }
}
