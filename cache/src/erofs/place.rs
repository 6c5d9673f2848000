//! Placing inodes one behind the other, and what of their bytes goes with them.

use super::format::{BLOCK, DataLayout, SLOT};

/// Where an inode is, and how its bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Bytes from the beginning of the image.
    pub(super) at: u64,
    pub(super) layout: DataLayout,
    /// Whole blocks elsewhere.
    pub(super) blocks: u32,
    /// Bytes that follow the inode.
    pub(super) tail: usize,
}

/// Fills blocks with inodes and the last bytes of what they stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    at: u64,
}

impl Cursor {
    /// From byte `at` of the image on, a multiple of [`SLOT`].
    pub(super) fn new(at: u64) -> Cursor {
        Cursor { at }
    }

    /// Places the inode, of `inode` bytes, of something that has `size` bytes. An inode and what
    /// follows it are in one block, as the kernel wants it.
    pub(super) fn place(&mut self, inode: usize, size: u64) -> Placed {
        let block = BLOCK as u64;
        let (whole, tail) = (size / block, (size % block) as usize);
        let left = BLOCK - (self.at % block) as usize;
        // What is smaller: the rest of this block, or that of a block with nothing but the last bytes?
        let fits = |left: usize| tail > 0 && inode + tail <= left;
        let inline = fits(left) || (fits(BLOCK) && left < BLOCK - tail);
        let (layout, tail, whole) = match inline {
            true => (DataLayout::Inline, tail, whole),
            false => (DataLayout::Plain, 0, size.div_ceil(block)),
        };
        if inode + tail > left {
            self.at = self.at.next_multiple_of(block);
        }
        let at = self.at;
        self.at = (at + (inode + tail) as u64).next_multiple_of(SLOT as u64);
        Placed {
            at,
            layout,
            // An image has at most 2^32 blocks, which the plan sees to.
            blocks: u32::try_from(whole).unwrap_or(u32::MAX),
            tail,
        }
    }

    /// The first block in which nothing was placed.
    pub(super) fn next_block(&self) -> u64 {
        self.at.div_ceil(BLOCK as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_bytes_follow_the_inode_where_that_wastes_less() {
        let mut cursor = Cursor::new(0);
        let small = cursor.place(64, 1000);
        assert_eq!((small.at, small.layout), (0, DataLayout::Inline));
        assert_eq!((small.blocks, small.tail), (0, 1000));
        // In the same block, at the next slot.
        assert_eq!(cursor.place(64, 0).at, 1088);
        // 2,944 bytes are left: for these 3,000 a block of their own wastes less than those would.
        let plain = cursor.place(64, 3000);
        assert_eq!((plain.at, plain.layout), (1152, DataLayout::Plain));
        assert_eq!((plain.blocks, plain.tail), (1, 0));
        // And these begin a new block with their inode.
        let mut cursor = Cursor::new(3072);
        let next = cursor.place(64, 4096 + 1100);
        assert_eq!((next.at, next.layout), (4096, DataLayout::Inline));
        assert_eq!((next.blocks, next.tail), (1, 1100));
    }

    #[test]
    fn nothing_crosses_a_block_and_whole_blocks_leave_no_tail() {
        let mut cursor = Cursor::new(4096 - 32);
        assert_eq!(cursor.place(64, 0).at, 4096);
        let whole = cursor.place(32, 8192);
        assert_eq!((whole.layout, whole.blocks), (DataLayout::Plain, 2));
        let full = Cursor::new(0).place(64, 4096 - 64);
        assert_eq!((full.layout, full.tail), (DataLayout::Inline, 4032));
        assert_eq!(Cursor::new(0).place(64, 4033).layout, DataLayout::Plain);
    }
}
