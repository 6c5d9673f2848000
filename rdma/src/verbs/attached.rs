//! The regions that the payloads of a queue, or of a queue pair, may lie in.

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
    #[inline]
    pub(super) fn range_of(&self, start: *const u8, len: usize) -> Result<LocalRange, Rejection> {
        let start = start as usize;
        self.ranges
            .iter()
            .find(|range| range.start <= start && len <= range.end.saturating_sub(start))
            .copied()
            .ok_or(Rejection::NotAttached)
    }

    /// As [`Attached::range_of`], the region itself.
    pub(super) fn region_of(
        &self,
        start: *const u8,
        len: usize,
    ) -> Result<Arc<MemoryRegion>, Rejection> {
        let range = self.range_of(start, len)?;
        self.regions
            .iter()
            .find(|region| region.local().lkey == range.lkey)
            .map(Arc::clone)
            .ok_or(Rejection::NotAttached)
    }

    /// Writes down the segments of a receive, which must lie in a payload of writable memory.
    #[inline]
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
        let base = payload.as_ptr() as u64;
        for (target, segment) in list.iter_mut().zip(segments) {
            *target = segment.within(base, range.lkey);
        }
        Ok(())
    }

    /// Keeps the regions registered for ever.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.regions));
        std::mem::forget(Arc::clone(&self.pd));
    }
}
