//! Which nodes own a chunk: weighted rendezvous hashing, two owners each.
//!
//! A pure function of the members and the chunk's identity, so that all nodes agree without
//! talking. Each member draws a score for the chunk from a hash of both; the two best scores own
//! it. A member that comes or goes only moves the chunks it wins or held.

use crate::digest::Digest;
use crate::registry::Member;

/// Who owns a chunk, as positions in the members that were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// Reads the chunk from the origin for everyone.
    pub primary: usize,
    /// Does so when the primary is down; `None` if there is one member only.
    pub secondary: Option<usize>,
}

/// The owners of the chunk of this identity (see [`crate::Manifest::chunk_id`]): what two versions have in
/// common has the same owners in both. Members of weight 0 own nothing; `None` if that
/// leaves nobody.
pub fn owners(members: &[Member], chunk: &Digest) -> Option<Owners> {
    let mut first: Option<(f64, usize)> = None;
    let mut second: Option<(f64, usize)> = None;
    let better = |challenger: (f64, usize), holder: &Option<(f64, usize)>| {
        holder.is_none_or(|holder| {
            // Equal scores are all but impossible; names decide so that order never does.
            let names = || members[challenger.1].name < members[holder.1].name;
            challenger.0 > holder.0 || (challenger.0 == holder.0 && names())
        })
    };
    for (at, member) in members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.weight > 0)
    {
        let scored = (score(member, chunk), at);
        if better(scored, &first) {
            second = first.replace(scored);
        } else if better(scored, &second) {
            second = Some(scored);
        }
    }
    first.map(|(_, primary)| Owners {
        primary,
        secondary: second.map(|(_, at)| at),
    })
}

/// A member's draw: `-weight / ln(u)` for a uniform `u` wins in proportion to the weights
/// (Schindelhauer and Schomaker's logarithmic method).
fn score(member: &Member, chunk: &Digest) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chunk.as_bytes());
    hasher.update(member.name.as_bytes());
    let mut drawn = [0; 8];
    drawn.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    // 53 bits, the most a double holds exactly, moved half a step off 0 and 1.
    let uniform = ((u64::from_le_bytes(drawn) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(member.weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(name: impl Into<String>, weight: u32) -> Member {
        Member {
            name: name.into(),
            control: String::new(),
            weight,
        }
    }

    fn members(weights: &[u32]) -> Vec<Member> {
        weights
            .iter()
            .enumerate()
            .map(|(n, &weight)| member(format!("node-{n}"), weight))
            .collect()
    }

    fn chunk(number: u32) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn names(members: &[Member], chunk: &Digest) -> (String, Option<String>) {
        let owners = owners(members, chunk).expect("someone has weight");
        let name = |at: usize| members[at].name.clone();
        (name(owners.primary), owners.secondary.map(name))
    }

    #[test]
    fn nobody_owns_where_nobody_has_weight() {
        assert_eq!(owners(&[], &chunk(0)), None);
        assert_eq!(owners(&members(&[0, 0]), &chunk(0)), None);
        let alone = owners(&members(&[0, 3]), &chunk(0));
        assert_eq!(
            alone,
            Some(Owners {
                primary: 1,
                secondary: None
            })
        );
    }

    #[test]
    fn each_member_owns_in_proportion_to_its_weight() {
        let members = members(&[1, 1, 2, 4]);
        let mut owned = [0_u32; 4];
        for number in 0..8000 {
            owned[owners(&members, &chunk(number)).expect("weights").primary] += 1;
        }
        for (owned, expected) in owned.into_iter().zip([1000_u32, 1000, 2000, 4000]) {
            assert!(
                owned.abs_diff(expected) < 200,
                "{owned} of about {expected}"
            );
        }
    }

    #[test]
    fn a_new_member_takes_its_share_and_moves_nothing_else() {
        let before = members(&[1; 9]);
        let mut after = before.clone();
        after.push(member("new", 1));
        let mut moved = 0;
        for number in 0..5000 {
            let id = chunk(number);
            let (old, new) = (names(&before, &id).0, names(&after, &id).0);
            if old != new {
                assert_eq!(new, "new", "chunk {number} moved between old members");
                moved += 1;
            }
        }
        assert!(
            (350..650).contains(&moved),
            "{moved} of 5000 moved to the tenth of ten"
        );
    }

    #[test]
    fn the_second_owner_takes_over_when_the_first_one_leaves() {
        let all = members(&[1, 2, 3, 4, 5]);
        for number in 0..500 {
            let id = chunk(number);
            let (primary, secondary) = names(&all, &id);
            let left: Vec<_> = all.iter().filter(|m| m.name != primary).cloned().collect();
            assert_eq!(Some(names(&left, &id).0), secondary);
        }
    }

    proptest! {
        #[test]
        fn all_nodes_agree_whatever_order_they_know_the_members_in(
            weights in prop::collection::vec(0..5u32, 1..9), id: [u8; 32], by in 0..9usize,
        ) {
            let id = Digest::from(id);
            let members = members(&weights);
            let mut rotated = members.clone();
            rotated.rotate_left(by % members.len());
            match owners(&members, &id) {
                None => prop_assert_eq!(owners(&rotated, &id), None),
                Some(owners) => {
                    prop_assert_ne!(Some(owners.primary), owners.secondary);
                    prop_assert!(members[owners.primary].weight > 0);
                    prop_assert_eq!(names(&members, &id), names(&rotated, &id));
                }
            }
        }
    }
}
