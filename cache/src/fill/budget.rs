//! Bounds retries to a share of what succeeds, so that a failing origin, or slow peers, are not asked
//! ever more.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What a retry costs; each success earns 1.
const RETRY_COST: u32 = 10;
/// The most that can be saved up: retries allowed in a row after a long good time.
const MAX_SAVED: u32 = 100 * RETRY_COST;

/// Earned by successes, spent by retries: one retry for every ten successes, and a few to begin.
pub(super) struct RetryBudget(AtomicU32);

impl Default for RetryBudget {
    fn default() -> Self {
        RetryBudget(AtomicU32::new(20 * RETRY_COST))
    }
}

impl RetryBudget {
    pub(super) fn succeeded(&self) {
        let earn = |saved: u32| Some((saved + 1).min(MAX_SAVED));
        // `earn` never declines.
        let _ = self.0.fetch_update(Relaxed, Relaxed, earn);
    }

    /// Whether one more retry is allowed; takes it from the budget.
    pub(super) fn may_retry(&self) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |saved| saved.checked_sub(RETRY_COST))
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_run_out_and_are_earned_again() {
        let budget = RetryBudget::default();
        let at_first = (0..1000).take_while(|_| budget.may_retry()).count();
        assert_eq!(at_first, 20);
        (0..RETRY_COST).for_each(|_| budget.succeeded());
        assert!(budget.may_retry());
        assert!(!budget.may_retry());
    }
}
