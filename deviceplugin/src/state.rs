//! What the parts of the plugin share: the book, and the journal that is written before it counts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use crate::allocate::{Book, Health, Held, Offer, Pod, Refusal, Shown};
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
    /// Held while what the book says is being written: one after the other, the newest last.
    journal: tokio::sync::Mutex<Journal>,
    /// Counts changes of what is offered.
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
            changes: watch::Sender::new(0),
        })
    }

    /// Changes with every change of what is offered.
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

    /// What is seen of all pools now.
    pub fn see(&self, offers: Vec<(PoolName, Vec<Offer>)>) {
        self.change(|book| {
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
        let given = self.book.lock().allocate(pool, ids, SystemTime::now())?;
        let held = self.book.lock().held();
        if let Err(error) = write(&journal, held).await {
            self.book.lock().undo(pool, ids);
            return Err(error.into());
        }
        self.changed();
        Ok(given)
    }

    /// Takes back what nobody got.
    pub async fn take_back(&self, pool: &PoolName, ids: &[String]) -> Result<(), JournalError> {
        self.change_durably(|book| book.undo(pool, ids)).await
    }

    /// What kubelet says pods hold.
    pub async fn reconcile(
        &self,
        named: &HashMap<(PoolName, String), Pod>,
        asked: SystemTime,
    ) -> Result<(), JournalError> {
        self.change_durably(|book| book.reconcile(named, asked))
            .await
    }

    /// A device that came back works.
    pub async fn probed(&self, pool: &PoolName, id: &str) -> Result<(), JournalError> {
        self.change_durably(|book| book.probed(pool, id)).await
    }

    async fn change_durably(&self, change: impl FnOnce(&mut Book)) -> Result<(), JournalError> {
        let journal = self.journal.lock().await;
        let before = self.book.lock().held();
        self.change(change);
        let held = self.book.lock().held();
        // Where it can't be written, an earlier state comes back with a restart, and kubelet's word puts
        // that right: nothing is given twice by it.
        if held == before {
            return Ok(());
        }
        write(&journal, held).await
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let pools: Vec<_> = self.config.pools().map(|pool| pool.name.clone()).collect();
        let changed = {
            let mut book = self.book.lock();
            let all = |book: &Book| -> Vec<_> { pools.iter().map(|it| book.shown(it)).collect() };
            let before = all(&book);
            change(&mut book);
            all(&book) != before
        };
        if changed {
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// A file of a few KiB on a file system in memory: not worth another thread.
async fn write(journal: &Journal, held: Vec<Held>) -> Result<(), JournalError> {
    journal.save(held)
}

/// How many of a pool's devices can be given or are held, and how many can't.
pub fn count(devices: &[Shown]) -> (usize, usize) {
    let well = devices.iter().filter(|it| it.health == Health::Healthy);
    let well = well.count();
    (well, devices.len() - well)
}
