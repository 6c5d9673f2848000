//! What the parts of the plugin share: the book, and the journal that is written before it counts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::allocate::{Book, Health, Held, Holder, Offer, Place, Pod, Refusal, Shown};
use crate::config::{Config, PoolName};
use crate::journal::{Journal, JournalError};
use crate::metrics::Counters;

/// Why nothing was given.
#[derive(Debug, Error)]
pub enum GiveError {
    /// The book says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The state, shared by all parts.
#[derive(Debug)]
pub struct State {
    /// What is configured.
    pub config: Config,
    /// Below which `/sys` and `/dev` lie.
    pub root: PathBuf,
    /// What was counted.
    pub counters: Counters,
    book: Mutex<Book>,
    /// Held while what the book says is being written, one change after the other. It blocks: files of less
    /// than a page on a file system in memory are not worth another thread.
    journal: tokio::sync::Mutex<Journal>,
    /// Counts changes of which devices there are and how they are.
    lists: watch::Sender<u64>,
    /// Counts changes of anything, of who has what too.
    changes: watch::Sender<u64>,
}

/// A pool as people see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The resource's whole name.
    pub resource: String,
    /// Its devices.
    pub devices: Vec<Shown>,
}

impl State {
    /// With what earlier processes have given away.
    pub fn new(config: Config, root: PathBuf, journal: Journal, held: Vec<Held>) -> Arc<State> {
        let pools = config.pools().map(|pool| pool.name.clone());
        let book = Mutex::new(Book::new(pools, held));
        Arc::new(State {
            config,
            root,
            counters: Counters::default(),
            book,
            journal: tokio::sync::Mutex::new(journal),
            lists: watch::Sender::new(0),
            changes: watch::Sender::new(0),
        })
    }

    /// Changes with every change of which devices there are and how they are.
    pub fn lists(&self) -> watch::Receiver<u64> {
        self.lists.subscribe()
    }

    /// Changes with every change of anything, of who has what too.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All devices of a pool.
    pub fn shown(&self, pool: &PoolName) -> Vec<Shown> {
        self.book.lock().shown(pool)
    }

    /// All pools.
    pub fn status(&self) -> Vec<PoolStatus> {
        let book = self.book.lock();
        let pools = self.config.pools().map(|pool| PoolStatus {
            resource: self.config.resource(&pool.name),
            devices: book.shown(&pool.name),
        });
        pools.collect()
    }

    /// What is seen of all pools now, and where everything is that can be seen at all.
    pub fn see(&self, offers: Vec<(PoolName, Vec<Offer>)>, places: HashMap<String, Place>) {
        self.change(|book| {
            book.locate(places);
            for (pool, offers) in offers {
                book.see(&pool, offers);
            }
        });
    }

    /// Devices that are back and wait for a probe.
    pub fn to_probe(&self) -> Vec<(PoolName, Offer)> {
        self.book.lock().to_probe()
    }

    /// Gives devices away; that is on the disk before it counts.
    pub async fn give(&self, pool: &PoolName, ids: &[String]) -> Result<Vec<Offer>, GiveError> {
        let journal = self.journal.lock().await;
        let now = SystemTime::now();
        let given = self.book.lock().allocate(pool, ids, now)?;
        for offer in &given {
            let noted = journal.put(&Held {
                pool: pool.clone(),
                offer: offer.clone(),
                holder: Some(Holder {
                    pod: None,
                    since: now,
                }),
            });
            if let Err(error) = noted {
                self.book.lock().undo(pool, ids);
                // What is noted of it and can't be forgotten now is so after the grace period.
                for id in ids {
                    let _ = journal.remove(pool, id);
                }
                return Err(error.into());
            }
        }
        self.changes.send_modify(|changes| *changes += 1);
        Ok(given)
    }

    /// Takes back what nobody got; whether there was anything.
    pub async fn take_back(&self, pool: &PoolName, ids: &[String]) -> Result<bool, JournalError> {
        self.change_durably(|book| book.undo(pool, ids)).await
    }

    /// What kubelet says pods hold; whether that is news.
    pub async fn reconcile(
        &self,
        named: &HashMap<(PoolName, String), Pod>,
        asked: SystemTime,
    ) -> Result<bool, JournalError> {
        self.change_durably(|book| book.reconcile(named, asked))
            .await
    }

    /// A device that came back works; whether it had to.
    pub async fn probed(&self, pool: &PoolName, id: &str) -> Result<bool, JournalError> {
        self.change_durably(|book| book.probed(pool, id)).await
    }

    /// Whether anything of what must outlive a restart has changed.
    async fn change_durably(&self, change: impl FnOnce(&mut Book)) -> Result<bool, JournalError> {
        let journal = self.journal.lock().await;
        let before = self.book.lock().held();
        self.change(change);
        let held = self.book.lock().held();
        // Where it can't be written, an earlier state comes back with a restart, and kubelet's word puts
        // that right: nothing is given twice by it.
        let key = |held: &Held| (held.pool.clone(), held.offer.id.clone());
        let earlier: HashMap<_, _> = before.iter().map(|held| (key(held), held)).collect();
        let later: HashMap<_, _> = held.iter().map(|held| (key(held), held)).collect();
        for (pool, id) in earlier.keys().filter(|key| !later.contains_key(key)) {
            journal.remove(pool, id)?;
        }
        for (key, held) in &later {
            if earlier.get(key) != Some(held) {
                journal.put(held)?;
            }
        }
        Ok(earlier != later)
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let pools: Vec<_> = self.config.pools().map(|pool| pool.name.clone()).collect();
        let (before, after) = {
            let mut book = self.book.lock();
            let all = |book: &Book| -> Vec<_> { pools.iter().map(|it| book.shown(it)).collect() };
            let before = all(&book);
            change(&mut book);
            (before, all(&book))
        };
        if before == after {
            return;
        }
        let listed = |all: &[Vec<Shown>]| {
            let devices = all.iter().flatten();
            let listed = devices.map(|it| (it.id.clone(), it.health.clone()));
            listed.collect::<Vec<_>>()
        };
        if listed(&before) != listed(&after) {
            self.lists.send_modify(|lists| *lists += 1);
        }
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// How many of a pool's devices can be given or are held, and how many can't.
pub fn count(devices: &[Shown]) -> (usize, usize) {
    let well = devices.iter().filter(|it| it.health == Health::Healthy);
    let well = well.count();
    (well, devices.len() - well)
}
