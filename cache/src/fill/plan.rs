//! From whom to get a chunk, as a pure function of who owns it and how earlier attempts ended.
//!
//! Only owners read the origin, so that it gives each byte once: the primary, or the second owner
//! when the primary does not answer. Others ask the owners, and the origin only if neither owner
//! can deliver. An owner that is merely busy is waited for, and one that names another who has the
//! chunk is asked again if there is nothing to be had there.

use crate::placement::Owners;

/// Someone to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A member, by its position.
    Peer {
        /// The position.
        member: usize,
        /// What it is asked.
        asked: Asked,
    },
    /// The origin itself.
    Origin,
}

/// What a peer is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To bring the chunk from wherever it has it, or to name another that has it.
    Bring,
    /// To bring the chunk itself.
    BringItself,
    /// To give what it has or is being sent, and to ask nobody in turn: it was named by an owner.
    GiveNamed,
    /// The same, and not worth meeting it for.
    Give,
}

impl Asked {
    /// Whether the peer is to do whatever it takes.
    pub(super) fn is_to_bring(self) -> bool {
        matches!(self, Asked::Bring | Asked::BringItself)
    }
}

/// How asking someone ended, if not with the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has not answered yet.
    Slow,
    /// It could not be reached, or did not answer in time.
    Unreachable,
    /// It answered that it has no time.
    Busy,
    /// It named another, whose position this is if it is a member.
    Named(Option<usize>),
    /// It does not have the chunk, or tried and failed, or sent something else.
    NotDelivered,
}

/// What to decide on.
pub(super) struct Situation {
    /// This node's position among the members, if it is one.
    pub(super) me: Option<usize>,
    /// Who owns the chunk.
    pub(super) owners: Option<Owners>,
    /// Whether a peer asked us, in the belief that we own it.
    pub(super) for_peer: bool,
}

impl Situation {
    /// Whether peers may be asked to bring the chunk. Who acts as an owner may only be helped by
    /// what others have on disk: asking on, two nodes that take each other for the owner would
    /// wait for each other.
    pub(super) fn asks_on(&self) -> bool {
        let owns = self
            .owners
            .is_some_and(|owners| self.me == Some(owners.primary));
        !owns && !self.for_peer
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this one.
    Ask(Source),
    /// Wait a little, then ask the busy ones again.
    Wait,
    /// Nobody is left.
    GiveUp,
}

/// All sources in the order in which to try them.
fn order(situation: &Situation) -> Vec<Source> {
    let Some(Owners { primary, secondary }) = situation.owners else {
        return vec![Source::Origin];
    };
    let peers = [Some(primary), secondary].into_iter().flatten();
    let asked = if situation.asks_on() {
        Asked::Bring
    } else {
        Asked::Give
    };
    peers
        .filter(|&member| situation.me != Some(member))
        // The second owner asks the primary; if that is down it is the owner itself.
        .map(|member| Source::Peer { member, asked })
        .chain([Source::Origin])
        .collect()
}

/// Whom to ask after an owner named another: that one, then the owner itself once more.
fn after_named(
    situation: &Situation,
    owner: usize,
    named: Option<usize>,
) -> impl Iterator<Item = Source> {
    let named = named.filter(|named| situation.me != Some(*named) && owner != *named);
    let named = named.map(|member| Source::Peer {
        member,
        asked: Asked::GiveNamed,
    });
    let again = Source::Peer {
        member: owner,
        asked: Asked::BringItself,
    };
    named.into_iter().chain([again])
}

/// The next step, given what was tried so far. `usable` says whether a source is worth trying now.
pub(super) fn next(
    situation: &Situation,
    tried: &[(Source, Outcome)],
    usable: impl Fn(&Source) -> bool,
) -> Step {
    let untried = |source: &Source| tried.iter().all(|(asked, _)| asked != source);
    let someone_is_busy = tried.iter().any(|(source, outcome)| {
        *outcome == Outcome::Busy
            && matches!(source, Source::Peer { asked, .. } if asked.is_to_bring())
    });
    for source in order(situation) {
        let ended = tried.iter().find(|(asked, _)| *asked == source);
        match (source, ended) {
            (Source::Origin, None) if someone_is_busy => return Step::Wait,
            (_, None) if usable(&source) => return Step::Ask(source),
            (Source::Peer { member, .. }, Some((_, Outcome::Named(named)))) => {
                let next = after_named(situation, member, *named)
                    .find(|source| untried(source) && usable(source));
                if let Some(source) = next {
                    return Step::Ask(source);
                }
            }
            _ => {}
        }
    }
    Step::GiveUp
}

/// Whom to ask beside an owner that takes long: the other one, for what it has on its disk, so that
/// the origin is not read for it. `usable` says whether a member is worth asking now.
pub(super) fn beside(
    situation: &Situation,
    tried: &[(Source, Outcome)],
    usable: impl Fn(usize) -> bool,
) -> Option<Source> {
    let owners = situation.owners?;
    let asked = |member: usize| {
        let is_it = |source: &Source| matches!(source, Source::Peer { member: asked, .. } if *asked == member);
        tried.iter().any(|(source, _)| is_it(source))
    };
    [Some(owners.primary), owners.secondary]
        .into_iter()
        .flatten()
        .find(|&member| situation.me != Some(member) && !asked(member) && usable(member))
        .map(|member| Source::Peer {
            member,
            asked: Asked::Give,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNERS: Option<Owners> = Some(Owners {
        primary: 0,
        secondary: Some(1),
    });
    const PRIMARY: Source = Source::Peer {
        member: 0,
        asked: Asked::Bring,
    };
    const SECONDARY: Source = Source::Peer {
        member: 1,
        asked: Asked::Bring,
    };

    fn steps(me: usize, for_peer: bool, down: &[usize], ends: Outcome) -> Vec<Step> {
        let situation = Situation {
            me: Some(me),
            owners: OWNERS,
            for_peer,
        };
        let usable = |source: &Source| match source {
            Source::Peer { member, .. } => !down.contains(member),
            Source::Origin => true,
        };
        let (mut tried, mut steps) = (Vec::new(), Vec::new());
        loop {
            let step = next(&situation, &tried, usable);
            steps.push(step);
            match step {
                Step::Ask(source) => tried.push((source, ends)),
                Step::Wait | Step::GiveUp => return steps,
            }
        }
    }

    #[test]
    fn others_ask_both_owners_before_the_origin() {
        let ask = [PRIMARY, SECONDARY, Source::Origin].map(Step::Ask);
        let steps = steps(2, false, &[], Outcome::Unreachable);
        assert_eq!(steps[..3], ask);
        assert_eq!(steps[3], Step::GiveUp);
    }

    #[test]
    fn a_busy_owner_is_waited_for_and_the_origin_left_alone() {
        let steps = steps(2, false, &[], Outcome::Busy);
        assert_eq!(
            steps,
            [Step::Ask(PRIMARY), Step::Ask(SECONDARY), Step::Wait]
        );
    }

    #[test]
    fn the_primary_reads_the_origin_unless_the_second_owner_has_it_on_disk() {
        let helped = Source::Peer {
            member: 1,
            asked: Asked::Give,
        };
        let steps_taken = steps(0, false, &[], Outcome::NotDelivered);
        assert_eq!(
            steps_taken[..2],
            [Step::Ask(helped), Step::Ask(Source::Origin)]
        );
        assert_eq!(
            steps(0, false, &[1], Outcome::NotDelivered)[0],
            Step::Ask(Source::Origin)
        );
        // Even a busy second owner is not waited for: it would only save the origin a read.
        assert_eq!(
            steps(0, false, &[], Outcome::Busy)[1],
            Step::Ask(Source::Origin)
        );
    }

    #[test]
    fn the_second_owner_reads_the_origin_only_when_the_primary_fails_it() {
        assert_eq!(
            steps(1, false, &[], Outcome::Busy),
            [Step::Ask(PRIMARY), Step::Wait]
        );
        assert_eq!(
            steps(1, false, &[0], Outcome::Busy)[0],
            Step::Ask(Source::Origin)
        );
    }

    #[test]
    fn beside_a_slow_owner_the_other_one_is_asked_for_what_it_has() {
        let beside = |me, tried: &[Source], usable: bool| {
            let situation = Situation {
                me: Some(me),
                owners: OWNERS,
                for_peer: false,
            };
            let tried: Vec<_> = tried.iter().map(|&s| (s, Outcome::Slow)).collect();
            super::beside(&situation, &tried, |_| usable)
        };
        let other = Some(Source::Peer {
            member: 1,
            asked: Asked::Give,
        });
        assert_eq!(beside(2, &[PRIMARY], true), other);
        assert_eq!(beside(2, &[PRIMARY], false), None);
        assert_eq!(beside(1, &[PRIMARY], true), None, "that is us");
        assert_eq!(beside(2, &[PRIMARY, SECONDARY], true), None);
    }

    #[test]
    fn when_an_owner_stays_slow_the_next_source_is_asked_as_well() {
        let steps = steps(2, false, &[], Outcome::Slow);
        assert_eq!(
            steps[..3],
            [PRIMARY, SECONDARY, Source::Origin].map(Step::Ask)
        );
    }

    #[test]
    fn who_is_named_is_asked_and_the_owner_again_if_that_has_nothing() {
        let situation = |me| Situation {
            me: Some(me),
            owners: OWNERS,
            for_peer: false,
        };
        let peer = |member, asked| Source::Peer { member, asked };
        let named = |whom| vec![(PRIMARY, Outcome::Named(whom))];
        let next = |tried: &[(Source, Outcome)]| next(&situation(2), tried, |_| true);
        let mut tried = named(Some(5));
        for expected in [
            peer(5, Asked::GiveNamed),
            peer(0, Asked::BringItself),
            SECONDARY,
            Source::Origin,
        ] {
            assert_eq!(next(&tried), Step::Ask(expected));
            tried.push((expected, Outcome::NotDelivered));
        }
        assert_eq!(next(&tried), Step::GiveUp);
        // One that is unknown here, or is us, or the owner itself.
        for nobody in [None, Some(2), Some(0)] {
            let expected = Step::Ask(peer(0, Asked::BringItself));
            assert_eq!(next(&named(nobody)), expected, "{nobody:?}");
        }
        // The owner is busy when it is asked again.
        let mut tried = named(None);
        tried.push((peer(0, Asked::BringItself), Outcome::Busy));
        tried.push((SECONDARY, Outcome::Unreachable));
        assert_eq!(next(&tried), Step::Wait);
    }

    #[test]
    fn without_members_the_origin_is_asked() {
        let situation = Situation {
            me: None,
            owners: None,
            for_peer: false,
        };
        assert_eq!(next(&situation, &[], |_| true), Step::Ask(Source::Origin));
    }

    proptest! {
        #[test]
        fn who_is_asked_by_a_peer_asks_nobody_to_ask_on(me in 0..4usize, busy: bool) {
            let ends = if busy { Outcome::Busy } else { Outcome::NotDelivered };
            for step in steps(me, true, &[], ends) {
                let asks_on = matches!(step, Step::Ask(Source::Peer { asked, .. }) if asked.is_to_bring());
                prop_assert!(!asks_on);
            }
        }

        #[test]
        fn nobody_asks_itself_and_every_plan_ends(
            me in 0..4usize, for_peer: bool, down in prop::collection::vec(0..2usize, 0..3), busy: bool,
        ) {
            let ends = if busy { Outcome::Busy } else { Outcome::Unreachable };
            let steps = steps(me, for_peer, &down, ends);
            prop_assert!(steps.len() <= 4);
            for step in steps {
                if let Step::Ask(Source::Peer { member, .. }) = step {
                    prop_assert!(member != me && !down.contains(&member));
                }
            }
        }
    }
}
