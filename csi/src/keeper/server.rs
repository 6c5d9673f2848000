//! The keeper's own side: takes connections, mounts, and says how the mounts are.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;
use trackbed_cache::{Digest, VersionReader};

use super::invalidate::Invalidator;
use super::kept::{KeptVersion, ToVerify};
use super::link::{Heard, Link};
use super::message::{Answer, Ask, FailureState, MountState, Tell};
use super::{KeeperError, OLDEST, PROTOCOL};
use crate::expose::bind::detach_top;
use crate::expose::fuse::{FuseMount, FuseOptions};
use crate::expose::{ExposeError, Failure};
use trackbed_proto::endpoint::{Endpoint, bind};

/// How often the mounts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a keeper is started with.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// The socket that agents connect to.
    pub socket: Endpoint,
    /// Whether the kernel may read whole files by itself where it can.
    pub passthrough: bool,
    /// End when there was neither a mount nor a connection for this long.
    pub end_when_idle: Option<Duration>,
    /// This build, for people.
    pub build: String,
}

/// All that the keeper's threads share.
struct Keeper {
    config: KeeperConfig,
    mounts: Mutex<BTreeMap<u64, Mount>>,
    /// By where they lie on the disk; alive for as long as anybody has a file of it open.
    versions: Mutex<HashMap<PathBuf, Weak<KeptVersion>>>,
    next: AtomicU64,
    connections: AtomicUsize,
    verify: Sender<ToVerify>,
    invalidator: Invalidator,
    /// Told when the keeper is asked to end.
    end: Sender<()>,
}

struct Mount {
    fuse: FuseMount,
    version: Arc<KeptVersion>,
    /// What the agent was told last.
    told: Option<Instant>,
}

/// Serves until asked to end, or until idle for as long as the configuration says. At the end the
/// mounts are taken away.
pub fn serve(config: KeeperConfig) -> Result<(), KeeperError> {
    let (listener, socket_file) = bind(&config.socket)?;
    let (end, ended) = crossbeam_channel::bounded(1);
    let (verify, to_verify) = crossbeam_channel::unbounded::<ToVerify>();
    thread::Builder::new()
        .name("trackbed-verify".to_owned())
        .spawn(move || {
            for ToVerify { version, entry } in to_verify {
                if let Some(version) = version.upgrade() {
                    version.verify(entry);
                }
            }
        })
        .map_err(KeeperError::Threads)?;
    tracing::info!(socket = %config.socket, build = config.build, protocol = PROTOCOL,
        passthrough = config.passthrough, "the keeper is up");
    let keeper = Arc::new(Keeper {
        config,
        mounts: Mutex::default(),
        versions: Mutex::default(),
        next: AtomicU64::new(first_number()),
        connections: AtomicUsize::new(0),
        verify,
        invalidator: Invalidator::start().map_err(KeeperError::Threads)?,
        end,
    });
    let accepting = Arc::clone(&keeper);
    thread::Builder::new()
        .name("trackbed-accept".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => accepting.connected(stream),
                    Err(error) => {
                        tracing::warn!(%error, "taking a connection");
                        thread::sleep(LOOK_EVERY);
                    }
                }
            }
        })
        .map_err(KeeperError::Threads)?;
    keeper.look_after(&ended);
    drop(socket_file);
    keeper.unmount_all();
    tracing::info!("the keeper ends");
    Ok(())
}

impl Keeper {
    /// Tells agents how their mounts are, until the end.
    fn look_after(&self, ended: &Receiver<()>) {
        let mut idle_since = Instant::now();
        loop {
            match ended.recv_timeout(LOOK_EVERY) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tell_changes();
            self.versions
                .lock()
                .retain(|_, version| version.strong_count() > 0);
            let in_use =
                self.connections.load(Ordering::Acquire) > 0 || !self.versions.lock().is_empty();
            if in_use {
                idle_since = Instant::now();
            } else if let Some(limit) = self.config.end_when_idle
                && idle_since.elapsed() >= limit
            {
                return;
            }
        }
    }

    /// Mounts that ended are dropped, after the agent was told.
    fn tell_changes(&self) {
        let mut told = Vec::new();
        let dead: Vec<Mount> = {
            let mut mounts = self.mounts.lock();
            let mut dead = Vec::new();
            for (&number, mount) in mounts.iter_mut() {
                let failure = mount.fuse.last_failure();
                let alive = mount.fuse.is_alive();
                let failed_at = failure.as_ref().map(|failure| failure.at);
                if !alive || failed_at != mount.told {
                    mount.told = failed_at;
                    told.push((mount.version.agent(), state(number, mount, failure)));
                }
                if !alive {
                    dead.push(number);
                }
            }
            dead.iter()
                .filter_map(|number| mounts.remove(number))
                .collect()
        };
        for mount in dead {
            tracing::info!(target = %mount.fuse.mount_point().display(), "the mount has ended");
        }
        for (agent, state) in told {
            if let Some(agent) = agent {
                agent.tell(&Tell::State(state), &[]);
            }
        }
    }

    fn connected(self: &Arc<Keeper>, stream: UnixStream) {
        let (link, reader) = match Link::new(stream) {
            Ok(link) => link,
            Err(error) => return tracing::warn!(%error, "a connection is refused"),
        };
        self.connections.fetch_add(1, Ordering::AcqRel);
        let keeper = Arc::clone(self);
        let started = thread::Builder::new()
            .name("trackbed-agent".to_owned())
            .spawn(move || {
                link.listen(reader, |heard| keeper.hear(&link, heard));
                keeper.connections.fetch_sub(1, Ordering::AcqRel);
            });
        if let Err(error) = started {
            self.connections.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "a connection is refused for lack of a thread");
        }
    }

    fn hear(self: &Arc<Keeper>, link: &Arc<Link>, heard: Heard) {
        match heard {
            Heard::Tell(Tell::Held { version }, held) => {
                for known in self.versions_by(link, &version) {
                    known.set_held(&held);
                }
            }
            Heard::Tell(..) => {}
            // What waits for the kernel must not hold up the answers that reads wait for.
            Heard::Ask(number, ask @ (Ask::Mount { .. } | Ask::Unmount { .. }), held) => {
                let (keeper, answering) = (Arc::clone(self), Arc::clone(link));
                let started = thread::Builder::new()
                    .name("trackbed-mount".to_owned())
                    .spawn(move || {
                        let answer = keeper.answer(&answering, ask, &held);
                        answering.answer(number, &answer, &[]);
                    });
                if let Err(error) = started {
                    let why = KeeperError::Threads(error).to_string();
                    link.answer(number, &Answer::Failed { why }, &[]);
                }
            }
            Heard::Ask(number, Ask::End, _) => {
                self.unmount_all();
                link.answer(number, &Answer::Done, &[]);
                // Full if it was asked for already.
                let _ = self.end.try_send(());
            }
            Heard::Ask(number, ask, held) => {
                let answer = self.answer(link, ask, &held);
                link.answer(number, &answer, &[]);
            }
        }
    }

    fn answer(self: &Arc<Keeper>, link: &Arc<Link>, ask: Ask, held: &[u8]) -> Answer {
        let refused = |why: String| {
            tracing::warn!(why, "a request is refused");
            Answer::Failed { why }
        };
        match ask {
            Ask::Hello { protocol, build } => {
                tracing::info!(protocol, build, "an agent is here");
                Answer::Welcome {
                    protocol: PROTOCOL,
                    oldest: OLDEST,
                    build: self.config.build.clone(),
                }
            }
            Ask::Mount {
                version,
                directory,
                target,
                dataset,
                passthrough,
            } => {
                let request = (version.as_str(), &*directory, &*target);
                match self.mount(link, request, &dataset, passthrough, held) {
                    Ok(state) => Answer::Mounted(state),
                    Err(why) => refused(why),
                }
            }
            Ask::Adopt { mount } => match self.adopt(link, mount, held) {
                Some(state) => Answer::Mounted(state),
                None => refused(format!("there is no mount {mount}")),
            },
            Ask::Unmount { mount } => {
                let found = self.mounts.lock().remove(&mount);
                match found.map(|mount| mount.fuse.unmount()) {
                    None | Some(Ok(())) => Answer::Done,
                    Some(Err(error)) => refused(error.to_string()),
                }
            }
            Ask::List => {
                let mounts = self.mounts.lock();
                let alive = mounts.iter().filter(|(_, mount)| mount.fuse.is_alive());
                Answer::Mounts {
                    mounts: alive
                        .map(|(&number, mount)| state(number, mount, mount.fuse.last_failure()))
                        .collect(),
                }
            }
            Ask::End | Ask::Bring { .. } => refused("that is for an agent to answer".to_owned()),
        }
    }

    fn mount(
        self: &Arc<Keeper>,
        link: &Arc<Link>,
        (digest, directory, target): (&str, &Path, &Path),
        dataset: &str,
        passthrough: bool,
        held: &[u8],
    ) -> Result<MountState, String> {
        let digest: Digest = digest
            .parse()
            .map_err(|_| format!("{digest:?} is no version's digest"))?;
        if !directory.is_absolute() || !target.is_absolute() {
            return Err("the version's directory and the target must be absolute paths".to_owned());
        }
        let version = self.version(directory, digest)?;
        version.serve_by(link, held);
        let options = FuseOptions {
            passthrough: passthrough && self.config.passthrough,
        };
        let fuse = FuseMount::with(version.clone(), dataset, target, options)
            .map_err(|error: ExposeError| error.to_string())?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mount = Mount {
            fuse,
            version,
            told: None,
        };
        let state = state(number, &mount, None);
        tracing::info!(dataset, target = %target.display(), way = state.way, "mounted");
        self.mounts.lock().insert(number, mount);
        if link.is_lost() {
            // Whoever asked is gone and does not know of it.
            if let Some(mount) = self.mounts.lock().remove(&number)
                && let Err(error) = detach_top(mount.fuse.mount_point())
            {
                tracing::warn!(%error, "a mount that nobody waits for stays");
            }
        }
        Ok(state)
    }

    /// The version that lies there: one for all its mounts.
    fn version(
        self: &Arc<Keeper>,
        directory: &Path,
        digest: Digest,
    ) -> Result<Arc<KeptVersion>, String> {
        let known = |versions: &HashMap<PathBuf, Weak<KeptVersion>>| {
            let version = versions.get(directory)?.upgrade()?;
            (version.digest() == digest).then_some(version)
        };
        if let Some(version) = known(&self.versions.lock()) {
            return Ok(version);
        }
        let reader = VersionReader::open(directory, digest).map_err(|error| error.to_string())?;
        let mut versions = self.versions.lock();
        // Another request may have been quicker.
        if let Some(version) = known(&versions) {
            return Ok(version);
        }
        let keeper = Arc::downgrade(self);
        let gone = move |version: &KeptVersion, chunks: &[u32]| {
            if let Some(keeper) = keeper.upgrade() {
                keeper.drop_pages(version, chunks);
            }
        };
        let version = KeptVersion::new(
            directory.to_owned(),
            reader,
            self.verify.clone(),
            Box::new(gone),
        );
        versions.insert(directory.to_owned(), Arc::downgrade(&version));
        Ok(version)
    }

    fn adopt(&self, link: &Arc<Link>, number: u64, held: &[u8]) -> Option<MountState> {
        let (version, state) = {
            let mounts = self.mounts.lock();
            let mount = mounts.get(&number).filter(|mount| mount.fuse.is_alive())?;
            let failure = mount.fuse.last_failure();
            (mount.version.clone(), state(number, mount, failure))
        };
        version.serve_by(link, held);
        Some(state)
    }

    /// The versions of this digest that this agent serves.
    fn versions_by(&self, link: &Arc<Link>, digest: &str) -> Vec<Arc<KeptVersion>> {
        let versions = self.versions.lock();
        let all = versions.values().filter_map(Weak::upgrade);
        all.filter(|version| {
            version.digest().to_string() == digest
                && version
                    .agent()
                    .is_some_and(|agent| Arc::ptr_eq(&agent, link))
        })
        .collect()
    }

    fn drop_pages(&self, version: &KeptVersion, chunks: &[u32]) {
        let mounts = self.mounts.lock();
        for mount in mounts.values() {
            if mount.version.directory() == version.directory()
                && let Some(notifier) = mount.fuse.notifier()
            {
                let manifest = crate::expose::VersionView::manifest(version);
                self.invalidator.drop_pages(&notifier, manifest, chunks);
            }
        }
    }

    fn unmount_all(&self) {
        let mounts = std::mem::take(&mut *self.mounts.lock());
        for mount in mounts.into_values() {
            if let Err(error) = mount.fuse.unmount() {
                tracing::warn!(%error, "a dataset stays mounted");
            }
        }
    }
}

/// Numbers of mounts begin elsewhere in each keeper, so that none takes an earlier one's for its own.
fn first_number() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(0))
}

fn state(number: u64, mount: &Mount, failure: Option<Failure>) -> MountState {
    MountState {
        mount: number,
        version: mount.version.digest().to_string(),
        target: mount.fuse.mount_point().to_owned(),
        device: mount.fuse.device(),
        alive: mount.fuse.is_alive(),
        way: mount.fuse.way(),
        failure: failure.map(|failure| FailureState {
            age_ms: u64::try_from(failure.at.elapsed().as_millis()).unwrap_or(u64::MAX),
            what: failure.what,
        }),
    }
}
