//! The functions and operation tables of the mock provider, as C sees them.
//!
//! Each structure handed out is a leaked box that its destroying call frees; what it stands for is in
//! the fabric under its number or address.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use super::datagram::{create_ah, destroy_ah};
use super::events::{self, ack_async_event, get_async_event};
use super::extended;
use super::fabric::{self, Queue, QueuePair, Region, Send};
use super::shared_receive::{create_srq, destroy_srq, modify_srq, post_srq_recv, query_srq};
use super::windows;
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

const DEVICES: [&str; 3] = ["mock0", "mock1", "mock2"];
/// Which of them has neither atomics nor reads; its contexts carry it as `cmd_fd`.
const WRITES_ONLY: c_int = 2;
/// And which has no extended interface.
const CLASSIC: c_int = 1;
const GID_TABLE_LEN: i32 = 4;
const COMPLETION_QUEUE_ENTRIES: i32 = 65536;

pub(super) fn fail(errno: i32) -> c_int {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn eventfd() -> c_int {
    // SAFETY: a plain system call.
    unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) }
}

/// Takes one from an eventfd; false with errno set when there is nothing.
pub(super) fn take_signal(fd: c_int) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes of ours.
    unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) == 8 }
}

unsafe extern "C" fn get_device_list(count: *mut c_int) -> *mut *mut sys::ibv_device {
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

unsafe extern "C" fn free_device_list(list: *mut *mut sys::ibv_device) {
    // SAFETY: the list is a box of get_device_list's, its devices as well.
    unsafe {
        let list = Box::from_raw(list.cast::<[*mut sys::ibv_device; DEVICES.len() + 1]>());
        for device in list.iter().filter(|device| !device.is_null()) {
            drop(Box::from_raw(*device));
        }
    }
}

unsafe extern "C" fn get_device_name(device: *mut sys::ibv_device) -> *const c_char {
    // SAFETY: a device of the list.
    unsafe { (*device).name.as_ptr() }
}

unsafe extern "C" fn get_device_guid(_device: *mut sys::ibv_device) -> u64 {
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
    extended.context.ops.dealloc_mw = Some(windows::dealloc_mw);
    extended.context.ops.post_srq_recv = Some(post_srq_recv);
    extended.context.ops.poll_cq = Some(poll_cq);
    extended.context.ops.req_notify_cq = Some(req_notify_cq);
    // SAFETY: the context is the last field of the box, which lives until close_device.
    unsafe { &raw mut (*Box::into_raw(extended)).context }
}

unsafe extern "C" fn close_device(context: *mut sys::ibv_context) -> c_int {
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
        device_cap_flags: sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B,
        ..Default::default()
    };
    for (target, byte) in known.fw_ver.iter_mut().zip(b"1.0.0") {
        *target = byte.cast_signed();
    }
    known
}

unsafe extern "C" fn query_device(
    context: *mut sys::ibv_context,
    attributes: *mut sys::ibv_device_attr,
) -> c_int {
    // SAFETY: the caller's context and out pointer.
    unsafe { *attributes = device_attributes((*context).cmd_fd == WRITES_ONLY) };
    0
}

unsafe extern "C" fn query_device_ex(
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

fn port_attributes() -> sys::ibv_port_attr {
    sys::ibv_port_attr {
        state: sys::IBV_PORT_ACTIVE,
        max_mtu: sys::IBV_MTU_4096,
        active_mtu: sys::IBV_MTU_1024,
        gid_tbl_len: GID_TABLE_LEN,
        max_msg_sz: 1 << 31,
        link_layer: 2,
        ..Default::default()
    }
}

unsafe extern "C" fn query_port(
    _context: *mut sys::ibv_context,
    port: u8,
    attributes: *mut sys::ibv_port_attr,
    len: usize,
) -> c_int {
    if port != 1 || len < size_of::<sys::ibv_port_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: the caller's out pointer, as large as it says.
    unsafe { *attributes = port_attributes() };
    0
}

unsafe extern "C" fn query_port_compat(
    _context: *mut sys::ibv_context,
    port: u8,
    attributes: *mut sys::_compat_ibv_port_attr,
) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    let known = port_attributes();
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

unsafe extern "C" fn query_gid(
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

unsafe extern "C" fn query_gid_ex(
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
unsafe extern "C" fn query_gid_table(
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

unsafe extern "C" fn alloc_pd(context: *mut sys::ibv_context) -> *mut sys::ibv_pd {
    Box::into_raw(Box::new(sys::ibv_pd { context, handle: 0 }))
}

unsafe extern "C" fn dealloc_pd(pd: *mut sys::ibv_pd) -> c_int {
    // SAFETY: a box of alloc_pd's.
    drop(unsafe { Box::from_raw(pd) });
    0
}

unsafe extern "C" fn reg_mr(
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
        window_of: None,
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

unsafe extern "C" fn dereg_mr(mr: *mut sys::ibv_mr) -> c_int {
    // SAFETY: a box of reg_mr's.
    let mr = unsafe { Box::from_raw(mr) };
    fabric::lock().regions.remove(&mr.lkey);
    0
}

unsafe extern "C" fn create_comp_channel(
    context: *mut sys::ibv_context,
) -> *mut sys::ibv_comp_channel {
    Box::into_raw(Box::new(sys::ibv_comp_channel {
        context,
        fd: eventfd(),
        refcnt: 0,
    }))
}

unsafe extern "C" fn destroy_comp_channel(channel: *mut sys::ibv_comp_channel) -> c_int {
    // SAFETY: a box of create_comp_channel's.
    let channel = unsafe { Box::from_raw(channel) };
    fabric::lock().due.remove(&channel.fd);
    // SAFETY: the descriptor is the channel's own.
    unsafe { libc::close(channel.fd) }
}

unsafe extern "C" fn create_cq(
    context: *mut sys::ibv_context,
    entries: c_int,
    tag: *mut c_void,
    channel: *mut sys::ibv_comp_channel,
    _vector: c_int,
) -> *mut sys::ibv_cq {
    if entries > COMPLETION_QUEUE_ENTRIES {
        fail(libc::EINVAL);
        return null_mut();
    }
    let mut queue = Box::new(sys::ibv_cq::default());
    queue.context = context;
    queue.cqe = entries;
    queue.cq_context = tag;
    queue.channel = channel;
    let raw = Box::into_raw(queue);
    // SAFETY: a channel of create_comp_channel's, or null.
    let channel = unsafe { channel.as_ref() }.map(|channel| channel.fd);
    let capacity = usize::try_from(entries).unwrap_or(0);
    let queue = Queue {
        capacity,
        channel,
        tag: tag.addr() as u64,
        ..Queue::default()
    };
    // SAFETY: the context is open.
    let async_fd = unsafe { (*context).async_fd };
    let mut fabric = fabric::lock();
    fabric.queues.insert(raw as usize, queue);
    fabric.reporters.insert(raw as usize, async_fd);
    raw
}

unsafe extern "C" fn destroy_cq(queue: *mut sys::ibv_cq) -> c_int {
    let fabric = fabric::lock();
    let used = fabric
        .queue_pairs
        .values()
        .any(|pair| pair.send_queue == queue as usize || pair.receive_queue == queue as usize);
    if used {
        return libc::EBUSY;
    }
    let mut fabric = events::settle(fabric, queue as usize);
    fabric.queues.remove(&(queue as usize));
    // SAFETY: a box of create_cq's.
    drop(unsafe { Box::from_raw(queue) });
    0
}

unsafe extern "C" fn get_cq_event(
    channel: *mut sys::ibv_comp_channel,
    queue: *mut *mut sys::ibv_cq,
    tag: *mut *mut c_void,
) -> c_int {
    // SAFETY: the channel is alive.
    let fd = unsafe { (*channel).fd };
    if !take_signal(fd) {
        return -1;
    }
    let mut fabric = fabric::lock();
    let due = fabric
        .due
        .get_mut(&fd)
        .and_then(std::collections::VecDeque::pop_front);
    let Some(due) = due else {
        return fail(libc::EIO);
    };
    events::count_taken(&mut fabric, due);
    // SAFETY: the caller's out pointers.
    unsafe {
        *queue = due as *mut sys::ibv_cq;
        *tag = null_mut();
    }
    0
}

unsafe extern "C" fn ack_cq_events(queue: *mut sys::ibv_cq, count: c_uint) {
    events::acknowledge(&mut fabric::lock(), queue as usize, count);
}

unsafe extern "C" fn create_qp(
    pd: *mut sys::ibv_pd,
    attributes: *mut sys::ibv_qp_init_attr,
) -> *mut sys::ibv_qp {
    // SAFETY: both are the caller's.
    let (context, attributes) = unsafe { ((*pd).context, &*attributes) };
    make_queue_pair(context, pd, attributes, false)
}

unsafe extern "C" fn create_qp_ex(
    context: *mut sys::ibv_context,
    attributes: *mut sys::ibv_qp_init_attr_ex,
) -> *mut sys::ibv_qp {
    // SAFETY: the caller's.
    let attributes = unsafe { &*attributes };
    let known = sys::IBV_QP_INIT_ATTR_PD | sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    if attributes.comp_mask & !known != 0 || attributes.comp_mask & sys::IBV_QP_INIT_ATTR_PD == 0 {
        fail(libc::EOPNOTSUPP);
        return null_mut();
    }
    let classic = sys::ibv_qp_init_attr {
        qp_context: attributes.qp_context,
        srq: attributes.srq,
        qp_type: attributes.qp_type,
        send_cq: attributes.send_cq,
        recv_cq: attributes.recv_cq,
        cap: attributes.cap,
        ..Default::default()
    };
    let extended = attributes.comp_mask & sys::IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0;
    make_queue_pair(context, attributes.pd, &classic, extended)
}

fn make_queue_pair(
    context: *mut sys::ibv_context,
    pd: *mut sys::ibv_pd,
    attributes: &sys::ibv_qp_init_attr,
    extended: bool,
) -> *mut sys::ibv_qp {
    let mut fabric = fabric::lock();
    let number = fabric.number();
    fabric
        .queue_pairs
        .insert(number, QueuePair::new(pd as usize, attributes));
    let base = sys::ibv_qp {
        context,
        qp_context: attributes.qp_context,
        pd,
        send_cq: attributes.send_cq,
        recv_cq: attributes.recv_cq,
        srq: attributes.srq,
        qp_num: number,
        ..Default::default()
    };
    // libibverbs' structure stands first in it.
    let raw: *mut sys::ibv_qp = Box::into_raw(extended::QueuePair::new(base, extended)).cast();
    // SAFETY: the context is open.
    let async_fd = unsafe { (*context).async_fd };
    fabric.reporters.insert(raw as usize, async_fd);
    fabric.structures.insert(number, raw as usize);
    raw
}

unsafe extern "C" fn modify_qp(
    raw: *mut sys::ibv_qp,
    attributes: *mut sys::ibv_qp_attr,
    mask: c_int,
) -> c_int {
    // SAFETY: both are the caller's.
    let (number, attributes) = unsafe { ((*raw).qp_num, &*attributes) };
    let mask = mask.cast_unsigned();
    let mut fabric = fabric::lock();
    let Some(pair) = fabric.queue_pairs.get_mut(&number) else {
        return libc::EINVAL;
    };
    let allowed = match attributes.qp_state {
        sys::IBV_QPS_INIT => pair.state == sys::IBV_QPS_RESET,
        sys::IBV_QPS_RTR => pair.state == sys::IBV_QPS_INIT,
        sys::IBV_QPS_RTS => pair.state == sys::IBV_QPS_RTR,
        sys::IBV_QPS_ERR => true,
        _ => false,
    };
    if !allowed {
        return libc::EINVAL;
    }
    if mask & sys::IBV_QP_ACCESS_FLAGS != 0 {
        pair.access = attributes.qp_access_flags;
    }
    if mask & sys::IBV_QP_QKEY != 0 {
        pair.queue_key = attributes.qkey;
    }
    if mask & sys::IBV_QP_DEST_QPN != 0 {
        pair.peer = attributes.dest_qp_num;
    }
    if mask & sys::IBV_QP_RNR_RETRY != 0 {
        // 7 is without end; fewer retries count as none.
        pair.waits_for_receives = attributes.rnr_retry == 7;
    }
    if attributes.qp_state == sys::IBV_QPS_ERR {
        fabric.fail(number);
    } else {
        pair.state = attributes.qp_state;
    }
    0
}

unsafe extern "C" fn query_qp(
    raw: *mut sys::ibv_qp,
    attributes: *mut sys::ibv_qp_attr,
    _mask: c_int,
    _initial: *mut sys::ibv_qp_init_attr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let fabric = fabric::lock();
    let Some(pair) = fabric.queue_pairs.get(&number) else {
        return libc::EINVAL;
    };
    // SAFETY: the caller's out pointer.
    unsafe { (*attributes).qp_state = pair.state };
    0
}

unsafe extern "C" fn destroy_qp(raw: *mut sys::ibv_qp) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    if let Some(pair) = fabric.queue_pairs.get_mut(&number)
        && let Some(errno) = pair.refuse_destruction.take()
    {
        return errno;
    }
    let mut fabric = events::settle(fabric, raw as usize);
    fabric.structures.remove(&number);
    fabric.queue_pairs.remove(&number);
    // SAFETY: as above, so it is a leaked box; nobody uses it any more.
    drop(unsafe { Box::from_raw(raw.cast::<extended::QueuePair>()) });
    0
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

unsafe extern "C" fn post_send(
    raw: *mut sys::ibv_qp,
    first: *mut sys::ibv_send_wr,
    refused: *mut *mut sys::ibv_send_wr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    let mut next = first;
    let mut code = 0;
    // SAFETY: the caller's list ends with null.
    while let Some(request) = unsafe { next.as_ref() } {
        let (taken, errno) = fabric.admit(number, 1);
        if taken == 0 {
            // SAFETY: the caller's out pointer.
            unsafe { *refused = next };
            code = errno;
            break;
        }
        // SAFETY: the caller's work request.
        fabric.take_send(number, unsafe { Send::of(request) });
        next = request.next;
    }
    fabric.work_off(number);
    code
}

unsafe extern "C" fn post_recv(
    raw: *mut sys::ibv_qp,
    first: *mut sys::ibv_recv_wr,
    refused: *mut *mut sys::ibv_recv_wr,
) -> c_int {
    // SAFETY: a queue pair of create_qp's.
    let number = unsafe { (*raw).qp_num };
    let mut fabric = fabric::lock();
    let mut next = first;
    // SAFETY: the caller's list ends with null.
    while let Some(request) = unsafe { next.as_ref() } {
        // SAFETY: the caller's work request.
        if let Err(errno) = unsafe { fabric.take_receive(number, request) } {
            // SAFETY: the caller's out pointer.
            unsafe { *refused = next };
            return errno;
        }
        next = request.next;
    }
    0
}

unsafe extern "C" fn poll_cq(
    queue: *mut sys::ibv_cq,
    entries: c_int,
    out: *mut sys::ibv_wc,
) -> c_int {
    let mut fabric = fabric::lock();
    let Some(queue) = fabric.queues.get_mut(&(queue as usize)) else {
        return -libc::EINVAL;
    };
    if queue.overrun {
        return -libc::EIO;
    }
    let mut taken = 0;
    while taken < entries {
        let Some(done) = queue.entries.pop_front() else {
            break;
        };
        // SAFETY: the caller's array has `entries` entries.
        unsafe { out.add(taken as usize).write(done) };
        taken += 1;
    }
    taken
}

unsafe extern "C" fn req_notify_cq(queue: *mut sys::ibv_cq, _solicited: c_int) -> c_int {
    match fabric::lock().queues.get_mut(&(queue as usize)) {
        Some(queue) => {
            queue.armed = true;
            0
        }
        None => libc::EINVAL,
    }
}
