//! Waiting for a child while passing on to it the signals that ask for an end, and reaping
//! whatever else ends meanwhile.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, alarm};
use std::time::{Duration, Instant};

/// How long a child may take for its clean end before it is killed, in seconds. The conductor
/// itself gives up earlier.
const GRACE_SECONDS: u32 = 20;

/// A further signal within this time belongs to the same request: some tools signal a process and
/// its group.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// What a second request for the end does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Somebody is waiting: the second signal, or too long an end, kills the child.
    Person,
    /// Another supervisor does the judging: signals are only passed on.
    Relay,
}

/// The signals this module waits for; blocked from [`block_signals`] on, so that none is lost
/// between spawning the child and waiting for it.
fn awaited() -> SigSet {
    [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGCHLD,
        Signal::SIGALRM,
    ]
    .into_iter()
    .collect()
}

/// To be called before the child is spawned. The child inherits the mask: see
/// [`unblock_signals`].
pub(crate) fn block_signals() -> Result<(), Errno> {
    awaited().thread_block()
}

/// To be called by a child that handles signals in another way.
pub(crate) fn unblock_signals() -> Result<(), Errno> {
    awaited().thread_unblock()
}

/// Waits until `child` has ended and tells how: its exit code, or 128 and the signal's number.
pub(crate) fn watch_over(child: Pid, patience: Patience) -> Result<u8, Errno> {
    let awaited = awaited();
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(code) = reap(child)? {
            alarm::cancel();
            return Ok(code);
        }
        match awaited.wait()? {
            Signal::SIGCHLD => {}
            Signal::SIGALRM => send(child, Signal::SIGKILL)?,
            signal
                if patience == Patience::Person
                    && asked.is_some_and(|at| at.elapsed() > SAME_REQUEST) =>
            {
                tracing::warn!(%signal, "asked twice: ending the demo at once");
                send(child, Signal::SIGKILL)?;
            }
            signal => {
                asked.get_or_insert_with(Instant::now);
                send(child, signal)?;
                if patience == Patience::Person {
                    alarm::set(GRACE_SECONDS);
                }
            }
        }
    }
}

/// Reaps all that has ended; the code of `child` if it is among them.
fn reap(child: Pid) -> Result<Option<u8>, Errno> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return Ok(Some(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Ok(Some(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(child: Pid, signal: Signal) -> Result<(), Errno> {
    match kill(child, signal) {
        // It has ended; the next wait sees it.
        Err(Errno::ESRCH) => Ok(()),
        other => other,
    }
}
