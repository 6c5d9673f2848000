//! What a thread used of its processor.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use super::Cpu;

/// Processor time of the calling thread so far: in user mode and in the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    user: Duration,
    system: Duration,
}

impl Used {
    pub(super) fn now() -> Used {
        // Linux has had RUSAGE_THREAD since 2.6.26; without an answer nothing was used.
        getrusage(UsageWho::RUSAGE_THREAD).map_or(Used::default(), |usage| Used {
            user: duration(usage.user_time()),
            system: duration(usage.system_time()),
        })
    }

    /// What was used since `self`, in `elapsed`, for this many messages.
    pub(super) fn until_now(self, elapsed: Duration, messages: u64, bytes: u64) -> Cpu {
        let now = Used::now();
        let user = now.user.saturating_sub(self.user).as_secs_f64();
        let system = now.system.saturating_sub(self.system).as_secs_f64();
        Cpu::of(user, system, elapsed.as_secs_f64(), messages, bytes)
    }
}

impl Cpu {
    fn of(user: f64, system: f64, elapsed: f64, messages: u64, bytes: u64) -> Cpu {
        let share = |whole: f64| {
            if whole > 0.0 {
                (user + system) / whole
            } else {
                0.0
            }
        };
        let per_message = share(messages as f64) * 1e9;
        Cpu {
            user_seconds: user,
            system_seconds: system,
            share: share(elapsed),
            ns_per_message: per_message,
            ns_per_byte: per_message / bytes.max(1) as f64,
        }
    }

    /// What several runs used together.
    pub(super) fn of_runs(runs: &[Cpu], elapsed: f64, messages: u64, bytes: u64) -> Option<Cpu> {
        if runs.is_empty() {
            return None;
        }
        let user = runs.iter().map(|cpu| cpu.user_seconds).sum();
        let system = runs.iter().map(|cpu| cpu.system_seconds).sum();
        Some(Cpu::of(user, system, elapsed, messages, bytes))
    }

    /// What a peer says, when it is a number.
    pub(super) fn checked(self) -> Option<Cpu> {
        let numbers = [
            self.user_seconds,
            self.system_seconds,
            self.share,
            self.ns_per_message,
            self.ns_per_byte,
        ];
        numbers
            .iter()
            .all(|number| number.is_finite() && *number >= 0.0)
            .then_some(self)
    }
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_shared_among_messages_and_bytes() {
        let cpu = Cpu::of(0.5, 0.25, 1.0, 1_000_000, 1000);
        assert_eq!(cpu.share, 0.75);
        assert!((cpu.ns_per_message - 750.0).abs() < 1e-9);
        assert!((cpu.ns_per_byte - 0.75).abs() < 1e-12);
        let nothing = Cpu::of(0.0, 0.0, 0.0, 0, 0);
        assert_eq!((nothing.share, nothing.ns_per_message), (0.0, 0.0));
    }

    #[test]
    fn a_busy_thread_is_seen_to_use_its_processor() {
        let before = Used::now();
        let mut sum = 0u64;
        while before.until_now(Duration::from_secs(1), 1, 1).share == 0.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }

    #[test]
    fn a_peer_that_says_nonsense_is_not_believed() {
        let cpu = Cpu::of(1.0, 1.0, 1.0, 1, 1);
        assert!(cpu.checked().is_some());
        let wrong = Cpu {
            share: f64::NAN,
            ..cpu
        };
        assert_eq!(wrong.checked(), None);
    }
}
