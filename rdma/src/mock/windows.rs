//! Memory windows of the mock provider: keys that open a range to one queue pair.

use std::ffi::c_int;
use std::ptr::null_mut;

use super::calls::fail;
use super::fabric::{self, Fabric, Region, Send};
use crate::sys;

impl Fabric {
    /// Opens or closes a window.
    pub(super) fn change_window(
        &mut self,
        qp_number: u32,
        send: &Send,
    ) -> Result<(), sys::ibv_wc_status> {
        let own = self
            .queue_pairs
            .get(&qp_number)
            .ok_or(sys::IBV_WC_FATAL_ERR)?;
        let (pd, own) = (own.pd, Some(qp_number));
        if send.opcode == sys::IBV_WR_LOCAL_INV {
            // Key and immediate are at the same place.
            let rkey = send.immediate;
            let is_own = |region: &Region| region.window_of == own;
            return match self.regions.get(&rkey).is_some_and(is_own) {
                true => {
                    self.regions.remove(&rkey);
                    Ok(())
                }
                false => Err(sys::IBV_WC_LOC_QP_OP_ERR),
            };
        }
        let (rkey, start, len, access) = send.window;
        let end = start.saturating_add(len);
        let fits = self.regions.values().any(|region| {
            region.window_of.is_none()
                && region.pd == pd
                && region.access & sys::IBV_ACCESS_MW_BIND != 0
                && region.start <= start
                && end <= region.start + region.len
        });
        // A key that is open already, or whose window is gone, opens nothing.
        if !fits || self.regions.contains_key(&rkey) || !self.windows.contains(&(rkey >> 8)) {
            return Err(sys::IBV_WC_MW_BIND_ERR);
        }
        let window = Region {
            start,
            len,
            access,
            pd,
            window_of: own,
        };
        self.regions.insert(rkey, window);
        Ok(())
    }
}

/// The upper part of the keys of windows, out of reach of the numbers of regions.
const WINDOW_KEYS: u32 = 0x40_0000;

pub(super) unsafe extern "C" fn alloc_mw(
    pd: *mut sys::ibv_pd,
    kind: sys::ibv_mw_type,
) -> *mut sys::ibv_mw {
    if kind != sys::IBV_MW_TYPE_2 {
        fail(libc::EOPNOTSUPP);
        return null_mut();
    }
    let mut fabric = fabric::lock();
    let upper = WINDOW_KEYS + fabric.number();
    fabric.windows.insert(upper);
    // SAFETY: the protection domain is alive.
    let context = unsafe { (*pd).context };
    Box::into_raw(Box::new(sys::ibv_mw {
        context,
        pd,
        rkey: upper << 8,
        handle: 0,
        type_: kind,
    }))
}

pub(super) unsafe extern "C" fn dealloc_mw(window: *mut sys::ibv_mw) -> c_int {
    // SAFETY: a box of alloc_mw's, whose context is open.
    let (async_fd, upper) = unsafe { ((*(*window).context).async_fd, (*window).rkey >> 8) };
    let mut fabric = fabric::lock();
    if let Some(errno) = fabric.refuse_window_end.remove(&async_fd) {
        return errno;
    }
    fabric.windows.remove(&upper);
    fabric.regions.retain(|key, _| key >> 8 != upper);
    // SAFETY: as above; nobody uses it any more.
    drop(unsafe { Box::from_raw(window) });
    0
}
