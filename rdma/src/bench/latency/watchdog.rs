//! Wakes an end that sleeps without a time limit, when the other end is gone or has fallen silent.

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::bench::BenchError;
use crate::bench::channel::Channel;
use crate::bench::transfer::STALLED;
use crate::verbs::Breaker;

/// How often it looks whether there was progress, in milliseconds.
const LOOK: u16 = 500;
/// What its descriptors are told apart by.
const CONNECTION: u64 = 0;
const MEASURED: u64 = 1;

/// A thread beside a measurement. It ends the queue pair, whose requests then complete, when the connection
/// to the other end is closed, or when nobody has petted it for as long as nothing may complete.
pub(super) struct Watchdog {
    state: Arc<State>,
    /// Closed to end the thread.
    measured: Option<PipeWriter>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// Times it was petted.
    petted: AtomicU64,
    /// Whether it ended the queue pair.
    barked: AtomicBool,
}

impl Watchdog {
    pub(super) fn start(breaker: Breaker, channel: &Channel) -> Result<Watchdog, BenchError> {
        let failed = |source| BenchError::Channel {
            doing: "watching the connection to it",
            source,
        };
        let connection = channel.descriptor().try_clone_to_owned().map_err(failed)?;
        let (ended, measured) = pipe().map_err(failed)?;
        let epoll = interest(&connection, &ended).map_err(|errno| failed(errno.into()))?;
        let state = Arc::new(State::default());
        let watched = Arc::clone(&state);
        let thread = thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                let _open = (connection, ended);
                watch(&epoll, &watched, &breaker);
            })
            .map_err(failed)?;
        Ok(Watchdog {
            state,
            measured: Some(measured),
            thread: Some(thread),
        })
    }

    /// Something has completed.
    #[inline]
    pub(super) fn pet(&self) {
        // Of one thread: no need for an atomic addition.
        let petted = self.state.petted.load(Ordering::Relaxed);
        self.state.petted.store(petted + 1, Ordering::Relaxed);
    }

    /// Whether it ended the queue pair.
    pub(super) fn barked(&self) -> bool {
        self.state.barked.load(Ordering::Acquire)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.measured = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn interest(connection: &OwnedFd, ended: &PipeReader) -> Result<Epoll, Errno> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    // Once: it stays closed. That the peer says something is nothing to wake for.
    let closed = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
    epoll.add(connection, EpollEvent::new(closed, CONNECTION))?;
    epoll.add(ended, EpollEvent::new(EpollFlags::empty(), MEASURED))?;
    Ok(epoll)
}

fn watch(epoll: &Epoll, state: &State, breaker: &Breaker) {
    let (mut petted, mut since, mut closed) = (0, Instant::now(), false);
    loop {
        let mut events = [EpollEvent::empty(); 2];
        let found = match epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
            Ok(found) => &events[..found],
            Err(Errno::EINTR) => &[],
            // Nobody would watch any more.
            Err(_) => return bark(state, breaker),
        };
        if found.iter().any(|event| event.data() == MEASURED) {
            return;
        }
        closed |= !found.is_empty();
        let now = state.petted.load(Ordering::Relaxed);
        if now != petted {
            (petted, since) = (now, Instant::now());
        }
        if closed || since.elapsed() > STALLED {
            bark(state, breaker);
        }
    }
}

/// Ends the queue pair. Once more if need be: what was posted meanwhile is flushed only then.
fn bark(state: &State, breaker: &Breaker) {
    state.barked.store(true, Ordering::Release);
    if let Err(error) = breaker.break_off() {
        tracing::warn!(%error, "the queue pair of a peer that is gone could not be ended");
    }
}
