//! The shard's thread: run tasks, hand operations in, sleep, bring completions to their owners.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use async_executor::LocalExecutor;
use futures::future;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::current::{Current, set_current};
use super::ring::Ring;
use super::setup::{ShardError, make_ring};
use super::transfer::Transfer;
use super::{Job, ShardConfig};

/// Starts the thread; returns the number of its ring once that works.
pub(super) fn start(
    config: &ShardConfig,
    transfers: async_channel::Receiver<Transfer>,
    jobs: async_channel::Receiver<Job>,
) -> Result<u64, ShardError> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let failed = |attempt, source| ShardError::Start {
        shard: config.name.clone(),
        attempt,
        source,
    };

    let (report, started) = mpsc::sync_channel(1);
    let config_in = config.clone();
    thread::Builder::new()
        .name(config.name.clone())
        .spawn(move || {
            // The ring is made here since only the thread that makes it may use it.
            match Reactor::new(&config_in, id) {
                Ok(reactor) => {
                    drop(config_in);
                    // Whoever started us waits for this.
                    let _ = report.send(Ok(()));
                    reactor.run(transfers, jobs);
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        })
        .map_err(|source| failed("starting a thread", source))?;
    match started.recv() {
        Ok(result) => result.map(|()| id),
        Err(_) => Err(failed(
            "making the ring",
            io::Error::other("the thread panicked"),
        )),
    }
}

struct Reactor {
    id: u64,
    name: String,
    ring: Rc<Ring>,
    executor: Rc<LocalExecutor<'static>>,
    sleeper: Arc<Sleeper>,
}

impl Reactor {
    fn new(config: &ShardConfig, id: u64) -> Result<Reactor, ShardError> {
        let uring = make_ring(&config.name, config.entries.max(8))?;
        // Blocking, as a nonblocking one would make the ring answer EAGAIN in place of waiting.
        let flags = EfdFlags::EFD_CLOEXEC;
        let doorbell =
            EventFd::from_value_and_flags(0, flags).map_err(|error| ShardError::Start {
                shard: config.name.clone(),
                attempt: "making an eventfd",
                source: error.into(),
            })?;
        let doorbell = Arc::new(OwnedFd::from(doorbell));
        let ring = Rc::new(Ring::new(uring, Arc::clone(&doorbell)));
        ring.register(&config.slab);
        Ok(Reactor {
            id,
            name: config.name.clone(),
            ring,
            executor: Rc::new(LocalExecutor::new()),
            sleeper: Arc::new(Sleeper {
                state: AtomicU8::new(NOTIFIED),
                doorbell,
            }),
        })
    }

    fn run(self, transfers: async_channel::Receiver<Transfer>, jobs: async_channel::Receiver<Job>) {
        set_current(Some(Current {
            id: self.id,
            ring: Rc::clone(&self.ring),
            executor: Rc::clone(&self.executor),
        }));
        // A task like the others: it is looked at only when something arrived.
        let intake = self.executor.spawn(future::join(
            take_transfers(Rc::clone(&self.ring), transfers),
            take_jobs(jobs),
        ));
        self.drive(self.executor.run(intake));
        tracing::debug!(shard = self.name, "the last handle is gone: ending");

        // Ending tasks drops their futures, which cancels their operations; only then is the
        // thread no longer a shard.
        let Reactor {
            ring,
            executor,
            name,
            ..
        } = self;
        set_current(None);
        drop(executor);
        ring.end();
        while ring.in_flight() > 0 {
            if let Err(error) = ring.enter(true) {
                tolerate(&name, &error);
            }
            ring.reap();
        }
    }

    /// Runs tasks and the ring until `main` is done.
    fn drive(&self, main: impl Future) {
        let waker = Waker::from(Arc::clone(&self.sleeper));
        let mut context = Context::from_waker(&waker);
        let mut main = pin!(main);
        loop {
            if self.sleeper.take_notice() && main.as_mut().poll(&mut context).is_ready() {
                return;
            }
            let sleep = self.sleeper.may_sleep();
            let entered = self.ring.enter(sleep);
            self.sleeper.awake();
            if let Err(error) = entered {
                tolerate(&self.name, &error);
            }
            self.ring.reap();
        }
    }
}

/// The kernel asks to try again when it is interrupted or short of memory or completion entries.
/// Anything else would be a defect of ours; the shard stays, as others depend on its answers.
fn tolerate(shard: &str, error: &io::Error) {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME) => {}
        _ => {
            tracing::error!(shard, %error, "io_uring_enter failed; trying again");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Begins what other threads ask for.
async fn take_transfers(ring: Rc<Ring>, transfers: async_channel::Receiver<Transfer>) {
    while let Ok(transfer) = transfers.recv().await {
        ring.begin(transfer);
    }
}

/// Starts tasks that other threads made.
async fn take_jobs(jobs: async_channel::Receiver<Job>) {
    while let Ok(job) = jobs.recv().await {
        job();
    }
}

const AWAKE: u8 = 0;
const NOTIFIED: u8 = 1;
const SLEEPING: u8 = 2;

/// Whether the thread sleeps and whether there is something to run. Wakers write the doorbell only
/// to a thread that sleeps.
struct Sleeper {
    state: AtomicU8,
    doorbell: Arc<OwnedFd>,
}

impl Sleeper {
    /// True if anything became runnable since the last call.
    fn take_notice(&self) -> bool {
        self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// Announces sleep, unless something became runnable.
    fn may_sleep(&self) -> bool {
        self.state
            .compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Ends an announced sleep; a notice stays.
    fn awake(&self) {
        let _ = self
            .state
            .compare_exchange(SLEEPING, AWAKE, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == SLEEPING {
            let one: u64 = 1;
            // It would block at a counter of 2^64 - 2; each sleep takes at most one.
            let _ = nix::unistd::write(&*self.doorbell, &one.to_ne_bytes());
        }
    }
}
