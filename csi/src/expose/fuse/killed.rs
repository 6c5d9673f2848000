//! Lets a reader go that was killed while its read waits for data.
//!
//! The kernel tells a file system so by an INTERRUPT request, which the crate fuser answers by saying
//! that there is no such thing. From then on a process that is killed inside a direct read stays
//! until the read is answered. So we look: a fatal signal is pending for as long as the read keeps
//! the process. (A buffered read lets it go by itself; its request is ended here too, since those
//! under way are limited in number.)

use std::fs;
use std::io;
use std::time::Duration;

use futures::future::{Either, select};
use futures_timer::Delay;

/// How often a process that waits is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// SIGKILL's bit in a mask of signals (proc_pid_status(5)): any fatal signal sets it.
const KILLED: u64 = 1 << 8;

/// What `read` gives, or `None` once the thread that waits for it was killed. 0 is a process that
/// cannot be seen from here, which is waited for.
pub(super) async fn unless_killed<T>(reader: u32, read: impl Future<Output = T>) -> Option<T> {
    let mut read = std::pin::pin!(read);
    // What needs no wait needs no timer.
    if let Some(done) = futures::FutureExt::now_or_never(read.as_mut()) {
        return Some(done);
    }
    loop {
        match select(read.as_mut(), Delay::new(LOOK_EVERY)).await {
            Either::Left((done, _)) => return Some(done),
            Either::Right(_) if reader != 0 && is_killed(reader) => return None,
            Either::Right(_) => {}
        }
    }
}

fn is_killed(thread: u32) -> bool {
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => is_pending(&status, KILLED),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether a signal is pending for the thread or its process, or the thread has ended.
fn is_pending(status: &str, mask: u64) -> bool {
    let mut lines = status.lines();
    lines.any(|line| match line.split_once(':') {
        Some(("SigPnd" | "ShdPnd", pending)) => {
            u64::from_str_radix(pending.trim(), 16).is_ok_and(|pending| pending & mask != 0)
        }
        Some(("State", state)) => state.trim_start().starts_with(['Z', 'X']),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn a_thread_that_lives_is_waited_for_and_one_that_is_gone_is_not() {
        let me = std::process::id();
        let slow = Delay::new(LOOK_EVERY * 2);
        assert_eq!(block_on(unless_killed(me, slow)), Some(()));
        assert_eq!(block_on(unless_killed(me, async { 42 })), Some(42));
        let mut ended = std::process::Command::new("true").spawn().expect("starts");
        let gone = ended.id();
        ended.wait().expect("ends");
        let never = futures::future::pending::<()>();
        assert_eq!(block_on(unless_killed(gone, never)), None);
    }

    #[test]
    fn a_fatal_signal_is_seen_in_either_mask() {
        assert!(is_pending("SigPnd:\t0000000000000100\n", KILLED));
        assert!(is_pending(
            "SigPnd:\t0\nShdPnd:\t0000000000004100\n",
            KILLED
        ));
        assert!(is_pending("State:\tZ (zombie)\n", KILLED));
        assert!(!is_pending(
            "State:\tD\nSigPnd:\t0\nShdPnd:\t4000\n",
            KILLED
        ));
        assert!(!is_pending("", KILLED));
    }
}
