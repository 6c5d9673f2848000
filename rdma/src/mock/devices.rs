//! The devices of the mock provider: their operations, attributes, ports and addresses.

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use super::calls::eventfd;
use super::completions::{poll_cq, req_notify_cq};
use super::fabric;
use super::queue_pairs::{create_qp_ex, post_recv, post_send};
use super::shared_receive::post_srq_recv;
use super::windows;
use crate::sys;

const DEVICES: [&str; 3] = ["mock0", "mock1", "mock2"];
/// Which of them has neither atomics nor reads; its contexts carry it as `cmd_fd`.
const WRITES_ONLY: c_int = 2;
/// And which has no extended interface.
const CLASSIC: c_int = 1;
const GID_TABLE_LEN: i32 = 4;
pub(super) const COMPLETION_QUEUE_ENTRIES: i32 = 65536;

pub(super) unsafe extern "C" fn get_device_list(count: *mut c_int) -> *mut *mut sys::ibv_device {
    let list: [*mut sys::ibv_device; DEVICES.len() + 1] = std::array::from_fn(|index| {
        let Some(name) = DEVICES.get(index) else {
            return null_mut();
        };
        let mut device = Box::new(sys::ibv_device::default());
        for (target, byte) in device.name.iter_mut().zip(name.bytes()) {
            *target = byte.cast_signed();
        }
        Box::into_raw(device)
    });
    // SAFETY: the caller's out pointer.
    unsafe { *count = DEVICES.len() as c_int };
    Box::into_raw(Box::new(list)).cast()
}

pub(super) unsafe extern "C" fn free_device_list(list: *mut *mut sys::ibv_device) {
    // SAFETY: the list is a box of get_device_list's, its devices as well.
    unsafe {
        let list = Box::from_raw(list.cast::<[*mut sys::ibv_device; DEVICES.len() + 1]>());
        for device in list.iter().filter(|device| !device.is_null()) {
            drop(Box::from_raw(*device));
        }
    }
}

pub(super) unsafe extern "C" fn get_device_name(device: *mut sys::ibv_device) -> *const c_char {
    // SAFETY: a device of the list.
    unsafe { (*device).name.as_ptr() }
}

pub(super) unsafe extern "C" fn get_device_guid(_device: *mut sys::ibv_device) -> u64 {
    0x0200_00ff_fe00_0001_u64.to_be()
}

pub(super) unsafe extern "C" fn open_device(device: *mut sys::ibv_device) -> *mut sys::ibv_context {
    let mut extended = Box::new(sys::verbs_context::default());
    // SAFETY: a device of the list; its name ends with a zero.
    let is_extended = unsafe { (*device).name[4] == b'0'.cast_signed() };
    if is_extended {
        extended.query_port = Some(query_port);
        extended.query_device_ex = Some(query_device_ex);
        extended.create_qp_ex = Some(create_qp_ex);
        extended.sz = size_of::<sys::verbs_context>();
        extended.context.abi_compat = sys::VERBS_ABI_IS_EXTENDED;
    }
    // SAFETY: a device of the list.
    extended.context.cmd_fd = c_int::from(unsafe { (*device).name[4] }) - c_int::from(b'0');
    extended.context.async_fd = eventfd();
    extended.context.ops.post_send = Some(post_send);
    extended.context.ops.post_recv = Some(post_recv);
    extended.context.ops.alloc_mw = Some(windows::alloc_mw);
    extended.context.ops.bind_mw = Some(windows::bind_mw);
    extended.context.ops.dealloc_mw = Some(windows::dealloc_mw);
    extended.context.ops.post_srq_recv = Some(post_srq_recv);
    extended.context.ops.poll_cq = Some(poll_cq);
    extended.context.ops.req_notify_cq = Some(req_notify_cq);
    // SAFETY: the context is the last field of the box, which lives until close_device.
    unsafe { &raw mut (*Box::into_raw(extended)).context }
}

pub(super) unsafe extern "C" fn close_device(context: *mut sys::ibv_context) -> c_int {
    let head = std::mem::offset_of!(sys::verbs_context, context);
    // SAFETY: the context is the last field of a box of open_device's.
    let extended = unsafe { Box::from_raw(context.byte_sub(head).cast::<sys::verbs_context>()) };
    fabric::lock().events.remove(&extended.context.async_fd);
    // SAFETY: the descriptor is the context's own.
    unsafe { libc::close(extended.context.async_fd) }
}

fn device_attributes(writes_only: bool) -> sys::ibv_device_attr {
    let mut known = sys::ibv_device_attr {
        phys_port_cnt: 1,
        max_qp_wr: 16384,
        max_sge: 16,
        max_cqe: COMPLETION_QUEUE_ENTRIES,
        max_mr_size: u64::MAX,
        max_mr: 1 << 16,
        max_qp: 1 << 16,
        max_qp_rd_atom: if writes_only { 0 } else { 16 },
        max_qp_init_rd_atom: if writes_only { 0 } else { 16 },
        atomic_cap: if writes_only {
            sys::IBV_ATOMIC_NONE
        } else {
            sys::IBV_ATOMIC_HCA
        },
        max_srq: 1 << 16,
        max_srq_wr: 16384,
        max_srq_sge: 16,
        max_ah: 1 << 16,
        max_mw: 1 << 16,
        device_cap_flags: if writes_only {
            sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B
        } else {
            sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B | sys::IBV_DEVICE_MEM_WINDOW
        },
        ..Default::default()
    };
    for (target, byte) in known.fw_ver.iter_mut().zip(b"1.0.0") {
        *target = byte.cast_signed();
    }
    known
}

pub(super) unsafe extern "C" fn query_device(
    context: *mut sys::ibv_context,
    attributes: *mut sys::ibv_device_attr,
) -> c_int {
    // SAFETY: the caller's context and out pointer.
    unsafe { *attributes = device_attributes((*context).cmd_fd == WRITES_ONLY) };
    0
}

pub(super) unsafe extern "C" fn query_device_ex(
    context: *mut sys::ibv_context,
    _input: *const sys::ibv_query_device_ex_input,
    attributes: *mut sys::ibv_device_attr_ex,
    len: usize,
) -> c_int {
    if len < size_of::<sys::ibv_device_attr_ex>() {
        return libc::EINVAL;
    }
    let mut known = sys::ibv_device_attr_ex {
        // SAFETY: the caller's context.
        orig_attr: device_attributes(unsafe { (*context).cmd_fd } == WRITES_ONLY),
        completion_timestamp_mask: (1 << 48) - 1,
        hca_core_clock: 156_250,
        max_dm_size: 128 << 10,
        raw_packet_caps: 4,
        ..Default::default()
    };
    known.odp_caps.general_caps = sys::IBV_ODP_SUPPORT.into();
    known.odp_caps.per_transport_caps.rc_odp_caps =
        sys::IBV_ODP_SUPPORT_SEND | sys::IBV_ODP_SUPPORT_WRITE;
    // SAFETY: the caller's out pointer, as large as it says.
    unsafe { *attributes = known };
    0
}

/// What the port of a device says. The one of [`WRITES_ONLY`] carries as little at a time as soft-RoCE.
///
/// # Safety
/// The context must be one of ours.
unsafe fn port_attributes(context: *mut sys::ibv_context) -> sys::ibv_port_attr {
    // SAFETY: the caller vouches for it.
    let is_small = unsafe { (*context).cmd_fd } == WRITES_ONLY;
    sys::ibv_port_attr {
        state: sys::IBV_PORT_ACTIVE,
        max_mtu: sys::IBV_MTU_4096,
        active_mtu: sys::IBV_MTU_1024,
        gid_tbl_len: GID_TABLE_LEN,
        max_msg_sz: if is_small { 8 << 20 } else { 1 << 31 },
        link_layer: 2,
        ..Default::default()
    }
}

pub(super) unsafe extern "C" fn query_port(
    context: *mut sys::ibv_context,
    port: u8,
    attributes: *mut sys::ibv_port_attr,
    len: usize,
) -> c_int {
    if port != 1 || len < size_of::<sys::ibv_port_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: the caller's context and out pointer, as large as it says.
    unsafe { *attributes = port_attributes(context) };
    0
}

pub(super) unsafe extern "C" fn query_port_compat(
    context: *mut sys::ibv_context,
    port: u8,
    attributes: *mut sys::_compat_ibv_port_attr,
) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    // SAFETY: the caller's context.
    let known = unsafe { port_attributes(context) };
    // The old structure is the front of the new one, without its last two fields.
    let bytes = std::mem::offset_of!(sys::ibv_port_attr, port_cap_flags2);
    // SAFETY: callers pass the whole new structure, of which the front is written.
    unsafe {
        std::ptr::copy_nonoverlapping((&raw const known).cast::<u8>(), attributes.cast(), bytes);
    }
    0
}

pub(super) fn gid(index: u32) -> Option<(sys::ibv_gid_type, [u8; 16])> {
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, 1];
    let ipv4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    match index {
        0 => Some((sys::IBV_GID_TYPE_ROCE_V1, link_local)),
        1 => Some((sys::IBV_GID_TYPE_ROCE_V2, link_local)),
        3 => Some((sys::IBV_GID_TYPE_ROCE_V2, ipv4)),
        _ => None,
    }
}

pub(super) unsafe extern "C" fn query_gid(
    _context: *mut sys::ibv_context,
    _port: u8,
    index: c_int,
    out: *mut sys::ibv_gid,
) -> c_int {
    let raw = gid(index.cast_unsigned()).map_or([0; 16], |(_, raw)| raw);
    // SAFETY: the caller's out pointer.
    unsafe { (*out).raw = raw };
    0
}

pub(super) unsafe extern "C" fn query_gid_ex(
    _context: *mut sys::ibv_context,
    port: u32,
    index: u32,
    entry: *mut sys::ibv_gid_entry,
    _flags: u32,
    _size: usize,
) -> c_int {
    let Some((gid_type, raw)) = gid(index) else {
        return libc::ENODATA;
    };
    // SAFETY: the caller's out pointer.
    unsafe {
        (*entry).gid.raw = raw;
        (*entry).gid_index = index;
        (*entry).port_num = port;
        (*entry).gid_type = gid_type;
    }
    0
}

/// `mock1` knows it as little as an old kernel does.
pub(super) unsafe extern "C" fn query_gid_table(
    context: *mut sys::ibv_context,
    entries: *mut sys::ibv_gid_entry,
    max_entries: usize,
    _flags: u32,
    size: usize,
) -> isize {
    // SAFETY: a context of ours.
    if unsafe { (*context).cmd_fd } == CLASSIC {
        return -(libc::EOPNOTSUPP as isize);
    }
    let mut count = 0;
    for index in (0..GID_TABLE_LEN as u32).filter(|index| gid(*index).is_some()) {
        if count == max_entries {
            return -(libc::EINVAL as isize);
        }
        // SAFETY: the caller's array, of at least `max_entries` entries.
        unsafe { query_gid_ex(context, 1, index, entries.add(count), 0, size) };
        count += 1;
    }
    count as isize
}
