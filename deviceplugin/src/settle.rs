//! Health that does not flap: a fault must last a moment before it counts, and being well again longer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::allocate::{Health, Offer};

/// How long a fault must be seen. A port that is set up anew is down for less.
pub const FAULT_AFTER: Duration = Duration::from_millis(300);
/// How long a device that had a fault must be well.
pub const WELL_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Settled {
    /// What counts.
    health: Health,
    /// Since when something else is seen.
    otherwise: Option<Instant>,
}

/// What counts of each device, by id.
#[derive(Debug, Default)]
pub struct Settle(HashMap<String, Settled>);

/// A device's health has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The device.
    pub id: String,
    /// What it is now.
    pub health: Health,
}

impl Settle {
    /// Puts what counts in the place of what is seen at `now`. Says what has changed, and when to look
    /// again if something may change by time alone. A device that is new is what it is.
    pub fn settle(
        &mut self,
        offers: &mut [Offer],
        now: Instant,
    ) -> (Vec<Transition>, Option<Instant>) {
        let (mut transitions, mut again) = (Vec::new(), None);
        for offer in offers {
            let settled = self.0.entry(offer.id.clone()).or_insert_with(|| Settled {
                health: offer.health.clone(),
                otherwise: None,
            });
            match (&settled.health, &offer.health) {
                (Health::Healthy, Health::Healthy) => settled.otherwise = None,
                // Another reason, which is told at once.
                (Health::Unhealthy(_), Health::Unhealthy(_)) => {
                    settled.otherwise = None;
                    settled.health = offer.health.clone();
                }
                (was, _) => {
                    let since = *settled.otherwise.get_or_insert(now);
                    let counts = match was {
                        Health::Healthy => since + FAULT_AFTER,
                        Health::Unhealthy(_) => since + WELL_AFTER,
                    };
                    if counts <= now {
                        settled.health = offer.health.clone();
                        settled.otherwise = None;
                        transitions.push(Transition {
                            id: offer.id.clone(),
                            health: offer.health.clone(),
                        });
                    } else {
                        again = Some(again.map_or(counts, |at: Instant| at.min(counts)));
                    }
                }
            }
            offer.health = settled.health.clone();
        }
        (transitions, again)
    }

    /// Forgets devices that are not there any more: one that comes again is new.
    pub fn keep(&mut self, there: impl Fn(&str) -> bool) {
        self.0.retain(|id, _| there(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::{Marks, Place};
    use crate::function::PciAddress;

    fn offer(health: Health) -> Offer {
        let address = PciAddress {
            domain: 0,
            bus: 1,
            device: 0,
            function: 0,
        };
        Offer {
            id: "x".to_owned(),
            place: Place {
                address,
                physical: address,
                bridges: Vec::new(),
                numa_node: None,
            },
            marks: Marks::default(),
            health,
        }
    }

    #[test]
    fn a_flap_is_nothing_a_fault_counts_soon_and_recovery_takes_longer() {
        let (mut settle, begin) = (Settle::default(), Instant::now());
        let down = Health::Unhealthy("port 1 is DOWN".to_owned());
        let mut see = |health: &Health, millis| {
            let now = begin + Duration::from_millis(millis);
            let mut offers = [offer(health.clone())];
            let (transitions, again) = settle.settle(&mut offers, now);
            (
                offers[0].health.clone(),
                transitions.len(),
                again.map(|at| (at - begin).as_millis() as u64),
            )
        };
        let well = Health::Healthy;
        assert_eq!(see(&well, 0), (well.clone(), 0, None));
        assert_eq!(see(&down, 10), (well.clone(), 0, Some(310)));
        assert_eq!(see(&well, 200), (well.clone(), 0, None), "a flap");
        assert_eq!(see(&down, 1000), (well.clone(), 0, Some(1300)));
        assert_eq!(see(&down, 1300), (down.clone(), 1, None));
        assert_eq!(see(&well, 2000), (down.clone(), 0, Some(5000)));
        assert_eq!(
            see(&down, 3000),
            (down.clone(), 0, None),
            "not well long enough"
        );
        assert_eq!(see(&well, 4000), (down.clone(), 0, Some(7000)));
        assert_eq!(see(&well, 7000), (well, 1, None));
    }
}
