//! One read of the kernel's, out of as many pieces as the cache gives.

use std::sync::Arc;

use trackbed_cache::manifest::{EntryIndex, shown};

use crate::expose::{ReadFailure, VerifiedPiece, VersionView};

/// A filled read: what came in one piece stays in its buffer.
pub(super) enum Filled {
    Nothing,
    Piece(VerifiedPiece, usize),
    Joined(Vec<u8>),
}

impl Filled {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Filled::Nothing => &[],
            Filled::Piece(piece, len) => &(**piece).as_ref()[..*len],
            Filled::Joined(bytes) => bytes,
        }
    }
}

/// Exactly the bytes of the file from `offset` on that lie within it, `len` at most: the kernel
/// shows a shorter answer to the reader as zeros.
pub(super) async fn fill(
    view: Arc<dyn VersionView>,
    entry: EntryIndex,
    file_size: u64,
    offset: u64,
    len: u32,
) -> Result<Filled, ReadFailure> {
    let within = file_size.saturating_sub(offset).min(len.into());
    let wanted = usize::try_from(within).expect("at most a u32 and this is no 16-bit machine");
    if wanted == 0 {
        return Ok(Filled::Nothing);
    }
    let first = view.clone().read(entry, offset, wanted).await?;
    let got = (*first).as_ref().len();
    if got >= wanted {
        return Ok(Filled::Piece(first, wanted));
    }
    let mut joined = Vec::with_capacity(wanted);
    joined.extend_from_slice((*first).as_ref());
    // Given back before more is asked for: a read that holds one buffer while it waits for
    // another could wait for ever.
    drop(first);
    let mut last = got;
    while joined.len() < wanted {
        if last == 0 {
            return Err(ReadFailure(format!(
                "{}: the data ended at byte {}, the file has {file_size}",
                shown(&view.manifest().path(entry)),
                offset + joined.len() as u64
            )));
        }
        let left = wanted - joined.len();
        let piece = view
            .clone()
            .read(entry, offset + joined.len() as u64, left)
            .await?;
        let bytes = (*piece).as_ref();
        last = bytes.len().min(left);
        joined.extend_from_slice(&bytes[..last]);
    }
    Ok(Filled::Joined(joined))
}
