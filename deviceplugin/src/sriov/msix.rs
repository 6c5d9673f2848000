//! How many interrupt vectors a function has, from its configuration space (PCI Local Bus Specification
//! 3.0, sections 6.7 and 6.8.2).

/// Where the list of capabilities begins.
const FIRST: usize = 0x34;
/// Bit 4 of the status register: there is a list.
const STATUS: usize = 0x06;
const HAS_LIST: u8 = 0x10;
const MSIX: u8 = 0x11;
/// The most capabilities that there is room for: the list may be a circle.
const MOST: usize = 48;

/// The size of its MSI-X table; `None` if there is none, or if the bytes do not say, as for users who may
/// read only the first 64.
pub(super) fn vectors(space: &[u8]) -> Option<u16> {
    if space.get(STATUS)? & HAS_LIST == 0 {
        return None;
    }
    let mut at = usize::from(space.get(FIRST)? & !3);
    for _ in 0..MOST {
        if at == 0 {
            return None;
        }
        if *space.get(at)? == MSIX {
            let control = u16::from_le_bytes([*space.get(at + 2)?, *space.get(at + 3)?]);
            return Some((control & 0x7ff) + 1);
        }
        at = usize::from(space.get(at + 1)? & !3);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> Vec<u8> {
        let mut space = vec![0; 256];
        space[STATUS] = HAS_LIST;
        space[FIRST] = 0x40;
        space[0x40..0x42].copy_from_slice(&[0x10, 0x60]);
        space[0x60..0x64].copy_from_slice(&[MSIX, 0, 0x0b, 0x80]);
        space
    }

    #[test]
    fn the_tables_size_is_found_behind_other_capabilities() {
        assert_eq!(vectors(&space()), Some(12));
        assert_eq!(vectors(&space()[..64]), None, "all that a user may read");
        let mut circle = space();
        circle[0x60] = 0x05;
        circle[0x61] = 0x40;
        assert_eq!(vectors(&circle), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(mut space in prop::collection::vec(any::<u8>(), 0..256)) {
            if let Some(status) = space.get_mut(STATUS) {
                *status |= HAS_LIST;
            }
            let _ = vectors(&space);
        }
    }
}
