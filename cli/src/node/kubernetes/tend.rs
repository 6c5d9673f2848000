//! Tends to the datasets: lists origins, warms, tells. Looks at everything anew whenever something has
//! changed, at most a few times a second, and does what is missing; so it matters to nobody in which order
//! things happen, and nothing is lost by a restart.
//!
//! A dataset has one **lead** at a time, the node that rendezvous hashing gives it. Two that take
//! themselves for it for a moment write the same.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use trackbed_cache::open::{Part, WarmProgress};
use trackbed_cache::origin::ListProgress;
use trackbed_cache::placement::owners;
use trackbed_cache::registry::Readers;
use trackbed_cache::{Agent, AgentError, DatasetName, Digest, Showable};
use trackbed_controller::api::{CacheNode, CachedDataset, Dataset, DatasetStatus, WarmUp};

use super::announce::{self, Space, answered, signed};
use super::judge::{Facts, judge, selects};
use super::registry::KubernetesRegistry;
use super::view::object_of;
use super::{ANSWER_WITHIN, KEEPER_OF_STATUS, origin};

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

/// Tends to the datasets until the runtime ends. `capacity` is the most the cache may hold, if bounded.
pub(crate) async fn tend(
    registry: Arc<KubernetesRegistry>,
    agent: Agent,
    folder: PathBuf,
    capacity: Option<u64>,
) {
    let every = registry.config().report_every;
    let mut changes = registry.changes();
    let mut reports = interval(every);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tender = Tender {
        registry,
        agent,
        folder,
        capacity,
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
    folder: PathBuf,
    capacity: Option<u64>,
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
        let chosen = owners(&members, &Digest::of(name.as_str().as_bytes()), 0);
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
        if listed && fresh && wanted.lost.is_none() {
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

    /// What this node has to tell of a dataset.
    async fn holding(&self, name: &DatasetName, dataset: &Dataset) -> Option<CachedDataset> {
        let record = self.agent.dataset(name).ok().flatten()?;
        let tended = self.tended.get(name)?;
        let trouble = tended
            .warm_trouble
            .as_ref()
            .map(|trouble| trouble.why.clone());
        let (namespace, object) = object_of(name)?;
        let mut told = CachedDataset {
            namespace: namespace.to_owned(),
            name: object.to_owned(),
            version: record.version.to_string(),
            bytes: 0,
            bytes_present: 0,
            native: false,
            warmed_generation: None,
            trouble,
        };
        if !self.agent.holds(record.version) {
            return told.trouble.is_some().then_some(told);
        }
        // From the disk: nobody else is asked.
        match self.agent.look_at(name, Some(record.version)).await {
            Ok(open) => {
                let progress = open.progress();
                told.bytes = signed(progress.bytes);
                told.bytes_present = signed(progress.bytes_present);
                told.native = matches!(open.showable(), Showable::Native(_));
            }
            Err(error) => told.trouble = Some(error.to_string()),
        }
        let own = self.registry.look(|view| view.own_node().cloned());
        let goal = goal(dataset, own.as_ref());
        let warmed = goal.is_some() && goal == tended.warmed;
        told.warmed_generation = dataset.metadata.generation.filter(|_| warmed);
        Some(told)
    }

    /// Tells of this node if it is time.
    async fn tell(&mut self, report: bool, told: Vec<CachedDataset>) {
        let news = |told: &[CachedDataset]| {
            let news = told
                .iter()
                .map(|it| (it.name.clone(), it.warmed_generation, it.trouble.clone()));
            news.collect::<Vec<_>>()
        };
        let settled = self.told_at.is_none_or(|at| at.elapsed() >= SOON);
        let due = report || (settled && news(&told) != news(&self.told));
        if !due {
            return;
        }
        let space = Space::of(&self.folder, self.capacity);
        let there = self
            .registry
            .look(|view| !view.is_whole() || view.own_node().is_some());
        let mut done = Ok(());
        if !self.announced || !there {
            let object = announce::object(&self.registry, &self.folder, space);
            done = announce::apply(&self.registry, &object).await;
            self.announced = done.is_ok();
        }
        if done.is_ok() {
            let status = announce::status(&self.registry, space, &told);
            done = announce::apply_status(&self.registry, &status).await;
        }
        match done {
            Ok(()) => (self.told, self.told_at) = (told, Some(Instant::now())),
            Err(why) => tracing::warn!(why, "the API server does not take this node's report"),
        }
    }

    /// Writes a dataset's status if it says something else by now.
    async fn write_if_due(&mut self, name: &DatasetName, dataset: &Dataset, nodes: &[CacheNode]) {
        let every = self.registry.config().report_every;
        let tended = self.tended.entry(name.clone()).or_default();
        let facts = Facts {
            dataset,
            nodes,
            listing: tended.listing.is_some(),
            trouble: tended
                .list_trouble
                .as_ref()
                .map(|trouble| trouble.why.as_str()),
            listed_refresh: tended.listed_refresh,
            now: Time(Timestamp::now()),
        };
        let status = judge(&facts);
        let before = dataset.status.clone().unwrap_or_default();
        // The fields of a version are written with it.
        let as_told = DatasetStatus {
            version: before.version.clone(),
            earlier_versions: before.earlier_versions.clone(),
            origin: before.origin.clone(),
            volume_dataset: before.volume_dataset.clone(),
            ..status.clone()
        };
        if as_told == before {
            return;
        }
        if let Some((at, written)) = &tended.written {
            let turned = written.phase != status.phase
                || written.observed_generation != status.observed_generation;
            let wait = if turned { SOON.min(every) } else { every };
            if at.elapsed() < wait {
                return;
            }
        }
        tended.written = Some((Instant::now(), status.clone()));
        let Some((namespace, object)) = object_of(name) else {
            return;
        };
        let patch = json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
            "metadata": { "name": object, "uid": dataset.metadata.uid }, "status": status });
        let api: Api<Dataset> = Api::namespaced(self.registry.client(), namespace);
        let how = PatchParams::apply(KEEPER_OF_STATUS).force();
        let called = timeout(
            ANSWER_WITHIN,
            api.patch_status(object, &how, &Patch::Apply(patch)),
        )
        .await;
        if let Err(why) = answered(called) {
            tracing::warn!(dataset = %name, why, "a dataset's status can't be written");
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
