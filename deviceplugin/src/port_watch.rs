//! What ports must show beyond their state: addresses of a kind, and links that do not damage what they
//! carry.
//!
//! Counters of errors only ever rise, so that a number says nothing: how much they rose within the last
//! minute does.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trackbed_rdma::check::Counters;
use trackbed_rdma::devices::{Device, Inventory, Port};

use crate::config::Expectation;
use crate::function::{Function, PciAddress};

/// Over how long errors are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Counters are read no more often: many events may come at once.
const APART: Duration = Duration::from_secs(1);

/// What was read of a port's counters, the oldest first: one that is as old as the window or older, and
/// those within it.
type Readings = VecDeque<(Instant, Counters)>;

/// What ports were like a while ago.
#[derive(Debug)]
pub struct PortWatch {
    root: PathBuf,
    read: HashMap<(PciAddress, u32), Readings>,
}

impl PortWatch {
    /// Of ports whose `/sys` lies below `root`.
    pub fn new(root: impl Into<PathBuf>) -> PortWatch {
        PortWatch {
            root: root.into(),
            read: HashMap::new(),
        }
    }

    /// What keeps a device from being given, if its ports do not show what is expected of them. Reads
    /// nothing where nothing is expected.
    pub fn trouble(
        &mut self,
        expect: &Expectation,
        function: &Function,
        now: Instant,
    ) -> Option<String> {
        let device = &function.rdma.as_ref()?.device;
        device.ports.iter().find_map(|port| {
            self.without_address(expect, device, port)
                .or_else(|| self.errors(expect, function.address, device, port, now))
                .map(|why| format!("{} port {} {why}", device.name, port.number))
        })
    }

    /// Forgets functions that are not there any more.
    pub fn keep(&mut self, there: impl Fn(PciAddress) -> bool) {
        self.read.retain(|(address, _), _| there(*address));
    }

    fn without_address(
        &self,
        expect: &Expectation,
        device: &Device,
        port: &Port,
    ) -> Option<String> {
        let kind = expect.gid_kind?;
        (!Inventory::has_gid(&self.root, device, port, kind))
            .then(|| format!("has no GID of the kind {kind}: give its net device such an address"))
    }

    fn errors(
        &mut self,
        expect: &Expectation,
        address: PciAddress,
        device: &Device,
        port: &Port,
        now: Instant,
    ) -> Option<String> {
        let most = expect.link_errors_per_minute?;
        let readings = self.read.entry((address, port.number)).or_default();
        let fresh = readings.back().is_some_and(|(at, _)| *at + APART > now);
        if !fresh {
            let counters = Counters::of_link(&self.root, &device.name, port.number);
            note(readings, now, counters);
        }
        let ((since, before), (until, after)) = (readings.front()?, readings.back()?);
        let over = until.duration_since(*since).max(WINDOW);
        let risen = after.link_errors_since(before).into_iter();
        // Within a shorter time nothing is extrapolated: one burst is no rate.
        let a_minute = |rise: u64| rise as f64 * WINDOW.as_secs_f64() / over.as_secs_f64();
        risen
            .filter(|(_, rise)| a_minute(*rise) > most as f64)
            .max_by_key(|(_, rise)| *rise)
            .map(|(name, rise)| {
                format!(
                    "counts errors: {name} rose by {rise} in {} s, at most {most} a minute are \
                     expected; clean or replace cable and transceivers",
                    until.duration_since(*since).as_secs()
                )
            })
    }
}

/// Adds a reading, and drops those that nothing is compared with any more.
fn note(readings: &mut Readings, now: Instant, counters: Counters) {
    readings.push_back((now, counters));
    while readings.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
        readings.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_and_reaches_back_a_window(
            pauses in prop::collection::vec(1..200u64, 1..300),
        ) {
            let (mut readings, mut now) = (Readings::new(), Instant::now());
            let begin = now;
            for pause in pauses {
                now += Duration::from_secs(pause);
                note(&mut readings, now, Counters::default());
                prop_assert!(readings.len() <= 1 + WINDOW.as_secs() as usize);
                let oldest = readings.front().expect("the newest at least").0;
                let whole = now.duration_since(begin) > WINDOW + Duration::from_secs(200);
                prop_assert!(!whole || now.duration_since(oldest) >= WINDOW || readings.len() == 1);
                let second = readings.get(1).map_or(now, |(at, _)| *at);
                prop_assert!(now.duration_since(second) < WINDOW);
            }
        }
    }
}
