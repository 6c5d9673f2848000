//! The agent's side: the connection to its keeper, and bringing what it asks for.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use trackbed_cache::EntryIndex;

use super::bits::encode;
use super::link::{Heard, Link};
use super::message::{Answer, Ask, MountState, Tell};
use super::tell::tell_changes;
use super::{KeeperError, OLDEST, PROTOCOL};
use crate::expose::KeptView;
use crate::readers::Readers;

/// How long a keeper that was just started may take to answer on its socket.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Threads that bring what the keeper asks for; the bringing itself is the cache's.
const THREADS: usize = 2;

/// The longest read that a keeper may ask for, in bytes: as long as the kernel's.
const MAX_BRING_BYTES: u32 = 4 << 20;

/// Starts a keeper on the socket, without waiting for it.
pub type StartKeeper = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// How the agent reaches its keeper.
pub struct KeptMountsConfig {
    /// The keeper's socket.
    pub socket: PathBuf,
    /// The agent's build, for people.
    pub build: String,
    /// Whether the kernel may read whole files by itself where it can.
    pub passthrough: bool,
    /// Starts a keeper where none answers; without it that is an error.
    pub start: Option<StartKeeper>,
}

/// Shows versions by a keeper. Clones are the same.
#[derive(Clone)]
pub struct KeptMounts(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) config: KeptMountsConfig,
    /// Held while connecting: two at a time would start two keepers.
    connecting: Mutex<()>,
    link: Mutex<Option<Arc<Link>>>,
    /// What the keeper may ask for, by version.
    pub(super) views: Mutex<HashMap<String, View>>,
    /// How the mounts are, as the keeper said last.
    pub(super) states: Mutex<HashMap<u64, (MountState, Instant)>>,
    pub(super) trouble: Mutex<Option<String>>,
    readers: Readers,
    pub(super) ended: AtomicBool,
    brought: AtomicU64,
    handed_bytes: AtomicU64,
    unbrought: AtomicU64,
}

pub(super) struct View {
    pub(super) view: Arc<dyn KeptView>,
    /// What the keeper was told to be on the disk.
    pub(super) told: Vec<u64>,
    /// Mounts of it, those included that are being made.
    pub(super) mounts: usize,
}

impl KeptMounts {
    /// Shows nothing yet, and connects to the keeper, starting one if that is configured. A keeper
    /// that cannot be reached is tried again with each mount.
    pub fn new(config: KeptMountsConfig) -> Result<KeptMounts, KeeperError> {
        let shared = Arc::new(Shared {
            config,
            connecting: Mutex::default(),
            link: Mutex::default(),
            views: Mutex::default(),
            states: Mutex::default(),
            trouble: Mutex::default(),
            readers: Readers::start(THREADS).map_err(KeeperError::Threads)?,
            ended: AtomicBool::new(false),
            brought: AtomicU64::new(0),
            handed_bytes: AtomicU64::new(0),
            unbrought: AtomicU64::new(0),
        });
        let telling = Arc::downgrade(&shared);
        thread::Builder::new()
            .name("keeper-tell".to_owned())
            .spawn(move || tell_changes(&telling))
            .map_err(KeeperError::Threads)?;
        let mounts = KeptMounts(shared);
        if let Err(error) = mounts.0.link(true) {
            tracing::error!(%error, "datasets cannot be mounted for now");
        }
        Ok(mounts)
    }

    /// Has the keeper take all mounts away and end.
    pub fn end(&self) -> Result<(), KeeperError> {
        self.0.ended.store(true, Ordering::Release);
        let link = self.0.link.lock().clone();
        match link.filter(|link| !link.is_lost()) {
            Some(link) => link.call(&Ask::End, &[]).map(drop),
            None => Ok(()),
        }
    }

    /// Metrics, in the Prometheus text format.
    pub fn prometheus_text(&self) -> String {
        let connected = self.0.connected().is_some();
        let too_old = self.0.trouble.lock().is_some() && !connected;
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            text.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            ));
        };
        metric(
            "trackbed_csi_keeper_connected",
            "gauge",
            "Whether the agent is connected to a keeper that it can work with",
            connected.into(),
        );
        metric(
            "trackbed_csi_keeper_unusable",
            "gauge",
            "Whether the keeper is too old (drain the node and restart it), or cannot be reached",
            too_old.into(),
        );
        metric(
            "trackbed_csi_keeper_brought_total",
            "counter",
            "Requests of the keeper for data that it could not read itself",
            self.0.brought.load(Ordering::Relaxed),
        );
        metric(
            "trackbed_csi_keeper_brought_bytes_total",
            "counter",
            "Bytes handed to the keeper over its socket",
            self.0.handed_bytes.load(Ordering::Relaxed),
        );
        metric(
            "trackbed_csi_keeper_brought_errors_total",
            "counter",
            "Requests of the keeper that ended with an error",
            self.0.unbrought.load(Ordering::Relaxed),
        );
        text
    }
}

/// Has the keeper that serves `socket` take all its mounts away and end.
pub fn end(socket: &Path) -> Result<(), KeeperError> {
    let (link, reader) = connect(socket)?;
    let listening = Arc::clone(&link);
    let listener = thread::Builder::new()
        .spawn(move || listening.listen(reader, |_| {}))
        .map_err(KeeperError::Threads)?;
    let ended = link.call(&Ask::End, &[]);
    link.close();
    // A panic in it would have been seen as a lost connection.
    let _ = listener.join();
    ended.map(drop)
}

fn connect(socket: &Path) -> Result<(Arc<Link>, UnixStream), KeeperError> {
    let stream = UnixStream::connect(socket).map_err(|source| KeeperError::NotThere {
        socket: socket.to_owned(),
        source,
    })?;
    Link::new(stream)
}

impl Shared {
    pub(super) fn connected(&self) -> Option<Arc<Link>> {
        let link = self.link.lock().clone();
        link.filter(|link| !link.is_lost() && !link.is_hung_up())
    }

    /// The connection, made if there is none; with `start`, to a keeper that is started if none
    /// answers.
    pub(super) fn link(self: &Arc<Shared>, start: bool) -> Result<Arc<Link>, KeeperError> {
        let _one_at_a_time = self.connecting.lock();
        if let Some(link) = self.connected() {
            return Ok(link);
        }
        let made = self.make_link(start);
        *self.trouble.lock() = made.as_ref().err().map(ToString::to_string);
        let link = made?;
        *self.link.lock() = Some(Arc::clone(&link));
        Ok(link)
    }

    fn make_link(self: &Arc<Shared>, start: bool) -> Result<Arc<Link>, KeeperError> {
        let start = self.config.start.as_ref().filter(|_| start);
        let (link, reader) = match (connect(&self.config.socket), start) {
            (Err(KeeperError::NotThere { .. }), Some(start)) => self.start(start)?,
            (connected, _) => connected?,
        };
        let (listening, shared) = (Arc::clone(&link), Arc::downgrade(self));
        thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                listening.listen(reader, |heard| {
                    if let Some(shared) = shared.upgrade() {
                        shared.hear(&listening, heard);
                    }
                });
                if let Some(shared) = shared.upgrade()
                    && !shared.ended.load(Ordering::Acquire)
                {
                    tracing::error!(
                        "the keeper is gone: what it had mounted ends with errors until it is staged and published again"
                    );
                }
            })
            .map_err(KeeperError::Threads)?;
        let agreed = self.greet(&link).and_then(|build| {
            self.take_over(&link)?;
            Ok(build)
        });
        match agreed {
            Ok(build) => {
                tracing::info!(socket = %self.config.socket.display(), build, "connected to the keeper");
                Ok(link)
            }
            Err(error) => {
                link.close();
                Err(error)
            }
        }
    }

    fn start(&self, start: &StartKeeper) -> Result<(Arc<Link>, UnixStream), KeeperError> {
        tracing::info!(socket = %self.config.socket.display(), "starting a keeper");
        start().map_err(|source| KeeperError::NotThere {
            socket: self.config.socket.clone(),
            source,
        })?;
        let begun = Instant::now();
        loop {
            match connect(&self.config.socket) {
                Err(KeeperError::NotThere { .. }) if begun.elapsed() < START_WITHIN => {
                    thread::sleep(Duration::from_millis(10));
                }
                connected => return connected,
            }
        }
    }

    /// Says who we are; the keeper's build, if we can work with each other.
    fn greet(&self, link: &Link) -> Result<String, KeeperError> {
        let hello = Ask::Hello {
            protocol: PROTOCOL,
            build: self.config.build.clone(),
        };
        let (
            Answer::Welcome {
                protocol,
                oldest,
                build,
            },
            _,
        ) = link.call(&hello, &[])?
        else {
            return Err(KeeperError::Nonsense);
        };
        if protocol < OLDEST {
            let theirs = protocol;
            return Err(KeeperError::TooOld { theirs, build });
        }
        if PROTOCOL < oldest {
            let needed = oldest;
            return Err(KeeperError::TooNew { needed, build });
        }
        if build != self.config.build {
            tracing::info!(
                keeper = build,
                agent = self.config.build,
                "the keeper is of another build, which it works with"
            );
        }
        Ok(build)
    }

    /// Goes on with what was mounted over an earlier connection, if this is the same keeper.
    fn take_over(&self, link: &Link) -> Result<(), KeeperError> {
        let (Answer::Mounts { mounts }, _) = link.call(&Ask::List, &[])? else {
            return Err(KeeperError::Nonsense);
        };
        let known = std::mem::take(&mut *self.states.lock());
        for mut state in mounts {
            let Some((before, _)) = known.get(&state.mount) else {
                continue;
            };
            let held = match self.views.lock().get(&state.version) {
                Some(known) => encode(&known.view.held()),
                None => continue,
            };
            let mount = state.mount;
            link.call(&Ask::Adopt { mount }, &held)?;
            state.target.clone_from(&before.target);
            self.states.lock().insert(mount, (state, Instant::now()));
        }
        Ok(())
    }

    fn hear(self: &Arc<Shared>, link: &Arc<Link>, heard: Heard) {
        match heard {
            Heard::Ask(
                number,
                Ask::Bring {
                    version,
                    entry,
                    offset,
                    len,
                    suspect,
                },
                _,
            ) => {
                let view = self
                    .views
                    .lock()
                    .get(&version)
                    .map(|known| Arc::clone(&known.view));
                let (shared, link) = (Arc::clone(self), Arc::clone(link));
                let len = len.min(MAX_BRING_BYTES) as usize;
                self.brought.fetch_add(1, Ordering::Relaxed);
                self.readers.run(async move {
                    let answered = match view {
                        Some(view) => view
                            .bring(EntryIndex(entry), offset, len, suspect)
                            .await
                            .map_err(|failure| failure.0),
                        None => Err(format!("the agent does not have version {version} open")),
                    };
                    match answered {
                        Ok(brought) => {
                            let bytes = brought.bytes.as_deref().map(AsRef::as_ref);
                            let handed = bytes.map_or(0, <[u8]>::len);
                            shared
                                .handed_bytes
                                .fetch_add(handed as u64, Ordering::Relaxed);
                            let answer = Answer::Brought {
                                on_disk: brought.on_disk,
                                bytes: bytes.is_some(),
                            };
                            link.answer(number, &answer, bytes.unwrap_or_default());
                        }
                        Err(why) => {
                            shared.unbrought.fetch_add(1, Ordering::Relaxed);
                            link.answer(number, &Answer::Failed { why }, &[]);
                        }
                    }
                });
            }
            Heard::Ask(number, ..) => {
                let why = "that is for a keeper to answer".to_owned();
                link.answer(number, &Answer::Failed { why }, &[]);
            }
            Heard::Tell(Tell::State(state), _) => self.note(state),
            Heard::Tell(Tell::Released { version }, _) => {
                let mut views = self.views.lock();
                if views.get(&version).is_some_and(|known| known.mounts == 0) {
                    views.remove(&version);
                }
            }
            Heard::Tell(Tell::Held { .. }, _) => {}
        }
    }

    fn note(&self, state: MountState) {
        if let Some(failure) = &state.failure {
            tracing::error!(target = %state.target.display(), reason = failure.what,
                "a read failed and was answered with an I/O error");
        }
        let mut states = self.states.lock();
        states.insert(state.mount, (state, Instant::now()));
    }
}
