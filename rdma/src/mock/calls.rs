//! The table of functions of the mock provider, as C sees them. Each structure handed out is a leaked box
//! that its destroying call frees; what it stands for is in the fabric under its number or address.

use std::ffi::{c_char, c_int};

use super::completions::{
    ack_cq_events, create_comp_channel, create_cq, destroy_comp_channel, destroy_cq, get_cq_event,
};
use super::datagram::{create_ah, destroy_ah};
use super::devices::{
    close_device, free_device_list, get_device_guid, get_device_list, get_device_name, open_device,
    query_device, query_gid, query_gid_ex, query_gid_table, query_port_compat,
};
use super::events::{ack_async_event, get_async_event};
use super::extended;
use super::memory::{alloc_pd, dealloc_pd, dereg_mr, reg_mr};
use super::queue_pairs::{create_qp, destroy_qp, modify_qp, query_qp};
use super::shared_receive::{create_srq, destroy_srq, modify_srq, query_srq};
use crate::sys::{self, Library};

pub(super) static LIBRARY: Library = TABLE;

pub(super) const TABLE: Library = Library {
    get_device_list,
    free_device_list,
    get_device_name,
    get_device_guid,
    open_device,
    close_device,
    query_device,
    query_port: query_port_compat,
    query_gid,
    alloc_pd,
    dealloc_pd,
    reg_mr,
    dereg_mr,
    create_comp_channel,
    destroy_comp_channel,
    create_cq,
    destroy_cq,
    get_cq_event,
    ack_cq_events,
    create_qp,
    modify_qp,
    query_qp,
    destroy_qp,
    create_srq,
    modify_srq,
    query_srq,
    destroy_srq,
    create_ah,
    destroy_ah,
    fork_init,
    event_type_str,
    wc_status_str,
    get_async_event,
    ack_async_event,
    query_gid_ex: Some(query_gid_ex),
    query_gid_table: Some(query_gid_table),
    qp_to_qp_ex: Some(extended::qp_to_qp_ex),
    reg_mr_iova2: None,
    rereg_mr: None,
    is_fork_initialized: None,
};

pub(super) fn fail(errno: i32) -> c_int {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

pub(super) fn eventfd() -> c_int {
    // SAFETY: a plain system call.
    unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) }
}

/// Takes one from an eventfd; false with errno set when there is nothing.
pub(super) fn take_signal(fd: c_int) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes of ours.
    unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) == 8 }
}

unsafe extern "C" fn fork_init() -> c_int {
    0
}

unsafe extern "C" fn event_type_str(_kind: sys::ibv_event_type) -> *const c_char {
    c"an event of the mock provider".as_ptr()
}

unsafe extern "C" fn wc_status_str(_status: sys::ibv_wc_status) -> *const c_char {
    c"a status of the mock provider".as_ptr()
}
