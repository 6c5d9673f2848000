//! Whom to ask for a chunk that many want from this node: somebody it has sent it to, or is sending
//! it to.
//!
//! Without this, whoever owns a chunk sends it to each of N nodes itself, and warming them costs N
//! times one. With it a chunk spreads as a tree: the owner sends it to the first who asks, and names
//! that one to the next, who can be named in turn. Whoever is named and is still being sent the chunk
//! passes it on when it has it. Of those who can be named the one with the least to do is, as far as is
//! known here, so that all chunks of a dataset together keep every node's link busy in both directions:
//! warming N nodes costs about as much as warming one. Where few ask, each is sent the chunk at once.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::digest::Digest;

/// Copies, of any chunks, that are on their way from here, from which on another is named.
const MANY: usize = 4;
/// Those who have a chunk that are remembered, the latest.
const MAX_HOLDERS: usize = 64;
/// For how long somebody who was sent a chunk is taken to have it.
const KEPT: Duration = Duration::from_secs(60);
/// Chunks that are remembered; above it, those that nobody is sent are forgotten.
const MAX_CHUNKS: usize = 4096;
/// How long a copy takes beside no other, before one has been sent.
const FIRST_GUESS: Duration = Duration::from_millis(5);

/// A version and a chunk of it.
pub(super) type Key = (Digest, u32);

/// What somebody who asks for a chunk is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is sent it; [`Referrals::ended`] is to be told how that went.
    Serve,
    /// To ask this one ([`crate::registry::Member::tag`]).
    Name(u32),
}

/// Chunks on their way, and who has them.
#[derive(Debug)]
pub(super) struct Referrals {
    chunks: HashMap<Key, Chunk>,
    /// Copies on their way, of all chunks.
    sending: usize,
    /// How long a copy took lately, beside no other.
    took: Duration,
    /// Until when those who were named have to send, if all links are alike.
    busy: HashMap<u32, Instant>,
}

#[derive(Debug, Default)]
struct Chunk {
    /// Copies on their way.
    sending: Vec<Copy>,
    /// Who has it, or gets it from another, and since when that is known.
    holders: VecDeque<(u32, Instant)>,
}

#[derive(Debug)]
struct Copy {
    to: u32,
    since: Instant,
    /// So many were on their way then, of all chunks, this one included: it shares the link with them.
    together: u32,
}

impl Default for Referrals {
    fn default() -> Referrals {
        Referrals {
            chunks: HashMap::new(),
            sending: 0,
            took: FIRST_GUESS,
            busy: HashMap::new(),
        }
    }
}

impl Referrals {
    /// What to tell `who`, which may be named another.
    pub(super) fn ask(&mut self, key: Key, who: u32, now: Instant) -> Turn {
        self.make_room(key, now);
        let Referrals { busy, took, .. } = self;
        let chunk = self.chunks.entry(key).or_default();
        chunk.forget(who, now);
        if self.sending < MANY {
            return self.serve(key, who, now);
        }
        let sent = chunk.sending.iter().map(|copy| copy.to);
        let holders = chunk.holders.iter().map(|(who, _)| *who);
        let until = |who: u32| busy.get(&who).map_or(now, |until| now.max(*until));
        let least = sent
            .chain(holders)
            .filter(|other| *other != who)
            .map(|who| (until(who), who))
            .min();
        let Some((free, named)) = least else {
            return self.serve(key, who, now);
        };
        busy.insert(named, free + *took);
        chunk.is_held(who, now);
        Turn::Name(named)
    }

    /// Notes that `who` is sent a copy whatever there is to do: it was named somebody in vain, or
    /// can't be named anybody.
    pub(super) fn insists(&mut self, key: Key, who: u32, now: Instant) {
        self.make_room(key, now);
        self.chunks.entry(key).or_default().forget(who, now);
        self.serve(key, who, now);
    }

    /// The copy for `who` is at hand: what it takes from now on is the sending.
    pub(super) fn leaves(&mut self, key: Key, who: u32, now: Instant) {
        let chunk = self.chunks.get_mut(&key);
        let copy = chunk.and_then(|chunk| chunk.sending.iter_mut().find(|copy| copy.to == who));
        if let Some(copy) = copy {
            copy.since = now;
            copy.together = self.sending as u32;
        }
    }

    /// A copy that was sent to `who` has arrived, or never will.
    pub(super) fn ended(&mut self, key: Key, who: u32, delivered: bool, now: Instant) {
        let Some(chunk) = self.chunks.get_mut(&key) else {
            return;
        };
        let Some(at) = chunk.sending.iter().position(|copy| copy.to == who) else {
            return;
        };
        let copy = chunk.sending.swap_remove(at);
        self.sending -= 1;
        if delivered {
            chunk.is_held(who, now);
            let took = now.saturating_duration_since(copy.since) / copy.together;
            self.took = (self.took * 7 + took) / 8;
        } else if chunk.sending.is_empty() && chunk.holders.is_empty() {
            self.chunks.remove(&key);
        }
    }

    fn serve(&mut self, key: Key, to: u32, now: Instant) -> Turn {
        self.sending += 1;
        let copy = Copy {
            to,
            since: now,
            together: self.sending as u32,
        };
        self.chunks.entry(key).or_default().sending.push(copy);
        Turn::Serve
    }

    fn make_room(&mut self, key: Key, now: Instant) {
        if self.chunks.len() < MAX_CHUNKS || self.chunks.contains_key(&key) {
            return;
        }
        self.busy.retain(|_, until| *until > now);
        self.chunks.retain(|_, chunk| {
            !chunk.sending.is_empty() || chunk.holders.iter().any(|(_, since)| is_kept(*since, now))
        });
        if self.chunks.len() >= MAX_CHUNKS {
            self.chunks.retain(|_, chunk| !chunk.sending.is_empty());
        }
    }
}

impl Chunk {
    /// Who asks has it no more; nor have those who had it long ago, as far as is known.
    fn forget(&mut self, who: u32, now: Instant) {
        self.holders
            .retain(|(holder, since)| *holder != who && is_kept(*since, now));
    }

    fn is_held(&mut self, who: u32, now: Instant) {
        if self.holders.len() >= MAX_HOLDERS {
            self.holders.pop_front();
        }
        self.holders.push_back((who, now));
    }
}

fn is_kept(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < KEPT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, HashSet};

    use proptest::prelude::*;

    const COPY: Duration = Duration::from_millis(10);
    const IN_FLIGHT: usize = 8;

    fn key(chunk: u32) -> Key {
        (Digest::of(b"version"), chunk)
    }

    /// Node 0 has all chunks, the others want them, several at a time. A node sends one copy at a time.
    struct Cluster {
        start: Instant,
        now: Duration,
        referrals: Option<Referrals>,
        wanted: Vec<VecDeque<u32>>,
        has: HashSet<(u32, u32)>,
        /// Who waits at whom for a chunk that is still to come there.
        waiting: Vec<(u32, u32, u32)>,
        sends_until: Vec<Duration>,
        copies: Vec<u32>,
        /// When, from whom, to whom, which chunk.
        arrivals: BinaryHeap<Reverse<(Duration, u32, u32, u32)>>,
    }

    impl Cluster {
        fn new(nodes: u32, chunks: u32, referrals: Option<Referrals>) -> Cluster {
            let all = nodes as usize + 1;
            Cluster {
                start: Instant::now(),
                now: Duration::ZERO,
                referrals,
                wanted: vec![(0..chunks).collect(); all],
                has: (0..chunks).map(|chunk| (0, chunk)).collect(),
                waiting: Vec::new(),
                sends_until: vec![Duration::ZERO; all],
                copies: vec![0; all],
                arrivals: BinaryHeap::new(),
            }
        }

        fn ask_for_next(&mut self, who: u32) {
            let Some(chunk) = self.wanted[who as usize].pop_front() else {
                return;
            };
            let now = self.start + self.now;
            let referrals = self.referrals.as_mut();
            match referrals.map(|referrals| referrals.ask(key(chunk), who, now)) {
                Some(Turn::Name(named)) => {
                    assert_ne!(named, who);
                    if self.has.contains(&(named, chunk)) {
                        self.send(named, who, chunk);
                    } else {
                        self.waiting.push((named, who, chunk));
                    }
                }
                Some(Turn::Serve) | None => self.send(0, who, chunk),
            }
        }

        fn send(&mut self, from: u32, to: u32, chunk: u32) {
            let until = &mut self.sends_until[from as usize];
            *until = (*until).max(self.now) + COPY;
            self.copies[from as usize] += 1;
            self.arrivals.push(Reverse((*until, from, to, chunk)));
        }

        /// Until everybody has everything; how long that took.
        fn run(&mut self) -> Duration {
            for who in 1..self.wanted.len() as u32 {
                (0..IN_FLIGHT).for_each(|_| self.ask_for_next(who));
            }
            while let Some(Reverse((now, from, to, chunk))) = self.arrivals.pop() {
                self.now = now;
                assert!(self.has.insert((to, chunk)), "nobody is sent a copy twice");
                if from == 0
                    && let Some(referrals) = &mut self.referrals
                {
                    referrals.ended(key(chunk), to, true, self.start + now);
                }
                let waiting = std::mem::take(&mut self.waiting);
                for (at, who, wanted) in waiting {
                    if (at, wanted) == (to, chunk) {
                        self.send(at, who, chunk);
                    } else {
                        self.waiting.push((at, who, wanted));
                    }
                }
                self.ask_for_next(to);
            }
            assert!(self.waiting.is_empty(), "nobody waits for ever");
            self.now
        }
    }

    #[test]
    fn warming_many_nodes_from_one_owner_takes_about_as_long_as_warming_one() {
        let chunks = 64;
        let one = Cluster::new(1, chunks, Some(Referrals::default())).run();
        assert_eq!(one, COPY * chunks);
        for nodes in [2_u32, 8, 64] {
            let alone = Cluster::new(nodes, chunks, None).run();
            assert_eq!(alone, one * nodes, "without referrals");
            let mut cluster = Cluster::new(nodes, chunks, Some(Referrals::default()));
            let took = cluster.run();
            assert!(took <= one * 2, "{nodes} nodes took {took:?}, one {one:?}");
            let most = cluster.copies.iter().max();
            assert!(
                most <= Some(&(2 * chunks)),
                "nobody sends much: {:?}",
                cluster.copies
            );
        }
    }

    proptest! {
        #[test]
        fn whoever_is_named_was_sent_it_or_named_somebody(
            steps in prop::collection::vec((0..3_u8, 0..6_u32, 0..2_u32, any::<bool>()), 1..200),
        ) {
            let start = Instant::now();
            let mut referrals = Referrals::default();
            let mut sent: Vec<(u32, u32)> = Vec::new();
            let mut told: HashSet<(u32, u32)> = HashSet::new();
            for (at, (step, who, chunk, delivered)) in steps.into_iter().enumerate() {
                let now = start + Duration::from_millis(at as u64);
                match step {
                    0 => {
                        match referrals.ask(key(chunk), who, now) {
                            Turn::Serve => sent.push((who, chunk)),
                            Turn::Name(named) => {
                                prop_assert!(named != who && told.contains(&(named, chunk)));
                                prop_assert!(sent.len() >= MANY, "there is time to send it");
                            }
                        }
                        told.insert((who, chunk));
                    }
                    1 => {
                        referrals.insists(key(chunk), who, now);
                        sent.push((who, chunk));
                        told.insert((who, chunk));
                    }
                    _ => {
                        let copy = sent.iter().position(|copy| *copy == (who, chunk));
                        referrals.ended(key(chunk), who, delivered, now);
                        if let Some(copy) = copy {
                            sent.swap_remove(copy);
                        }
                    }
                }
                prop_assert_eq!(referrals.sending, sent.len());
            }
            for (who, chunk) in sent {
                referrals.ended(key(chunk), who, false, start);
            }
            prop_assert_eq!(referrals.sending, 0);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Instant::now();
        let mut referrals = Referrals::default();
        for chunk in 0..2 * MAX_CHUNKS as u32 {
            referrals.insists(key(chunk), 1, now);
            referrals.ended(key(chunk), 1, true, now);
        }
        assert!(referrals.chunks.len() <= MAX_CHUNKS);
        for who in 0..2 * MAX_HOLDERS as u32 {
            referrals.insists(key(0), who, now);
            referrals.ended(key(0), who, true, now);
        }
        assert_eq!(referrals.chunks[&key(0)].holders.len(), MAX_HOLDERS);
    }
}
