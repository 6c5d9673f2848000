//! Making room in the cache: which versions are given up, and when.
//!
//! The evictor is a thread of its own that is woken when a bound of the cache is met. It gives up
//! whole versions, those first that were used the longest ago. A version that is pinned, mounted,
//! being read or being filled is never given up: whoever uses one has it open, and what outlives
//! this process (mounts) is told by whoever made it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use async_channel::Receiver;
use futures::executor::block_on;
use futures::future::{self, Either};
use futures_timer::Delay;

use super::{AgentError, Inner};
use crate::digest::Digest;
use crate::open::Version;
use crate::registry::{DatasetRecord, Namespace};
use crate::store::{GivenUp, Holding, Short, Store};

/// How often it is looked whether bounds are kept, and written down what was used when.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long a version that is in use is tried again if somebody asks for it to be evicted: the tasks
/// of a fill or a read end a moment after it.
const SETTLE: Duration = Duration::from_secs(1);

/// The versions that are mounted, or may be: what a process before this one has mounted too.
pub type Mounted = Box<dyn Fn() -> HashSet<Digest> + Send + Sync>;

/// Why a version is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Somebody has said so.
    Pinned,
    /// It is mounted, being read or being filled.
    InUse,
}

/// What is known of a version on the disk.
#[derive(Clone, Debug)]
struct Candidate {
    digest: Digest,
    bytes: u64,
    /// When it was last used, in microseconds since 1970.
    used: u64,
    pinned: bool,
    tenant: Option<Namespace>,
}

/// The version to give up next: the one used the longest ago of those that nothing keeps, and that
/// are the tenant's, if it is one's quota that is met.
fn next_victim(
    candidates: &[Candidate],
    tenant: Option<&Namespace>,
    in_use: &HashSet<Digest>,
) -> Option<Digest> {
    let evictable = candidates.iter().filter(|candidate| {
        let theirs = tenant.is_none() || candidate.tenant.as_ref() == tenant;
        theirs && candidate.bytes > 0 && !candidate.pinned && !in_use.contains(&candidate.digest)
    });
    evictable
        .min_by_key(|candidate| (candidate.used, candidate.digest))
        .map(|candidate| candidate.digest)
}

fn candidates(held: Vec<(Digest, Arc<Holding>)>) -> Vec<Candidate> {
    let held = held.into_iter();
    held.map(|(digest, holding)| Candidate {
        digest,
        bytes: holding.bytes(),
        used: holding.used(),
        pinned: holding.pinned.load(SeqCst),
        tenant: holding.tenant.lock().clone(),
    })
    .collect()
}

/// Whose quota each version counts for: the one namespace's whose pods may read it, if there is
/// just one, by all datasets that it is a version of.
fn tenants(datasets: &[DatasetRecord]) -> HashMap<Digest, Option<Namespace>> {
    let mut tenants = HashMap::new();
    for record in datasets {
        let mut names = record.namespaces.iter().flatten();
        let only = match (names.next(), names.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        };
        for version in record.earlier.iter().chain([&record.version]) {
            let tenant = tenants.entry(*version).or_insert_with(|| only.clone());
            if *tenant != only {
                *tenant = None;
            }
        }
    }
    tenants
}

/// Starts the evictor. It ends when nobody can wake it any more, and keeps nothing alive.
pub(super) fn start(inner: &Arc<Inner>, woken: Receiver<()>) -> io::Result<()> {
    let inner = Arc::downgrade(inner);
    let evictor = thread::Builder::new().name("evict".into());
    evictor.spawn(move || block_on(work(&inner, &woken)))?;
    Ok(())
}

async fn work(inner: &Weak<Inner>, woken: &Receiver<()>) {
    let mut tried = Instant::now();
    loop {
        let called = pin!(woken.recv());
        let pause = match inner.upgrade() {
            Some(inner) => LOOK_EVERY.min(inner.config.disk_trial_every),
            None => return,
        };
        if let Either::Left((Err(_), _)) = future::select(called, Delay::new(pause)).await {
            return;
        }
        let Some(inner) = inner.upgrade() else { return };
        // By the time, not by the pause: disks that are busy call all the time.
        let try_failing = tried.elapsed() >= inner.config.disk_trial_every;
        if try_failing {
            tried = Instant::now();
        }
        inner.assign_tenants();
        for disk in inner.disks.stores() {
            if disk.health().is_out() {
                inner.tend_failing(disk, try_failing).await;
                continue;
            }
            disk.save_uses();
            if disk.room().is_evicting() {
                inner.make_room(disk).await;
            }
        }
        if let Some(mounted) = inner.mounted.get() {
            let mounted = mounted();
            let is_mounted = |version: &Digest| mounted.contains(version);
            let removed = inner.disks.remove_superseded(is_mounted, &inner.remover);
            removed.await;
        }
    }
}

impl Inner {
    /// Notes whose quota each version counts for.
    pub(super) fn assign_tenants(&self) {
        if !self.disks.has_quotas() {
            return;
        }
        let datasets = match self.registry.datasets() {
            Ok(datasets) => datasets,
            Err(error) => {
                tracing::warn!(%error, "quotas go by what was known of the datasets before");
                return;
            }
        };
        let tenants = tenants(&datasets);
        for (digest, holding) in self.disks.holdings() {
            *holding.tenant.lock() = tenants.get(&digest).cloned().flatten();
        }
    }

    /// Sends away who waits for room on a disk that is out of service, and tries it if `due`.
    async fn tend_failing(&self, disk: &Store, due: bool) {
        let wanted = disk.room().begin_round().into_iter();
        disk.room()
            .round_ends(wanted.map(|(short, _)| short).collect());
        if due {
            let lease = self.filler.slab.lease().await;
            disk.try_disk(lease).await;
        }
    }

    /// Gives up versions until what is wanted of a disk has room, or nothing is left that may be given up.
    async fn make_room(&self, disk: &Store) {
        let room = disk.room();
        let mut in_use = self
            .mounted
            .get()
            .map(|mounted| mounted())
            .unwrap_or_default();
        let mut fruitless = Vec::new();
        for (short, wanted) in room.begin_round() {
            let mut evicted = false;
            let met = |evicted: bool| match short {
                Short::Disk(100) => evicted,
                _ => room.is_met(&short, wanted),
            };
            while !met(evicted) {
                // A quota is for all disks together, and what is met else is one disk's matter.
                let held = match short.tenant() {
                    Some(_) => self.disks.holdings(),
                    None => room.holdings(),
                };
                let victim = next_victim(&candidates(held), short.tenant(), &in_use);
                let Some(victim) = victim else {
                    fruitless.push(short.clone());
                    break;
                };
                match self.evict_version(victim).await {
                    Ok(bytes) => {
                        evicted = true;
                        tracing::info!(version = %victim.short(), bytes, "evicted, to make room");
                    }
                    Err(NotEvicted::Kept(_)) => {
                        in_use.insert(victim);
                    }
                    Err(NotEvicted::Failed(error)) => {
                        tracing::error!(version = %victim.short(), %error, "cannot evict");
                        in_use.insert(victim);
                    }
                }
            }
        }
        room.round_ends(fruitless);
    }

    /// As [`Inner::evict_version`], with patience for what is just about to end.
    pub(super) async fn evict_settled(&self, digest: Digest) -> Result<u64, NotEvicted> {
        let began = Instant::now();
        loop {
            match self.evict_version(digest).await {
                Err(NotEvicted::Kept(Keeps::InUse)) if began.elapsed() < SETTLE => {
                    Delay::new(Duration::from_millis(20)).await;
                }
                evicted => return evicted,
            }
        }
    }

    /// Gives up all that this node holds of a version, if nothing keeps it; the bytes that are free.
    pub(super) async fn evict_version(&self, digest: Digest) -> Result<u64, NotEvicted> {
        let keeps = |why| Err(NotEvicted::Kept(why));
        let place = self.versions.place(digest);
        // Who opens it just now is going to use it.
        let Some(mut place) = place.try_lock() else {
            return keeps(Keeps::InUse);
        };
        let Some(holding) = self.disks.holding(&digest) else {
            return Ok(0);
        };
        if holding.pinned.load(SeqCst) {
            return keeps(Keeps::Pinned);
        }
        let mounted = self.mounted.get().map(|mounted| mounted());
        if mounted.is_some_and(|mounted| mounted.contains(&digest)) {
            return keeps(Keeps::InUse);
        }
        let open = match place.take().map(Arc::try_unwrap) {
            None => None,
            // Nobody else has it, and nobody can get it from here while the place is locked.
            Some(Ok(version)) => Some(version.into_parts()),
            Some(Err(shared)) => {
                *place = Some(shared);
                return keeps(Keeps::InUse);
            }
        };
        let (store, origin) = open.unzip();
        let known = self.registry.datasets().map_or(true, |datasets| {
            datasets.iter().any(|record| record.has_version(digest))
        });
        let given_up = self
            .disks
            .give_up(digest, store, known, &self.remover)
            .await
            .map_err(|error| NotEvicted::Failed(error.into()))?;
        match given_up {
            GivenUp::Bytes(bytes) => {
                self.counters.evicted_versions.add(1);
                self.counters.evicted_bytes.add(bytes);
                Ok(bytes)
            }
            GivenUp::InUse(store) => {
                if let Some(origin) = origin {
                    let version = Arc::new(Version::new(store, origin));
                    self.upkeep.add(&version);
                    *place = Some(version);
                }
                keeps(Keeps::InUse)
            }
        }
    }
}

/// Why a version was not given up.
pub(super) enum NotEvicted {
    Kept(Keeps),
    Failed(AgentError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: u8, used: u64) -> Candidate {
        Candidate {
            digest: Digest::of(&[name]),
            bytes: 10,
            used,
            pinned: false,
            tenant: None,
        }
    }

    #[test]
    fn what_was_used_the_longest_ago_goes_first_and_what_is_kept_never() {
        let mut versions = [candidate(1, 30), candidate(2, 10), candidate(3, 20)];
        let nothing = HashSet::new();
        let victim = |versions: &[Candidate], in_use| next_victim(versions, None, in_use);
        assert_eq!(victim(&versions, &nothing), Some(Digest::of(&[2])));
        versions[1].pinned = true;
        assert_eq!(victim(&versions, &nothing), Some(Digest::of(&[3])));
        let mounted = [Digest::of(&[3])].into();
        assert_eq!(victim(&versions, &mounted), Some(Digest::of(&[1])));
        versions[0].bytes = 0;
        assert_eq!(victim(&versions, &mounted), None);
    }

    #[test]
    fn a_tenant_s_quota_costs_only_that_tenant_s_versions() {
        let team = Namespace::parse("team-a").expect("valid");
        let mut versions = [candidate(1, 30), candidate(2, 10)];
        versions[0].tenant = Some(team.clone());
        let nothing = HashSet::new();
        let victim = next_victim(&versions, Some(&team), &nothing);
        assert_eq!(victim, Some(Digest::of(&[1])));
        let other = Namespace::parse("team-b").expect("valid");
        assert_eq!(next_victim(&versions, Some(&other), &nothing), None);
    }

    #[test]
    fn a_version_counts_for_the_one_namespace_that_may_read_it() {
        let record = |name: &str, namespaces: &[&str], version: u8| {
            let origin = "/data".parse().expect("a URL");
            let name = name.parse().expect("a name");
            let mut record = DatasetRecord::new(name, origin, Digest::of(&[version]));
            let names = namespaces
                .iter()
                .map(|n| Namespace::parse(n).expect("valid"));
            record.namespaces = (!namespaces.is_empty()).then(|| names.collect());
            record
        };
        let tenants = tenants(&[
            record("a", &["x"], 1),
            record("b", &["x", "y"], 2),
            record("c", &[], 3),
            record("d", &["x"], 4),
            record("e", &["y"], 4),
            record("f", &["y"], 5),
        ]);
        let of = |version: u8| {
            tenants[&Digest::of(&[version])]
                .as_ref()
                .map(Namespace::as_str)
        };
        assert_eq!(
            [of(1), of(2), of(3), of(4), of(5)],
            [Some("x"), None, None, None, Some("y")]
        );
    }
}
