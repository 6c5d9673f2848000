//! What an agent does by itself with the versions that are open: verifies those that are complete
//! and lays them out to be shown as plain files, brings again what was found damaged in those, and
//! scrubs everything that is held, all at bounded rates.
//!
//! It has a thread of its own, which holds nothing that keeps the agent alive, and ends with it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use futures::executor::block_on;
use futures::future::{self, Either};
use futures_timer::Delay;
use parking_lot::Mutex;

use crate::digest::Digest;
use crate::fill::{FillError, Filler, For};
use crate::open::Version;
use crate::store::{Checked, ChunkFault};

/// How long a version whose chunks can't be had, or which can't be laid out, is left alone.
const RETRY: Duration = Duration::from_secs(30);
/// How often in a row a version is laid out and read back if its files change meanwhile.
const MAKING_ATTEMPTS: u32 = 5;
/// What was verified is remembered after so many chunks: 1 GiB.
const SAVE_EVERY: u32 = 256;
/// How long upkeep waits for readers to leave it memory, each time, before it takes some anyway.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much of the disk upkeep may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpkeepSettings {
    /// Whether complete versions are verified and laid out.
    pub(super) lay_out: bool,
    /// Bytes a second while verifying a version that waits to be shown.
    pub(super) verify_rate: u64,
    /// Bytes a second while scrubbing; 0 for never.
    pub(super) scrub_rate: u64,
    /// From one scrub of a version to the next.
    pub(super) scrub_every: Duration,
}

/// The thread that does it.
pub(super) struct Upkeep {
    shared: Arc<Shared>,
    wake: Sender<()>,
    /// Closed to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    settings: UpkeepSettings,
    filler: Arc<Filler>,
    /// Not kept from being evicted by this.
    versions: Mutex<Vec<Weak<Version>>>,
}

impl Upkeep {
    /// Starts the thread. It looks at the versions whenever something comes in by `woken`.
    pub(super) fn start(
        settings: UpkeepSettings,
        filler: Arc<Filler>,
        wake: Sender<()>,
        woken: Receiver<()>,
    ) -> io::Result<Upkeep> {
        let shared = Arc::new(Shared {
            settings,
            filler,
            versions: Mutex::default(),
        });
        let (stop, stopped) = async_channel::bounded::<()>(1);
        let working = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || {
                let work = pin!(work(&working, &woken));
                // Whichever ends it, what is under way is dropped.
                block_on(future::select(pin!(stopped.recv()), work));
            })?;
        Ok(Upkeep {
            shared,
            wake,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Takes care of a version from now on.
    pub(super) fn add(&self, version: &Arc<Version>) {
        {
            let mut versions = self.shared.versions.lock();
            versions.retain(|known| known.strong_count() > 0);
            versions.push(Arc::downgrade(version));
        }
        // Full: it has been woken already.
        let _ = self.wake.try_send(());
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the upkeep thread had panicked: its log says why");
        }
    }
}

/// What looking at a chunk on the disk has shown, and led to.
#[derive(Debug)]
pub(crate) enum Looked {
    /// It is what its seal says.
    Right,
    /// It is not held.
    Absent,
    /// It was damaged, and is right again.
    Mended,
    /// It was damaged, and nobody could deliver it.
    Lost(Arc<FillError>),
    /// It was damaged and brought again, and is in memory alone: the disk did not take it.
    Unstored,
}

/// Checks a chunk on the disk; what is damaged is brought again.
pub(crate) async fn look(filler: &Arc<Filler>, version: &Arc<Version>, chunk: u32) -> Looked {
    let store = version.store();
    if !store.has(chunk) {
        return Looked::Absent;
    }
    let fault = match store.check(chunk, &filler.slab).await {
        Ok(Checked::Right) => return Looked::Right,
        Ok(Checked::CopyMended) => {
            filler.counters.mended_chunks.add(1);
            return Looked::Mended;
        }
        Err(ChunkFault::Absent) => return Looked::Absent,
        Err(fault) => fault,
    };
    // A copy of a small file could not be put right: the chunk itself is, and is kept.
    if store.has(chunk) {
        tracing::warn!(version = %version.digest().short(), chunk, %fault,
            "upkeep could not put a chunk right");
        return Looked::Unstored;
    }
    let looked = match filler.fill(version, chunk, For::Store).await {
        // Read back, as the disk that changed it once may do so again.
        Ok(_) => match store.check(chunk, &filler.slab).await {
            Ok(_) => Looked::Mended,
            Err(_) => Looked::Unstored,
        },
        Err(error) => Looked::Lost(error),
    };
    let counters = &filler.counters;
    match &looked {
        Looked::Mended => {
            counters.mended_chunks.add(1);
            tracing::warn!(version = %version.digest().short(), chunk, %fault,
                "a chunk was damaged on this node's disk and was put right");
        }
        _ => {
            counters.unmended_chunks.add(1);
            tracing::error!(version = %version.digest().short(), chunk, %fault,
                "a chunk is damaged on this node's disk and could not be put right yet");
        }
    }
    looked
}

/// Where a scrub is.
struct Scrub {
    version: Weak<Version>,
    next: u32,
    mended: u32,
}

/// What upkeep remembers from one round to the next.
#[derive(Default)]
struct Rounds {
    /// Versions that are left alone until then.
    resting: HashMap<Digest, Instant>,
    scrubbed: HashMap<Digest, Instant>,
    scrub: Option<Scrub>,
    /// Versions whose files were looked at since the agent started.
    seen: HashSet<Digest>,
}

async fn work(shared: &Shared, woken: &Receiver<()>) {
    let mut rounds = Rounds::default();
    loop {
        let versions = shared.versions.lock().clone();
        if shared.settings.lay_out {
            for version in &versions {
                if let Some(version) = version.upgrade() {
                    shared.settle(&version, &mut rounds).await;
                }
            }
        }
        // Scrubs chunk by chunk until someone calls, or a version may be tried again.
        loop {
            let pause = match shared.scrub(&versions, &mut rounds).await {
                Some(pause) => pause,
                None => shared.until_something_is_due(&rounds),
            };
            let resting_ends = rounds.resting.values().min().copied();
            let due = resting_ends.is_some_and(|at| at <= Instant::now());
            let called = match future::select(pin!(woken.recv()), Delay::new(pause)).await {
                Either::Left((Ok(()), _)) => true,
                // Nobody can call any more: the agent ends.
                Either::Left((Err(_), _)) => return,
                Either::Right(_) => false,
            };
            if called || due {
                break;
            }
        }
        rounds.resting.retain(|_, until| *until > Instant::now());
    }
}

impl Shared {
    /// Brings a version as far towards being shown as plain files as it can be brought now.
    async fn settle(&self, version: &Arc<Version>, rounds: &mut Rounds) {
        let store = version.store();
        if rounds.resting.contains_key(&version.digest()) || store.is_out_of_service() {
            return;
        }
        let mut well = true;
        if store.is_whole() && rounds.seen.insert(version.digest()) {
            // An earlier agent verified them; nobody has looked after them since it ended.
            let store = Arc::clone(store);
            let look = move || store.distrust_changed();
            self.filler.workers.run(look).await;
        }
        if store.is_whole() && !store.is_complete() {
            // Pods may be looking at it: what is missing was damaged.
            well &= self.bring_missing(version).await;
        }
        if store.is_whole() && store.is_complete() && !store.is_verified() {
            tracing::info!(version = %version.digest().short(), "verifying a complete version");
            well &= self.verify(version).await;
        }
        if store.is_complete() && !store.is_whole() {
            well &= self.make_whole(version).await;
        }
        if store.is_verified() {
            store.save_verified();
        }
        if !well {
            let until = Instant::now() + RETRY;
            rounds.resting.insert(version.digest(), until);
        }
    }

    /// Lays a complete version out and reads all of it back, again where files have changed
    /// meanwhile (mended ones have); whether it can be shown now.
    async fn make_whole(&self, version: &Arc<Version>) -> bool {
        let store = version.store();
        let mut made = Ok(false);
        for _ in 0..MAKING_ATTEMPTS {
            made = store.lay_out(&self.filler.slab).await.map(|()| false);
            if made == Ok(false) && self.verify(version).await {
                made = store.make_whole().await;
            }
            if made == Ok(true) {
                break;
            }
            // What was found damaged meanwhile is no longer held.
            let all_here = store.is_complete();
            if !self.bring_missing(version).await || (made.is_err() && all_here) {
                break;
            }
        }
        match made {
            Ok(true) => tracing::info!(version = %version.digest().short(),
                "a version is complete, laid out and verified: it can be shown natively"),
            Ok(false) => tracing::warn!(version = %version.digest().short(),
                "a complete version could not be verified: it goes on being shown by the cache"),
            Err(ref why) => tracing::warn!(version = %version.digest().short(), why,
                "a complete version goes on being shown by the cache"),
        }
        made == Ok(true)
    }

    /// Brings the chunks that are not held; whether all are now.
    async fn bring_missing(&self, version: &Arc<Version>) -> bool {
        let store = version.store();
        for chunk in (0..version.manifest().chunks()).filter(|&chunk| !store.has(chunk)) {
            // Why it failed is in the log.
            let _ = self.filler.fill(version, chunk, For::Store).await;
        }
        store.is_complete()
    }

    /// Reads everything that was not verified yet; whether all of it is right now.
    async fn verify(&self, version: &Arc<Version>) -> bool {
        let store = version.store();
        let mut well = true;
        let unverified = (0..version.manifest().chunks()).filter(|&c| !store.was_verified(c));
        for (number, chunk) in (1..).zip(unverified) {
            let pace = Pace::begin(self.settings.verify_rate);
            self.let_readers_first().await;
            let looked = look(&self.filler, version, chunk).await;
            well &= matches!(looked, Looked::Right | Looked::Mended);
            if number % SAVE_EVERY == 0 {
                store.save_verified();
            }
            pace.keep(version.manifest().chunk_len(chunk)).await;
        }
        well && store.is_verified()
    }

    /// Scrubs one chunk and says how long to pause; `None` if no scrub is due.
    async fn scrub(&self, versions: &[Weak<Version>], rounds: &mut Rounds) -> Option<Duration> {
        if self.settings.scrub_rate == 0 {
            return None;
        }
        let now = Instant::now();
        if rounds.scrub.is_none() {
            let mut open = versions.iter().filter_map(Weak::upgrade);
            let due = open.find(|version| {
                let last = *rounds.scrubbed.entry(version.digest()).or_insert(now);
                now.duration_since(last) >= self.settings.scrub_every
            })?;
            rounds.scrub = Some(Scrub {
                version: Arc::downgrade(&due),
                next: 0,
                mended: 0,
            });
        }
        let scrub = rounds.scrub.as_mut()?;
        let Some(version) = scrub.version.upgrade() else {
            // Evicted meanwhile.
            rounds.scrub = None;
            return Some(Duration::ZERO);
        };
        let chunks = version.manifest().chunks();
        // What is not held costs nothing.
        while scrub.next < chunks && !version.store().has(scrub.next) {
            scrub.next += 1;
        }
        if scrub.next >= chunks {
            tracing::info!(version = %version.digest().short(), mended = scrub.mended,
                "scrubbed a version");
            rounds.scrubbed.insert(version.digest(), now);
            rounds.scrub = None;
            return Some(Duration::ZERO);
        }
        if version.store().is_out_of_service() {
            return Some(RETRY);
        }
        let pace = Pace::begin(self.settings.scrub_rate);
        self.let_readers_first().await;
        let looked = look(&self.filler, &version, scrub.next).await;
        scrub.mended += u32::from(matches!(looked, Looked::Mended));
        let len = version.manifest().chunk_len(scrub.next);
        scrub.next += 1;
        Some(pace.left(len))
    }

    fn until_something_is_due(&self, rounds: &Rounds) -> Duration {
        let now = Instant::now();
        let scrubs = rounds
            .scrubbed
            .values()
            .map(|&last| last + self.settings.scrub_every);
        let next = scrubs.chain(rounds.resting.values().copied()).min();
        // A day, if nothing is: a call ends it.
        let pause = next.map_or(Duration::from_secs(86_400), |at| {
            at.saturating_duration_since(now)
        });
        pause.max(Duration::from_millis(10))
    }

    /// Waits while readers and fills use most of the memory.
    async fn let_readers_first(&self) {
        let (slab, since) = (&self.filler.slab, Instant::now());
        while slab.free_slots() < slab.slots() / 2 && since.elapsed() < PATIENCE {
            Delay::new(Duration::from_millis(5)).await;
        }
    }
}

/// Keeps to a rate.
struct Pace {
    since: Instant,
    rate: u64,
}

impl Pace {
    fn begin(rate: u64) -> Pace {
        Pace {
            since: Instant::now(),
            rate: rate.max(1),
        }
    }

    /// What is left of the time that so many bytes may take.
    fn left(&self, bytes: u32) -> Duration {
        let allowed = Duration::from_secs_f64(f64::from(bytes) / self.rate as f64);
        allowed.saturating_sub(self.since.elapsed())
    }

    async fn keep(self, bytes: u32) {
        let left = self.left(bytes);
        if !left.is_zero() {
            Delay::new(left).await;
        }
    }
}
