//! Protection domains and memory regions of the mock provider.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use super::calls::fail;
use super::fabric::{self, Holder, Region};
use crate::sys;

pub(super) unsafe extern "C" fn alloc_pd(context: *mut sys::ibv_context) -> *mut sys::ibv_pd {
    Box::into_raw(Box::new(sys::ibv_pd { context, handle: 0 }))
}

pub(super) unsafe extern "C" fn dealloc_pd(pd: *mut sys::ibv_pd) -> c_int {
    // SAFETY: a box of alloc_pd's.
    drop(unsafe { Box::from_raw(pd) });
    0
}

pub(super) unsafe extern "C" fn reg_mr(
    pd: *mut sys::ibv_pd,
    start: *mut c_void,
    len: usize,
    access: c_int,
) -> *mut sys::ibv_mr {
    let access = access.cast_unsigned();
    // SAFETY: the protection domain and its context are alive.
    let async_fd = unsafe { (*(*pd).context).async_fd };
    let mut fabric = fabric::lock();
    if let Some(errno) = fabric.refuse_registration.remove(&async_fd) {
        fail(errno);
        return null_mut();
    }
    let key = fabric.number();
    let region = Region {
        start: start as u64,
        len: len as u64,
        access,
        pd: pd as usize,
        holder: Holder::Region,
    };
    fabric.regions.insert(key, region);
    // SAFETY: the protection domain is alive.
    let context = unsafe { (*pd).context };
    Box::into_raw(Box::new(sys::ibv_mr {
        context,
        pd,
        addr: start,
        length: len,
        handle: 0,
        lkey: key,
        rkey: key,
    }))
}

pub(super) unsafe extern "C" fn dereg_mr(mr: *mut sys::ibv_mr) -> c_int {
    // SAFETY: a box of reg_mr's.
    let mr = unsafe { Box::from_raw(mr) };
    fabric::lock().regions.remove(&mr.lkey);
    0
}
