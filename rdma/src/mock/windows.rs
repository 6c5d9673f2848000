//! Memory windows of the mock provider: keys that open a range to one queue pair (type 2) or to those of
//! a protection domain (type 1).

use std::ffi::c_int;
use std::ptr::null_mut;

use super::calls::fail;
use super::fabric::{self, Fabric, Holder, Region};
use super::work::Send;
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
        let (pd, own) = (own.pd, Holder::QueuePair(qp_number));
        if send.opcode == sys::IBV_WR_LOCAL_INV {
            // Key and immediate are at the same place.
            let rkey = send.immediate;
            let is_own = |region: &Region| region.holder == own;
            return match self.regions.get(&rkey).is_some_and(is_own) {
                true => {
                    self.regions.remove(&rkey);
                    Ok(())
                }
                false => Err(sys::IBV_WC_LOC_QP_OP_ERR),
            };
        }
        let window = send.window;
        let (start, len) = (window.start, window.len);
        let holder = match window.before {
            Some(before) => {
                self.regions.remove(&before);
                Holder::Domain
            }
            None => own,
        };
        if window.before.is_some() && len == 0 {
            return Ok(());
        }
        let end = start.saturating_add(len);
        let fits = self.regions.values().any(|region| {
            region.holder == Holder::Region
                && region.pd == pd
                && region.access & sys::IBV_ACCESS_MW_BIND != 0
                && region.start <= start
                && end <= region.start + region.len
        });
        // A key that is open already, or whose window is gone, opens nothing.
        let rkey = window.rkey;
        if !fits || self.regions.contains_key(&rkey) || !self.windows.contains(&(rkey >> 8)) {
            return Err(sys::IBV_WC_MW_BIND_ERR);
        }
        let opened = Region {
            start,
            len,
            access: window.access,
            pd,
            holder,
        };
        self.regions.insert(rkey, opened);
        Ok(())
    }
}

/// The upper part of the keys of windows, out of reach of the numbers of regions.
const WINDOW_KEYS: u32 = 0x40_0000;

pub(super) unsafe extern "C" fn alloc_mw(
    pd: *mut sys::ibv_pd,
    kind: sys::ibv_mw_type,
) -> *mut sys::ibv_mw {
    if !matches!(kind, sys::IBV_MW_TYPE_1 | sys::IBV_MW_TYPE_2) {
        fail(libc::EINVAL);
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

/// Opens a window of type 1, or with a length of 0 closes it. As real ones do, it posts a work request, and
/// tells the new key at once.
pub(super) unsafe extern "C" fn bind_mw(
    queue_pair: *mut sys::ibv_qp,
    window: *mut sys::ibv_mw,
    bind: *mut sys::ibv_mw_bind,
) -> c_int {
    // SAFETY: the caller's: a queue pair of this provider, a window of alloc_mw's, and what to do.
    let (number, window, bind) = unsafe { ((*queue_pair).qp_num, &mut *window, &*bind) };
    if window.type_ != sys::IBV_MW_TYPE_1 {
        return libc::EINVAL;
    }
    let before = window.rkey;
    let rkey = before & !0xff | before.wrapping_add(1) & 0xff;
    let mut request = sys::ibv_send_wr {
        wr_id: bind.wr_id,
        opcode: sys::IBV_WR_BIND_MW,
        send_flags: bind.send_flags,
        ..Default::default()
    };
    request.__bindgen_anon_2.bind_mw = sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
        mw: window,
        rkey,
        bind_info: bind.bind_info,
    };
    let mut fabric = fabric::lock();
    let (taken, errno) = fabric.admit(number, 1);
    if taken == 0 {
        return errno;
    }
    // SAFETY: made above, without segments.
    let mut send = unsafe { Send::of(&request) };
    send.window.before = Some(before);
    fabric.take_send(number, send);
    fabric.work_off(number);
    window.rkey = rkey;
    0
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
