//! Asks those who may have a chunk, one after the other, and beside one that is slow another.
//!
//! Whom to ask next is decided in [`super::plan`], how long to wait for it by the [`super::pace`] of
//! what came lately. Nobody who was asked is given up while there is hope: the first right answer
//! counts, and the others are let go then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::{self, BoxFuture, Either, FutureExt};
use futures::stream::FuturesUnordered;
use futures_timer::Delay;
use trackbed_rdma::slab::Lease;

use super::from_peer::PeerFailure;
use super::plan::{self, Asked, Outcome, Source, Step};
use super::{FillError, Filler, For};
use crate::open::Version;
use crate::origin::OriginError;
use crate::registry::Member;
use crate::seal::Seal;

/// First wait for an owner that has too much to do; doubled each time up to a second.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// A chunk that was found right.
type Delivered = (Lease, Arc<Seal>);

/// Why a source did not deliver.
enum Failure {
    Peer(PeerFailure),
    Origin(OriginError),
}

impl Failure {
    fn outcome(&self, members: &[Member]) -> Outcome {
        match self {
            Failure::Peer(failure) => failure.outcome(members),
            Failure::Origin(_) => Outcome::NotDelivered,
        }
    }
}

/// What to do when it takes long.
#[derive(Clone, Copy)]
enum Alarm {
    /// Ask another for what it has on its disk.
    Hedge,
    /// Ask the next one as well.
    Next,
}

/// Sources that were asked, and what came of it.
#[derive(Default)]
struct Tried {
    outcomes: Vec<(Source, Outcome)>,
    /// What peers said, for people.
    told: Vec<String>,
    origin_said: Option<OriginError>,
}

impl Tried {
    fn failed(&mut self, members: &[Member], source: Source, failure: Failure) {
        let outcome = failure.outcome(members);
        for tried in &mut self.outcomes {
            if tried.0 == source {
                tried.1 = outcome;
            }
        }
        match (source, failure) {
            (_, Failure::Origin(error)) => self.origin_said = Some(error),
            (Source::Peer { member, asked }, Failure::Peer(failure)) if asked.is_to_bring() => self
                .told
                .push(format!("{}: {failure}", members[member].name)),
            _ => {}
        }
    }
}

impl Filler {
    /// Asks around, as planned, until somebody delivers.
    pub(super) async fn ask_around(
        &self,
        version: &Arc<Version>,
        chunk: u32,
        wanted: For,
    ) -> Result<Delivered, FillError> {
        let mut members = self.membership.now();
        let mut tried = Tried::default();
        let mut busy_wait = BUSY_WAIT;
        let mut under_way = FuturesUnordered::new();
        let chunk_id = version.manifest().chunk_id(chunk);
        loop {
            let situation = self.situation(&members, &chunk_id, wanted);
            let usable = |source: &Source| self.is_usable(&members, source);
            let mut alarms = VecDeque::new();
            let mut asked = None;
            match plan::next(&situation, &tried.outcomes, usable) {
                Step::Ask(source) => {
                    tried.outcomes.push((source, Outcome::Slow));
                    under_way.push(self.ask(version, chunk, &members, source));
                    alarms = self.alarms(source);
                    asked = Some(source);
                }
                Step::Wait if under_way.is_empty() => {
                    Delay::new(busy_wait).await;
                    busy_wait = (busy_wait * 2).min(Duration::from_secs(1));
                    tried.outcomes.retain(|(_, said)| *said != Outcome::Busy);
                    tried.told.clear();
                    let now = self.membership.now();
                    if now != members {
                        // What was tried is told by positions among the members.
                        (members, tried) = (now, Tried::default());
                    }
                    continue;
                }
                Step::GiveUp if under_way.is_empty() => {
                    return Err(match tried.origin_said {
                        Some(error) => FillError::Origin(error),
                        None => FillError::NoSource {
                            chunk,
                            version: version.digest(),
                            tried: tried.told.join("; "),
                        },
                    });
                }
                Step::Wait | Step::GiveUp => {}
            }
            let since = Instant::now();
            while !under_way.is_empty() {
                let timer = match alarms.front() {
                    Some((at, _)) => Either::Left(Delay::new(at.saturating_sub(since.elapsed()))),
                    None => Either::Right(future::pending()),
                };
                match future::select(under_way.next(), timer).await {
                    Either::Left((Some((source, Ok(delivered))), _)) => {
                        let is_help = matches!(
                            source,
                            Source::Peer {
                                asked: Asked::Give,
                                ..
                            }
                        );
                        if is_help && asked != Some(source) {
                            self.counters.hedges_won.add(1);
                        }
                        return Ok(delivered);
                    }
                    Either::Left((Some((source, Err(failure))), _)) => {
                        tried.failed(&members, source, failure);
                        // The next one need not wait for those that were slow before it.
                        if asked == Some(source) {
                            break;
                        }
                    }
                    Either::Left((None, _)) => {}
                    Either::Right(_) => match alarms.pop_front() {
                        Some((_, Alarm::Hedge)) => {
                            let beside = plan::beside(&situation, &tried.outcomes, |member| {
                                !self.peers.is_down(&members[member].name)
                            });
                            if let Some(source) = beside
                                && self.hedges.may_retry()
                            {
                                self.counters.hedges.add(1);
                                tried.outcomes.push((source, Outcome::Slow));
                                under_way.push(self.ask(version, chunk, &members, source));
                            }
                        }
                        Some((waited, Alarm::Next)) => {
                            self.note_slow(&members, asked, waited);
                            break;
                        }
                        None => {}
                    },
                }
            }
        }
    }

    fn is_usable(&self, members: &[Member], source: &Source) -> bool {
        match source {
            Source::Peer {
                member,
                asked: Asked::Give,
            } => self.peers.is_linked(&members[*member]),
            Source::Peer { member, .. } => !self.peers.is_down(&members[*member].name),
            Source::Origin => true,
        }
    }

    /// When to do something about a source that does not answer. The origin has nobody beside it.
    fn alarms(&self, source: Source) -> VecDeque<(Duration, Alarm)> {
        let waits = self.pace.waits();
        match source {
            Source::Origin => VecDeque::new(),
            Source::Peer {
                asked: Asked::Give, ..
            } => [(waits.next, Alarm::Next)].into(),
            Source::Peer { .. } => [(waits.hedge, Alarm::Hedge), (waits.next, Alarm::Next)].into(),
        }
    }

    fn note_slow(&self, members: &[Member], asked: Option<Source>, waited: Duration) {
        // Whom an owner has named may be slow for those before it.
        if let Some(Source::Peer { member, asked }) = asked
            && asked != Asked::GiveNamed
        {
            let peer = &members[member].name;
            tracing::info!(peer, ?waited, "a peer is slow: asking elsewhere as well");
            self.pace.note(waited);
            self.peers.strike(peer);
        }
    }

    /// Asks one source.
    fn ask<'a>(
        &'a self,
        version: &'a Arc<Version>,
        chunk: u32,
        members: &Arc<[Member]>,
        source: Source,
    ) -> BoxFuture<'a, (Source, Result<Delivered, Failure>)> {
        let members = Arc::clone(members);
        async move {
            let delivered = match source {
                Source::Origin => {
                    let read = self.read_origin(version, chunk).await;
                    read.map_err(Failure::Origin)
                }
                Source::Peer { member, asked } => {
                    let answer = self.ask_peer(version, chunk, &members[member], asked);
                    answer.await.map_err(Failure::Peer)
                }
            };
            (source, delivered)
        }
        .boxed()
    }
}
