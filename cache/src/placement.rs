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

/// The owners of chunk `chunk` of `version`. Members of weight 0 own nothing; `None` if that
/// leaves nobody.
pub fn owners(members: &[Member], version: &Digest, chunk: u32) -> Option<Owners> {
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
        let scored = (score(member, version, chunk), at);
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
fn score(member: &Member, version: &Digest, chunk: u32) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(version.as_bytes());
    hasher.update(&chunk.to_le_bytes());
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

    fn names(members: &[Member], version: &Digest, chunk: u32) -> (String, Option<String>) {
        let owners = owners(members, version, chunk).expect("someone has weight");
        let name = |at: usize| members[at].name.clone();
        (name(owners.primary), owners.secondary.map(name))
    }

    #[test]
    fn nobody_owns_where_nobody_has_weight() {
        let version = Digest::of(b"v");
        assert_eq!(owners(&[], &version, 0), None);
        assert_eq!(owners(&members(&[0, 0]), &version, 0), None);
        let alone = owners(&members(&[0, 3]), &version, 0);
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
        let (members, version) = (members(&[1, 1, 2, 4]), Digest::of(b"v"));
        let mut owned = [0_u32; 4];
        for chunk in 0..8000 {
            owned[owners(&members, &version, chunk).expect("weights").primary] += 1;
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
        let (before, version) = (members(&[1; 9]), Digest::of(b"v"));
        let mut after = before.clone();
        after.push(member("new", 1));
        let mut moved = 0;
        for chunk in 0..5000 {
            let (old, new) = (
                names(&before, &version, chunk).0,
                names(&after, &version, chunk).0,
            );
            if old != new {
                assert_eq!(new, "new", "chunk {chunk} moved between old members");
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
        let (all, version) = (members(&[1, 2, 3, 4, 5]), Digest::of(b"v"));
        for chunk in 0..500 {
            let (primary, secondary) = names(&all, &version, chunk);
            let left: Vec<_> = all.iter().filter(|m| m.name != primary).cloned().collect();
            assert_eq!(Some(names(&left, &version, chunk).0), secondary);
        }
    }

    proptest! {
        #[test]
        fn all_nodes_agree_whatever_order_they_know_the_members_in(
            weights in prop::collection::vec(0..5u32, 1..9), chunk: u32, seed: [u8; 32], by in 0..9usize,
        ) {
            let version = Digest::from(seed);
            let members = members(&weights);
            let mut rotated = members.clone();
            rotated.rotate_left(by % members.len());
            match owners(&members, &version, chunk) {
                None => prop_assert_eq!(owners(&rotated, &version, chunk), None),
                Some(owners) => {
                    prop_assert_ne!(Some(owners.primary), owners.secondary);
                    prop_assert!(members[owners.primary].weight > 0);
                    prop_assert_eq!(names(&members, &version, chunk), names(&rotated, &version, chunk));
                }
            }
        }
    }
}
