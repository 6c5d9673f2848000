//! Tickets: who may open a data connection, once, soon.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fabric::FabricError;
use crate::fabric::frame::TICKET_BYTES;

/// The most tickets that may be out at a time. A ticket is out for one connection's setting-up.
const MAX_TICKETS: usize = 4096;

/// What a ticket admits.
pub(super) struct Admission {
    /// The peer's authenticated name.
    pub(super) peer: String,
    /// Slots of its arena.
    pub(super) slots: usize,
    /// How often it wants a sign of life while it waits.
    pub(super) heartbeat: Duration,
}

/// The tickets that are out.
pub(super) struct Tickets {
    lifetime: Duration,
    out: Mutex<HashMap<[u8; TICKET_BYTES], (Instant, Admission)>>,
}

impl Tickets {
    pub(super) fn new(lifetime: Duration) -> Tickets {
        Tickets {
            lifetime,
            out: Mutex::new(HashMap::new()),
        }
    }

    /// A new ticket, of the kernel's randomness.
    pub(super) fn issue(&self, admission: Admission) -> Result<[u8; TICKET_BYTES], FabricError> {
        let mut ticket = [0; TICKET_BYTES];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut ticket))
            .map_err(|source| FabricError::Random { source })?;
        let mut out = self.out.lock();
        if out.len() >= MAX_TICKETS {
            out.retain(|_, (issued, _)| issued.elapsed() < self.lifetime);
        }
        if out.len() >= MAX_TICKETS {
            return Err(FabricError::Busy {
                peer: admission.peer,
            });
        }
        out.insert(ticket, (Instant::now(), admission));
        Ok(ticket)
    }

    /// What the ticket admits, if it was issued here, not long ago, and not used yet.
    pub(super) fn redeem(&self, ticket: &[u8]) -> Option<Admission> {
        let (issued, admission) = self.out.lock().remove(ticket)?;
        (issued.elapsed() < self.lifetime).then_some(admission)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission {
            peer: "a".to_owned(),
            slots: 1,
            heartbeat: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_ticket_works_once() {
        let tickets = Tickets::new(Duration::from_secs(60));
        let ticket = tickets.issue(admission()).unwrap();
        assert_ne!(ticket, tickets.issue(admission()).unwrap());
        assert!(tickets.redeem(&[7; TICKET_BYTES]).is_none());
        assert_eq!(tickets.redeem(&ticket).unwrap().peer, "a");
        assert!(tickets.redeem(&ticket).is_none());
    }

    #[test]
    fn a_ticket_expires() {
        let tickets = Tickets::new(Duration::ZERO);
        let ticket = tickets.issue(admission()).unwrap();
        assert!(tickets.redeem(&ticket).is_none());
    }

    #[test]
    fn unused_tickets_are_bounded_and_expired_ones_make_room() {
        let tickets = Tickets::new(Duration::from_secs(60));
        for _ in 0..MAX_TICKETS {
            tickets.issue(admission()).unwrap();
        }
        assert!(matches!(
            tickets.issue(admission()),
            Err(FabricError::Busy { .. })
        ));
        let tickets = Tickets {
            lifetime: Duration::ZERO,
            ..tickets
        };
        assert!(tickets.issue(admission()).is_ok());
    }
}
