//! Tends to the datasets: lists origins, warms, tells. Looks at everything anew whenever something has
//! changed, at most a few times a second, and does what is missing; so it matters to nobody in which order
//! things happen, and nothing is lost by a restart. What there is to tell is told by [`tell`].
//!
//! A dataset has one **lead** at a time, the node that rendezvous hashing gives it. Two that take
//! themselves for it for a moment write the same.

mod tell;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};
use trackbed_cache::open::{Part, WarmProgress};
use trackbed_cache::origin::ListProgress;
use trackbed_cache::placement::owners;
use trackbed_cache::registry::Readers;
use trackbed_cache::{Agent, AgentError, DatasetName, Digest};
use trackbed_controller::api::{CacheNode, CachedDataset, Dataset, DatasetStatus, WarmUp};

use super::judge::selects;
use super::origin;
use super::registry::KubernetesRegistry;

/// Everything is looked at no more often than this.
const PAUSE: Duration = Duration::from_millis(250);
/// A status that changed its phase may be written after this time; one that only counts on, with the
/// node's reports.
const SOON: Duration = Duration::from_secs(1);
/// How long what failed is left alone at first, and at most.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Origins that are listed at a time, and datasets that are warmed.
const AT_A_TIME: usize = 2;

/// Tends to the datasets until the runtime ends.
pub(crate) async fn tend(registry: Arc<KubernetesRegistry>, agent: Agent) {
    let every = registry.config().report_every;
    let mut changes = registry.changes();
    let mut reports = interval(every);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tender = Tender {
        registry,
        agent,
        tended: HashMap::new(),
        work: JoinSet::new(),
        announced: false,
        told: Vec::new(),
        told_at: None,
    };
    loop {
        let report = tokio::select! {
            _ = reports.tick() => true,
            Ok(()) = changes.changed() => false,
            Some(ended) = tender.work.join_next() => {
                if let Ok((name, outcome)) = ended {
                    tender.ended(&name, outcome);
                }
                false
            }
        };
        tender.look(report).await;
        sleep(PAUSE.min(every / 4)).await;
    }
}

/// What ended.
enum Outcome {
    Listed(Wanted, Result<(), String>),
    Warmed(Goal, Result<(), String>),
}

/// What is to be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    origin: String,
    refresh: i64,
    /// The version of which nobody has the manifest any more.
    lost: Option<Digest>,
}

/// What is to be warmed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Goal {
    version: Digest,
    warm_up: WarmUp,
}

/// Something that failed, and is tried again after a while, or at once if it is something else by then.
struct Trouble<T> {
    of: T,
    why: String,
    rest: Duration,
    until: Instant,
}

impl<T: PartialEq> Trouble<T> {
    /// One more failure.
    fn again(before: Option<Trouble<T>>, of: T, why: String) -> Trouble<T> {
        let before = before.filter(|before| before.of == of);
        let rest = before.map_or(FIRST_REST, |before| (before.rest * 2).min(LONGEST_REST));
        Trouble {
            of,
            why,
            rest,
            until: Instant::now() + rest,
        }
    }

    fn holds_back(&self, of: &T) -> bool {
        self.of == *of && Instant::now() < self.until
    }
}

/// What a node knows of a dataset beside its object.
#[derive(Default)]
struct Tended {
    listing: Option<AbortHandle>,
    /// Whether its origin is being listed, or is to be.
    due: bool,
    list_trouble: Option<Trouble<Wanted>>,
    listed_refresh: Option<i64>,
    lost: Option<Digest>,
    warming: Option<AbortHandle>,
    warm_trouble: Option<Trouble<Goal>>,
    warmed: Option<Goal>,
    written: Option<(Instant, DatasetStatus)>,
}

struct Tender {
    registry: Arc<KubernetesRegistry>,
    agent: Agent,
    tended: HashMap<DatasetName, Tended>,
    work: JoinSet<(DatasetName, Outcome)>,
    /// Whether the CacheNode object was applied since the start.
    announced: bool,
    told: Vec<CachedDataset>,
    told_at: Option<Instant>,
}

impl Drop for Tended {
    fn drop(&mut self) {
        self.listing
            .iter()
            .chain(&self.warming)
            .for_each(AbortHandle::abort);
    }
}

impl Tender {
    fn ended(&mut self, name: &DatasetName, outcome: Outcome) {
        // The dataset may be gone by now.
        let Some(tended) = self.tended.get_mut(name) else {
            return;
        };
        match outcome {
            Outcome::Listed(wanted, result) => {
                tended.listing = None;
                match result {
                    Ok(()) => {
                        tended.listed_refresh = Some(wanted.refresh);
                        (tended.list_trouble, tended.lost) = (None, None);
                    }
                    Err(why) => {
                        tracing::warn!(dataset = %name, why, "a dataset's origin can't be listed");
                        tended.list_trouble =
                            Some(Trouble::again(tended.list_trouble.take(), wanted, why));
                    }
                }
            }
            Outcome::Warmed(goal, result) => {
                tended.warming = None;
                match result {
                    Ok(()) => {
                        tracing::info!(dataset = %name, version = %goal.version.short(), "warmed");
                        (tended.warmed, tended.warm_trouble) = (Some(goal), None);
                    }
                    Err(why) => {
                        tracing::warn!(dataset = %name, why, "a dataset can't be warmed");
                        tended.warm_trouble =
                            Some(Trouble::again(tended.warm_trouble.take(), goal, why));
                    }
                }
            }
        }
    }

    /// Looks at all datasets, begins what is missing, and tells: of this node when a `report` is due or a
    /// dataset is warm or in trouble now, of datasets when there is something to tell.
    async fn look(&mut self, report: bool) {
        let registry = self.registry.clone();
        let (datasets, nodes) = registry.look(|view| {
            let datasets: Vec<_> = view
                .objects()
                .map(|(name, it)| (name.clone(), it.clone()))
                .collect();
            let nodes: Vec<_> = view.live_nodes().cloned().collect();
            (datasets, nodes)
        });
        self.tended
            .retain(|name, _| datasets.iter().any(|(known, _)| known == name));
        let pinned: HashSet<Digest> = datasets
            .iter()
            .filter(|(_, dataset)| dataset.spec.pinned)
            .filter_map(|(_, dataset)| dataset.shown_version()?.parse().ok())
            .collect();
        let mut told = Vec::new();
        for (name, dataset) in &datasets {
            let leads = self.leads(name);
            if leads {
                self.list_if_due(name, dataset).await;
            }
            self.warm_if_due(name, dataset);
            self.pin_as_said(name, &pinned).await;
            told.extend(self.holding(name, dataset).await);
            if leads {
                self.write_if_due(name, dataset, &nodes).await;
            }
        }
        if self.registry.look(super::view::View::is_whole)
            && let Err(error) = self.agent.unpin_unnamed()
        {
            tracing::warn!(%error, "versions of datasets that were deleted can't be unpinned");
        }
        self.tell(report, told).await;
        if report {
            // A file's write waits for the disk.
            let remembering = tokio::task::spawn_blocking(move || registry.remember());
            if remembering.await.is_err() {
                tracing::error!("remembering what the API server said has panicked");
            }
        }
    }

    fn leads(&self, name: &DatasetName) -> bool {
        let members = self.registry.look(super::view::View::members);
        let chosen = owners(&members, &Digest::of(name.as_str().as_bytes()));
        // Where nobody has weight, anybody may.
        chosen.is_none_or(|owners| members[owners.primary].name == self.registry.node())
    }

    async fn list_if_due(&mut self, name: &DatasetName, dataset: &Dataset) {
        let config = self.registry.config().clone();
        let tended = self.tended.entry(name.clone()).or_default();
        if tended.listing.is_some() {
            return;
        }
        let origin = match origin::origin(dataset, &config) {
            Ok(origin) => origin,
            Err(why) => {
                let wanted = Wanted {
                    origin: dataset.spec.origin.clone(),
                    refresh: dataset.spec.refresh,
                    lost: None,
                };
                tended.list_trouble = Some(Trouble::again(None, wanted, why));
                return;
            }
        };
        if let Ok(Some(record)) = self.agent.dataset(name)
            && !self.agent.holds(record.version)
            && tended.lost.is_none()
            && let Err(AgentError::UnknownVersion { .. }) = self.agent.look_at(name, None).await
        {
            tended.lost = Some(record.version);
        }
        let wanted = Wanted {
            origin: origin.to_string(),
            refresh: dataset.spec.refresh,
            lost: tended
                .lost
                .filter(|lost| dataset.shown_version() == Some(&lost.to_string())),
        };
        let status = dataset.status.as_ref();
        let listed = status.and_then(|status| status.origin.as_ref()) == Some(&wanted.origin);
        let refreshed = status
            .and_then(|status| status.listed_refresh)
            .max(tended.listed_refresh);
        let fresh = refreshed.unwrap_or(0) >= wanted.refresh;
        tended.due = !(listed && fresh && wanted.lost.is_none());
        if !tended.due {
            tended.list_trouble = None;
            return;
        }
        if tended
            .list_trouble
            .as_ref()
            .is_some_and(|trouble| trouble.holds_back(&wanted))
        {
            return;
        }
        let running = self
            .tended
            .values()
            .filter(|tended| tended.listing.is_some())
            .count();
        if running >= AT_A_TIME {
            return;
        }
        let (agent, listed) = (self.agent.clone(), name.clone());
        let task = self.work.spawn(async move {
            let progress = ListProgress::default();
            let done = agent
                .register_for(&listed, &origin, Readers::AsBefore, &progress)
                .await;
            let result = done.map(|_| ()).map_err(|error| error.to_string());
            (listed, Outcome::Listed(wanted, result))
        });
        self.tended.entry(name.clone()).or_default().listing = Some(task);
    }

    fn warm_if_due(&mut self, name: &DatasetName, dataset: &Dataset) {
        let own = self.registry.look(|view| view.own_node().cloned());
        let running = self
            .tended
            .values()
            .filter(|tended| tended.warming.is_some())
            .count();
        let tended = self.tended.entry(name.clone()).or_default();
        let goal = goal(dataset, own.as_ref());
        if tended.warming.is_some() || running >= AT_A_TIME || goal == tended.warmed {
            return;
        }
        let Some(goal) = goal else {
            (tended.warmed, tended.warm_trouble) = (None, None);
            return;
        };
        if tended
            .warm_trouble
            .as_ref()
            .is_some_and(|trouble| trouble.holds_back(&goal))
        {
            return;
        }
        let (agent, warmed) = (self.agent.clone(), name.clone());
        let task = self.work.spawn(async move {
            let result = match agent.open(&warmed, Some(goal.version)).await {
                Ok(open) => {
                    let (part, progress) = (part(&goal.warm_up), WarmProgress::default());
                    let done = open.warm_part(&part, &progress).await;
                    done.map(|_| ()).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            (warmed, Outcome::Warmed(goal, result))
        });
        tended.warming = Some(task);
    }

    /// Has those versions of a dataset stay that some object says are pinned, as long as it says so.
    async fn pin_as_said(&self, name: &DatasetName, pinned: &HashSet<Digest>) {
        // Not listed yet: there is nothing to be pinned.
        let Ok(on_disk) = self.agent.versions_on_disk(name) else {
            return;
        };
        for version in on_disk {
            let wanted = pinned.contains(&version.version);
            if version.pinned == wanted {
                continue;
            }
            let done = self.agent.pin(name, Some(version.version), wanted).await;
            if let Err(error) = done {
                tracing::warn!(dataset = %name, %error, wanted, "a dataset can't be pinned or unpinned");
            }
        }
    }
}

/// What a node is to warm of a dataset.
fn goal(dataset: &Dataset, own: Option<&CacheNode>) -> Option<Goal> {
    let warm_up = dataset.spec.warm_up.as_ref()?;
    let chosen = own.is_some_and(|own| selects(warm_up, own));
    let version = dataset.shown_version()?.parse().ok()?;
    chosen.then(|| Goal {
        version,
        warm_up: warm_up.clone(),
    })
}

fn part(warm_up: &WarmUp) -> Part {
    match (&warm_up.paths, warm_up.percent) {
        (Some(paths), _) => {
            Part::Paths(paths.iter().map(|path| path.clone().into_bytes()).collect())
        }
        (None, Some(percent)) => Part::Permille(percent.clamp(0, 100).unsigned_abs() * 10),
        (None, None) => Part::All,
    }
}
