//! The regions that the payloads of a queue may lie in.

use std::sync::Arc;

use super::error::VerbsError;
use super::memory::{LocalRange, MemoryRegion, ProtectionDomain, Segment, Sink};
use super::post::{Rejection, check_segments};
use crate::sys;

/// Regions of one protection domain, kept registered.
pub(super) struct Attached {
    pd: Arc<ProtectionDomain>,
    ranges: Vec<LocalRange>,
    regions: Vec<Arc<MemoryRegion>>,
}

impl Attached {
    pub(super) fn new(pd: &Arc<ProtectionDomain>) -> Attached {
        Attached {
            pd: Arc::clone(pd),
            ranges: Vec::new(),
            regions: Vec::new(),
        }
    }

    pub(super) fn attach(&mut self, region: &Arc<MemoryRegion>) -> Result<(), VerbsError> {
        if !Arc::ptr_eq(region.protection_domain(), &self.pd) {
            return Err(VerbsError::Foreign {
                what: "the region",
                owner: "protection domain",
            });
        }
        self.ranges.push(region.local());
        self.regions.push(Arc::clone(region));
        Ok(())
    }

    /// The attached region that a payload lies in.
    pub(super) fn range_of(&self, start: *const u8, len: usize) -> Result<LocalRange, Rejection> {
        let start = start as usize;
        self.ranges
            .iter()
            .find(|range| range.start <= start && len <= range.end.saturating_sub(start))
            .copied()
            .ok_or(Rejection::NotAttached)
    }

    /// Writes down the segments of a receive, which must lie in a payload of writable memory.
    pub(super) fn receive_into<R: Sink>(
        &self,
        payload: &R,
        segments: &[Segment],
        list: &mut [sys::ibv_sge],
    ) -> Result<(), Rejection> {
        check_segments(segments, payload.len(), list.len() as u32)?;
        if segments.is_empty() {
            return Ok(());
        }
        let range = self.range_of(payload.as_ptr(), payload.len())?;
        if !range.writable {
            return Err(Rejection::ReadOnly);
        }
        write_down(segments, payload.as_ptr(), range.lkey, list);
        Ok(())
    }

    /// Keeps the regions registered for ever.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.regions));
        std::mem::forget(Arc::clone(&self.pd));
    }
}

/// Writes down parts of a payload as the adapter takes them.
pub(super) fn write_down(
    segments: &[Segment],
    base: *const u8,
    lkey: u32,
    list: &mut [sys::ibv_sge],
) {
    for (target, segment) in list.iter_mut().zip(segments) {
        *target = sys::ibv_sge {
            addr: base as u64 + u64::from(segment.offset),
            length: segment.len,
            lkey,
        };
    }
}
