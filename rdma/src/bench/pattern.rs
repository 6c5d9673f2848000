//! The bytes that a measurement sends, different for each seed, so that old ones don't pass for new.

use crate::verbs::RemoteWindow;

/// The byte at a place, of a well mixed function of both, so that neither pages nor seeds are alike.
fn byte(seed: u64, index: usize) -> u8 {
    let mut mixed = (seed << 40 ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 56) as u8
}

pub(super) fn fill(target: &mut [u8], seed: u64) {
    for (index, target) in target.iter_mut().enumerate() {
        *target = byte(seed, index);
    }
}

/// Whether the window starts with `bytes` bytes of this seed.
pub(super) fn is_in(window: &RemoteWindow, bytes: usize, seed: u64) -> bool {
    let mut part = [0; 4096];
    let mut at = 0;
    while at < bytes {
        let part = &mut part[..(bytes - at).min(4096)];
        if !window.copy_out(at, part) {
            return false;
        }
        if part
            .iter()
            .enumerate()
            .any(|(index, found)| *found != byte(seed, at + index))
        {
            return false;
        }
        at += part.len();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_give_different_bytes_and_pages_differ() {
        let (mut one, mut two) = (vec![0; 8192], vec![0; 8192]);
        fill(&mut one, 1);
        fill(&mut two, 2);
        let same = one.iter().zip(&two).filter(|(one, two)| one == two).count();
        assert!(same < 100, "{same} of 8192 bytes are the same");
        let (first, second) = one.split_at(4096);
        assert!(first != second, "pages are alike");
    }
}
