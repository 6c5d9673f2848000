//! Who has which device: the book that kubelet's calls, the hardware and restarts all write into.
//!
//! A pure state machine; times and facts are given to it. What it guarantees: a device is given to one
//! holder at a time, whatever order things happen in; a device that a pod holds is in the node's capacity
//! also while it can't be seen, as its net device is then in the pod's network namespace; and one that
//! comes back is given again only after it was found to be as it was before.

mod device;
mod prefer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use crate::config::PoolName;
pub use device::{Health, Held, Holder, Marks, Offer, Place, Pod, Shown};
pub use prefer::prefer;

/// How long after an allocation kubelet may take to say which pod it was for. It does so at once; it may
/// be restarted in between.
pub const GRACE: Duration = Duration::from_secs(60);

/// Why devices are not given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Kubelet means another pool's device, or one that has been taken out.
    #[error("pool {pool} has no device {id}: kubelet's list is an old one, try again")]
    Unknown {
        /// The pool that was asked.
        pool: PoolName,
        /// The device.
        id: String,
    },
    /// Somebody has it.
    #[error("device {id} is held by {by}: it is given again when that is gone")]
    Held {
        /// The device.
        id: String,
        /// Who has it.
        by: String,
    },
    /// It does not work.
    #[error("device {id} can't be given: {why}")]
    Unhealthy {
        /// The device.
        id: String,
        /// Why.
        why: String,
    },
    /// The same device twice, or none.
    #[error("{0}")]
    Malformed(String),
}

#[derive(Clone, Debug)]
struct Entry {
    offer: Offer,
    /// Whether it can be seen on this host.
    here: bool,
    holder: Option<Holder>,
    /// It was held, and was not found to be well since.
    returning: bool,
}

impl Entry {
    fn health(&self) -> Health {
        let unhealthy = |why: &str| Health::Unhealthy(why.to_owned());
        match (&self.holder, self.returning, self.here) {
            // In the pod's namespace, where it can't be looked at: what it was when it was given.
            (Some(_), _, false) => Health::Healthy,
            (None, true, false) => unhealthy("it has not come back from a pod's network namespace"),
            (None, true, true) if self.offer.health == Health::Healthy => {
                unhealthy("it came back from a pod and has not been probed yet")
            }
            _ => self.offer.health.clone(),
        }
    }
}

/// The book.
#[derive(Debug, Default)]
pub struct Book {
    pools: BTreeMap<PoolName, BTreeMap<String, Entry>>,
    /// Where everything is that can be seen at all, by device.
    places: HashMap<String, Place>,
}

impl Book {
    /// With these pools, and what earlier processes have given away.
    pub fn new(pools: impl IntoIterator<Item = PoolName>, held: Vec<Held>) -> Book {
        let empty = |pool| (pool, BTreeMap::new());
        let mut pools: BTreeMap<PoolName, BTreeMap<_, _>> = pools.into_iter().map(empty).collect();
        for Held {
            pool,
            offer,
            holder,
        } in held
        {
            // What is not configured any more is nobody's here.
            if let Some(entries) = pools.get_mut(&pool) {
                let entry = Entry {
                    returning: holder.is_none(),
                    here: false,
                    holder,
                    offer,
                };
                entries.insert(entry.offer.id.clone(), entry);
            }
        }
        Book {
            pools,
            places: HashMap::new(),
        }
    }

    /// Where everything is that can be seen at all, by device: also what is in no pool now, as a function
    /// whose net and RDMA devices are in a pod's network namespace.
    pub fn locate(&mut self, places: HashMap<String, Place>) {
        self.places = places;
    }

    /// What of a pool is seen now. What is not, and nobody has, is forgotten.
    pub fn see(&mut self, pool: &PoolName, offers: Vec<Offer>) {
        let Some(entries) = self.pools.get_mut(pool) else {
            return;
        };
        let by_id = offers.into_iter().map(|offer| (offer.id.clone(), offer));
        let mut seen: HashMap<String, Offer> = by_id.collect();
        entries.retain(|id, entry| {
            let away = entry.holder.is_some() || entry.returning;
            let Some(mut offer) = seen.remove(id) else {
                entry.here = false;
                return away;
            };
            if entry.returning
                && let Some(why) = entry.offer.marks.differ(&offer.marks)
            {
                offer.health = Health::Unhealthy(why);
            }
            if away {
                // What it was like when it was given stays to be compared with.
                offer.marks = entry.offer.marks.clone();
            }
            (entry.offer, entry.here) = (offer, true);
            true
        });
        entries.extend(seen.into_iter().map(|(id, offer)| {
            let entry = Entry {
                offer,
                here: true,
                holder: None,
                returning: false,
            };
            (id, entry)
        }));
    }

    /// Gives these devices of a pool away, all or none.
    pub fn allocate(
        &mut self,
        pool: &PoolName,
        ids: &[String],
        now: SystemTime,
    ) -> Result<Vec<Offer>, Refusal> {
        if ids.is_empty() {
            return Err(Refusal::Malformed("no device is asked for".to_owned()));
        }
        for (at, id) in ids.iter().enumerate() {
            if ids[..at].contains(id) {
                let why = format!("device {id} is asked for twice");
                return Err(Refusal::Malformed(why));
            }
            self.may_be_given(pool, id)?;
        }
        let mut given = Vec::new();
        for id in ids {
            if let Some(entry) = self.entry(pool, id) {
                entry.holder = Some(Holder {
                    pod: None,
                    since: now,
                });
                given.push(entry.offer.clone());
            }
        }
        Ok(given)
    }

    fn may_be_given(&mut self, pool: &PoolName, id: &str) -> Result<(), Refusal> {
        let entry = self.entry(pool, id).ok_or_else(|| Refusal::Unknown {
            pool: pool.clone(),
            id: id.to_owned(),
        })?;
        if let Some(holder) = &entry.holder {
            let by = match &holder.pod {
                Some(pod) => format!("pod {pod}"),
                None => "a container that kubelet has not named yet".to_owned(),
            };
            let id = id.to_owned();
            return Err(Refusal::Held { id, by });
        }
        match entry.health() {
            Health::Healthy => Ok(()),
            Health::Unhealthy(why) => Err(Refusal::Unhealthy {
                id: id.to_owned(),
                why,
            }),
        }
    }

    /// Takes back what [`Book::allocate`] has given a moment ago and nobody got.
    pub fn undo(&mut self, pool: &PoolName, ids: &[String]) {
        for id in ids {
            if let Some(entry) = self.entry(pool, id) {
                entry.holder = None;
            }
        }
    }

    /// What kubelet says all pods hold, by pool and device, asked at `now`. Who is not named any more has
    /// ended; an allocation that is younger than [`GRACE`] may not be named yet.
    pub fn reconcile(&mut self, named: &HashMap<(PoolName, String), Pod>, now: SystemTime) {
        for (pool, id) in named.keys() {
            self.recall(pool, id);
        }
        for (pool, entries) in &mut self.pools {
            for (id, entry) in entries {
                let pod = named.get(&(pool.clone(), id.clone())).cloned();
                match (&mut entry.holder, pod) {
                    (Some(holder), Some(pod)) => holder.pod = Some(pod),
                    // The journal was lost, or kubelet has it from an earlier plugin.
                    (None, Some(pod)) => {
                        let pod = Some(pod);
                        entry.holder = Some(Holder { pod, since: now });
                        entry.returning = false;
                    }
                    (Some(holder), None) => {
                        let age = now.duration_since(holder.since).unwrap_or_default();
                        if holder.pod.is_some() || age > GRACE {
                            entry.holder = None;
                            entry.returning = true;
                        }
                    }
                    (None, None) => {}
                }
            }
        }
    }

    /// Takes up a device that a pod has and that can't be seen in its pool, the journal being lost.
    fn recall(&mut self, pool: &PoolName, id: &str) {
        let Some(entries) = self.pools.get_mut(pool) else {
            return;
        };
        if let Some(place) = self.places.get(id)
            && !entries.contains_key(id)
        {
            let offer = Offer {
                id: id.to_owned(),
                place: place.clone(),
                // What it was like is not known any more.
                marks: Marks::default(),
                health: Health::Healthy,
            };
            let entry = Entry {
                offer,
                here: false,
                holder: None,
                returning: true,
            };
            entries.insert(id.to_owned(), entry);
        }
    }

    /// Devices that came back and look as they were before: to be probed.
    pub fn to_probe(&self) -> Vec<(PoolName, Offer)> {
        let mut back = Vec::new();
        for (pool, entries) in &self.pools {
            for entry in entries.values() {
                let free = entry.holder.is_none() && entry.returning && entry.here;
                if free && entry.offer.health == Health::Healthy {
                    back.push((pool.clone(), entry.offer.clone()));
                }
            }
        }
        back
    }

    /// A device that was to be probed works.
    pub fn probed(&mut self, pool: &PoolName, id: &str) {
        let entry = self.entry(pool, id);
        if let Some(entry) = entry.filter(|entry| entry.here && entry.holder.is_none()) {
            entry.returning = false;
        }
    }

    /// All devices of a pool, by id.
    pub fn shown(&self, pool: &PoolName) -> Vec<Shown> {
        let entries = self.pools.get(pool).into_iter().flatten();
        let shown = entries.map(|(id, entry)| Shown {
            id: id.clone(),
            place: entry.offer.place.clone(),
            health: entry.health(),
            holder: entry.holder.clone(),
        });
        shown.collect()
    }

    /// What must outlive a restart.
    pub fn held(&self) -> Vec<Held> {
        let mut held = Vec::new();
        for (pool, entries) in &self.pools {
            for entry in entries.values() {
                if entry.holder.is_some() || entry.returning {
                    held.push(Held {
                        pool: pool.clone(),
                        offer: entry.offer.clone(),
                        holder: entry.holder.clone(),
                    });
                }
            }
        }
        held
    }

    fn entry(&mut self, pool: &PoolName, id: &str) -> Option<&mut Entry> {
        self.pools.get_mut(pool)?.get_mut(id)
    }
}
