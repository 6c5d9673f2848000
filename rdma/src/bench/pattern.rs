//! The bytes that a measurement moves, different for each seed, so that old ones don't pass for new.

/// The byte at a place, of a well mixed function of both, so that neither pages nor seeds are alike.
fn byte(seed: u64, index: usize) -> u8 {
    let mut mixed = (seed << 40 ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 56) as u8
}

/// Bytes handled at a time.
const PART: usize = 4096;

/// Hands out `bytes` bytes of this seed, part by part; false when one was not taken.
#[must_use]
pub(super) fn write(bytes: u64, seed: u64, mut put: impl FnMut(usize, &[u8]) -> bool) -> bool {
    let mut part = [0; PART];
    parts(bytes).all(|(at, len)| {
        for (target, index) in part[..len].iter_mut().zip(at..) {
            *target = byte(seed, index);
        }
        put(at, &part[..len])
    })
}

/// Whether what `get` gives, part by part, are `bytes` bytes of this seed.
pub(super) fn is_in(bytes: u64, seed: u64, mut get: impl FnMut(usize, &mut [u8]) -> bool) -> bool {
    let mut part = [0; PART];
    parts(bytes).all(|(at, len)| {
        get(at, &mut part[..len])
            && part[..len]
                .iter()
                .zip(at..)
                .all(|(found, index)| *found == byte(seed, index))
    })
}

fn parts(bytes: u64) -> impl Iterator<Item = (usize, usize)> {
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    (0..bytes)
        .step_by(PART)
        .map(move |at| (at, (bytes - at).min(PART)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(bytes: usize, seed: u64) -> Vec<u8> {
        let mut all = vec![0; bytes];
        let done = write(bytes as u64, seed, |at, part| {
            all[at..at + part.len()].copy_from_slice(part);
            true
        });
        assert!(done);
        all
    }

    #[test]
    fn seeds_give_different_bytes_and_pages_differ() {
        let (one, two) = (filled(8192, 1), filled(8192, 2));
        let same = one.iter().zip(&two).filter(|(one, two)| one == two).count();
        assert!(same < 100, "{same} of 8192 bytes are the same");
        let (first, second) = one.split_at(4096);
        assert!(first != second, "pages are alike");
    }

    #[test]
    fn one_wrong_byte_is_found_wherever_it_is() {
        for wrong in [0, 4095, 4096, 9999] {
            let mut all = filled(10_000, 3);
            let check = |all: &[u8]| {
                is_in(10_000, 3, |at, part| {
                    part.copy_from_slice(&all[at..at + part.len()]);
                    true
                })
            };
            assert!(check(&all));
            all[wrong] ^= 1;
            assert!(!check(&all), "byte {wrong}");
        }
        assert!(!is_in(1, 3, |_, _| false), "memory that can't be read");
    }
}
