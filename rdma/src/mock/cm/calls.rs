//! The functions of the mock connection manager, as C sees them. Each structure handed out is a leaked
//! box that its destroying call frees.

use std::ffi::{c_char, c_int, c_void};
use std::net::SocketAddr;
use std::ptr::null_mut;

use libc::sockaddr;
use socket2::{SockAddr, SockAddrStorage};

use super::Answer;
use super::world::{self, Channel, Identifier, State, Waiting, World};
use crate::mock::calls::{fail, take_signal};
use crate::mock::devices::gid;
use crate::sys::{self, ConnectionManager};

/// What the fields of the wire are long: what arrives is padded with zeros.
const REQUEST_BYTES: usize = 56;
const ACCEPTANCE_BYTES: usize = 196;
const REJECTION_BYTES: usize = 148;
/// The code of a rejection where nobody listens.
const NOBODY_LISTENS: i32 = 8;
const BY_APPLICATION: i32 = 28;

pub(super) static TABLE: ConnectionManager = ConnectionManager {
    create_event_channel,
    destroy_event_channel,
    get_cm_event,
    ack_cm_event,
    event_str,
    create_id,
    destroy_id,
    destroy_ep,
    migrate_id,
    set_option,
    bind_addr,
    resolve_addr,
    resolve_route,
    listen,
    connect,
    accept,
    reject,
    disconnect,
    notify,
    get_src_port,
    get_dst_port,
    establish: Some(establish),
    init_qp_attr: Some(init_qp_attr),
};

/// An event as its taker holds it.
#[repr(C)]
struct Taken {
    event: sys::rdma_cm_event,
    private_data: Vec<u8>,
}

/// Does what a test has arranged for a call, if anything; else the usual.
fn run(
    call: &'static str,
    id: *mut sys::rdma_cm_id,
    usual: impl FnOnce(&mut World, usize) -> c_int,
) -> c_int {
    let mut world = world::lock();
    let id = id as usize;
    match world.arranged(call, id) {
        None => usual(&mut world, id),
        Some(Answer::Refused(errno)) => fail(errno),
        Some(Answer::Silence) => 0,
        Some(Answer::Event {
            kind,
            status,
            private_data,
        }) => {
            world.push(Waiting {
                private_data,
                ..Waiting::new(id, kind, status)
            });
            0
        }
    }
}

/// # Safety
/// The pointer must be to a complete IPv4 or IPv6 address.
unsafe fn read_address(raw: *const sockaddr) -> Option<SocketAddr> {
    // SAFETY: the family stands in every address.
    let len = match i32::from(unsafe { (*raw).sa_family }) {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return None,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the caller's address is that long, and the storage longer.
    unsafe {
        std::ptr::copy_nonoverlapping(raw.cast::<u8>(), (&raw mut storage).cast(), len);
    }
    // SAFETY: an address of that length was copied there.
    unsafe { SockAddr::new(storage, len as libc::socklen_t) }.as_socket()
}

/// Writes an address where librdmacm has room for any.
fn write_address(to: *mut u8, address: SocketAddr) {
    let encoded = SockAddr::from(address);
    // SAFETY: the field is as large as any address.
    unsafe {
        std::ptr::copy_nonoverlapping(encoded.as_ptr().cast(), to, encoded.len() as usize);
    }
}

/// Gives an identifier its device, as if one had been found for its address.
fn give_device(id: usize) {
    let mut device = Box::new(sys::ibv_device::default());
    for (target, byte) in device.name.iter_mut().zip(b"mock0") {
        *target = byte.cast_signed();
    }
    let context = Box::new(sys::ibv_context {
        device: Box::into_raw(device),
        ..Default::default()
    });
    let id = id as *mut sys::rdma_cm_id;
    // SAFETY: an identifier of ours, whose owner is in a call on it, or does not know it yet.
    unsafe {
        if (*id).verbs.is_null() {
            (*id).verbs = Box::into_raw(context);
            (*id).port_num = 1;
            let (_, raw) = gid(3).unwrap_or_default();
            (*id).route.addr.addr.ibaddr.sgid.raw = raw;
            return;
        }
        drop(Box::from_raw(context.device));
    }
}

/// Takes an identifier's device away.
pub(super) fn take_device(id: usize) {
    let id = id as *mut sys::rdma_cm_id;
    // SAFETY: an identifier of ours; its device is two boxes of `give_device`'s.
    unsafe {
        let context = std::mem::replace(&mut (*id).verbs, null_mut());
        if !context.is_null() {
            let context = Box::from_raw(context);
            drop(Box::from_raw(context.device));
        }
    }
}

unsafe extern "C" fn create_event_channel() -> *mut sys::rdma_event_channel {
    // SAFETY: a plain system call.
    let fd = unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) };
    let raw = Box::into_raw(Box::new(sys::rdma_event_channel { fd }));
    let channel = Channel {
        fd,
        events: Default::default(),
    };
    world::lock().channels.insert(raw as usize, channel);
    raw
}

unsafe extern "C" fn destroy_event_channel(raw: *mut sys::rdma_event_channel) {
    let mut world = world::lock();
    let used = world.ids.values().any(|id| id.channel == raw as usize);
    assert!(!used, "a channel is destroyed before its identifier");
    world.channels.remove(&(raw as usize));
    // SAFETY: a box of create_event_channel's, and a descriptor of its own.
    unsafe { libc::close(Box::from_raw(raw).fd) };
}

fn new_id(world: &mut World, channel: usize, state: State) -> usize {
    let mut raw = Box::new(sys::rdma_cm_id::default());
    raw.channel = channel as *mut sys::rdma_event_channel;
    let raw = Box::into_raw(raw) as usize;
    let identifier = Identifier {
        channel,
        state,
        address: None,
        via: None,
        peer: None,
        qp_number: 0,
    };
    world.ids.insert(raw, identifier);
    raw
}

unsafe extern "C" fn create_id(
    channel: *mut sys::rdma_event_channel,
    out: *mut *mut sys::rdma_cm_id,
    _context: *mut c_void,
    _space: sys::rdma_port_space,
) -> c_int {
    let raw = new_id(&mut world::lock(), channel as usize, State::New);
    // SAFETY: the caller's out pointer.
    unsafe { *out = raw as *mut sys::rdma_cm_id };
    0
}

unsafe extern "C" fn destroy_id(id: *mut sys::rdma_cm_id) -> c_int {
    let raw = id as usize;
    let mut world = world::lock();
    // The real one would wait for ever.
    let unacknowledged = world.taken.values().any(|waits| *waits == raw);
    assert!(!unacknowledged, "an event of it is not acknowledged");
    world.part(raw);
    for channel in world.channels.values_mut() {
        channel.events.retain(|event| event.id != raw);
    }
    world.ids.remove(&raw);
    take_device(raw);
    // SAFETY: a box of new_id's; nobody uses it any more.
    drop(unsafe { Box::from_raw(id) });
    0
}

unsafe extern "C" fn destroy_ep(id: *mut sys::rdma_cm_id) {
    // SAFETY: as the caller says.
    unsafe { destroy_id(id) };
}

unsafe extern "C" fn migrate_id(
    id: *mut sys::rdma_cm_id,
    channel: *mut sys::rdma_event_channel,
) -> c_int {
    run("rdma_migrate_id", id, |world, raw| {
        let Some(own) = world.ids.get_mut(&raw) else {
            return fail(libc::EINVAL);
        };
        let before = std::mem::replace(&mut own.channel, channel as usize);
        let Some(left) = world.channels.get_mut(&before) else {
            return fail(libc::EINVAL);
        };
        let (moved, kept) = std::mem::take(&mut left.events)
            .into_iter()
            .partition(|event| event.id == raw);
        left.events = kept;
        for event in Vec::from(moved) {
            world.push(event);
        }
        0
    })
}

unsafe extern "C" fn get_cm_event(
    channel: *mut sys::rdma_event_channel,
    out: *mut *mut sys::rdma_cm_event,
) -> c_int {
    // SAFETY: the channel is alive.
    if !take_signal(unsafe { (*channel).fd }) {
        return -1;
    }
    let mut world = world::lock();
    let waiting = world.channels.get_mut(&(channel as usize));
    let Some(waiting) = waiting.and_then(|channel| channel.events.pop_front()) else {
        // Its identifier was destroyed meanwhile, or moved.
        return fail(libc::EAGAIN);
    };
    let owner = match waiting.listener {
        0 => waiting.id,
        listener => listener,
    };
    let mut taken = Box::new(Taken {
        event: sys::rdma_cm_event {
            id: waiting.id as *mut sys::rdma_cm_id,
            listen_id: waiting.listener as *mut sys::rdma_cm_id,
            event: waiting.kind,
            status: waiting.status,
            param: sys::rdma_cm_event__bindgen_ty_1 {
                conn: sys::rdma_conn_param::default(),
            },
        },
        private_data: waiting.private_data,
    });
    let (responder_resources, initiator_depth) = waiting.depths;
    taken.event.param.conn = sys::rdma_conn_param {
        private_data: taken.private_data.as_ptr().cast(),
        private_data_len: taken.private_data.len() as u8,
        responder_resources,
        initiator_depth,
        ..Default::default()
    };
    let raw: *mut sys::rdma_cm_event = Box::into_raw(taken).cast();
    world.taken.insert(raw as usize, owner);
    // SAFETY: the caller's out pointer.
    unsafe { *out = raw };
    0
}

unsafe extern "C" fn ack_cm_event(event: *mut sys::rdma_cm_event) -> c_int {
    let known = world::lock().taken.remove(&(event as usize));
    assert!(known.is_some(), "an event is acknowledged twice");
    // SAFETY: a box of get_cm_event's, whose first field the event is.
    drop(unsafe { Box::from_raw(event.cast::<Taken>()) });
    0
}

unsafe extern "C" fn event_str(_kind: sys::rdma_cm_event_type) -> *const c_char {
    c"an event of the mock connection manager".as_ptr()
}

unsafe extern "C" fn set_option(
    id: *mut sys::rdma_cm_id,
    _level: c_int,
    _option: c_int,
    _value: *mut c_void,
    _len: usize,
) -> c_int {
    run("rdma_set_option", id, |_, _| 0)
}

unsafe extern "C" fn bind_addr(id: *mut sys::rdma_cm_id, address: *mut sockaddr) -> c_int {
    // SAFETY: the caller's address.
    let Some(mut address) = (unsafe { read_address(address) }) else {
        return fail(libc::EAFNOSUPPORT);
    };
    let mut world = world::lock();
    if address.port() == 0 {
        address.set_port(world.free_port());
    }
    if world.listener(address).is_some() {
        return fail(libc::EADDRINUSE);
    }
    if let Some(own) = world.ids.get_mut(&(id as usize)) {
        own.address = Some(address);
    }
    // SAFETY: the caller's identifier, used by it alone.
    let field = unsafe { &raw mut (*id).route.addr.__bindgen_anon_1 };
    write_address(field.cast(), address);
    0
}

unsafe extern "C" fn listen(id: *mut sys::rdma_cm_id, _backlog: c_int) -> c_int {
    run("rdma_listen", id, |world, raw| {
        if let Some(own) = world.ids.get_mut(&raw) {
            own.state = State::Listening;
        }
        0
    })
}

unsafe extern "C" fn resolve_addr(
    id: *mut sys::rdma_cm_id,
    _source: *mut sockaddr,
    target: *mut sockaddr,
    _millis: c_int,
) -> c_int {
    // SAFETY: the caller's address.
    let Some(target) = (unsafe { read_address(target) }) else {
        return fail(libc::EAFNOSUPPORT);
    };
    if let Some(own) = world::lock().ids.get_mut(&(id as usize)) {
        own.address = Some(target);
    }
    // SAFETY: the caller's identifier, used by it alone.
    let field = unsafe { &raw mut (*id).route.addr.__bindgen_anon_2 };
    write_address(field.cast(), target);
    run("rdma_resolve_addr", id, |world, raw| {
        give_device(raw);
        world.push(Waiting::new(raw, sys::RDMA_CM_EVENT_ADDR_RESOLVED, 0));
        0
    })
}

unsafe extern "C" fn resolve_route(id: *mut sys::rdma_cm_id, _millis: c_int) -> c_int {
    run("rdma_resolve_route", id, |world, raw| {
        world.push(Waiting::new(raw, sys::RDMA_CM_EVENT_ROUTE_RESOLVED, 0));
        0
    })
}

/// # Safety
/// The parameters must be complete ones.
unsafe fn private_data(parameters: &sys::rdma_conn_param, field: usize) -> Vec<u8> {
    // SAFETY: as the caller says.
    unsafe { bytes(parameters.private_data, parameters.private_data_len, field) }
}

/// Bytes as they arrive in a field of the wire.
///
/// # Safety
/// There must be `len` of them.
unsafe fn bytes(start: *const c_void, len: u8, field: usize) -> Vec<u8> {
    let mut bytes = match len {
        0 => Vec::new(),
        // SAFETY: as the caller says.
        len => unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len.into()) }.to_vec(),
    };
    bytes.resize(field, 0);
    bytes
}

unsafe extern "C" fn connect(
    id: *mut sys::rdma_cm_id,
    parameters: *mut sys::rdma_conn_param,
) -> c_int {
    // SAFETY: the caller's.
    let parameters = unsafe { *parameters };
    // SAFETY: as above.
    let private_data = unsafe { private_data(&parameters, REQUEST_BYTES) };
    run("rdma_connect", id, |world, raw| {
        let Some(own) = world.ids.get_mut(&raw) else {
            return fail(libc::EINVAL);
        };
        own.qp_number = parameters.qp_num;
        own.state = State::Connecting;
        let Some(address) = own.address else {
            return fail(libc::EINVAL);
        };
        let Some(listener) = world.listener(address) else {
            let kind = sys::RDMA_CM_EVENT_REJECTED;
            world.push(Waiting::new(raw, kind, NOBODY_LISTENS));
            return 0;
        };
        let channel = world.ids[&listener].channel;
        let child = new_id(world, channel, State::Requested);
        give_device(child);
        let from = SocketAddr::new(address.ip(), world.free_port());
        if let Some(child) = world.ids.get_mut(&child) {
            (child.address, child.via) = (Some(from), Some(address));
        }
        let raw_child = child as *mut sys::rdma_cm_id;
        // SAFETY: made a moment ago, and known to nobody else.
        let field = unsafe { &raw mut (*raw_child).route.addr.__bindgen_anon_2 };
        write_address(field.cast(), from);
        for (one, other) in [(raw, child), (child, raw)] {
            if let Some(one) = world.ids.get_mut(&one) {
                one.peer = Some(other);
            }
        }
        world.push(Waiting {
            listener,
            private_data,
            // What one end has under way the other serves.
            depths: (parameters.initiator_depth, parameters.responder_resources),
            ..Waiting::new(child, sys::RDMA_CM_EVENT_CONNECT_REQUEST, 0)
        });
        0
    })
}

unsafe extern "C" fn accept(
    id: *mut sys::rdma_cm_id,
    parameters: *mut sys::rdma_conn_param,
) -> c_int {
    // SAFETY: the caller's.
    let parameters = unsafe { *parameters };
    // SAFETY: as above.
    let private_data = unsafe { private_data(&parameters, ACCEPTANCE_BYTES) };
    run("rdma_accept", id, |world, raw| {
        let Some(own) = world.ids.get_mut(&raw) else {
            return fail(libc::EINVAL);
        };
        let (Some(peer), State::Requested) = (own.peer, own.state) else {
            return fail(libc::EINVAL);
        };
        own.qp_number = parameters.qp_num;
        own.state = State::Connecting;
        world.push(Waiting {
            private_data,
            depths: (parameters.initiator_depth, parameters.responder_resources),
            ..Waiting::new(peer, sys::RDMA_CM_EVENT_CONNECT_RESPONSE, 0)
        });
        0
    })
}

unsafe extern "C" fn establish(id: *mut sys::rdma_cm_id) -> c_int {
    run("rdma_establish", id, |world, raw| {
        let Some(peer) = world.ids.get(&raw).and_then(|own| own.peer) else {
            return fail(libc::EINVAL);
        };
        for end in [raw, peer] {
            if let Some(end) = world.ids.get_mut(&end) {
                end.state = State::Connected;
            }
        }
        world.push(Waiting::new(peer, sys::RDMA_CM_EVENT_ESTABLISHED, 0));
        0
    })
}

unsafe extern "C" fn reject(id: *mut sys::rdma_cm_id, start: *const c_void, len: u8) -> c_int {
    // SAFETY: the caller's bytes.
    let private_data = unsafe { bytes(start, len, REJECTION_BYTES) };
    run("rdma_reject", id, |world, raw| {
        let Some(own) = world.ids.get_mut(&raw) else {
            return fail(libc::EINVAL);
        };
        own.state = State::New;
        let Some(peer) = own.peer.take() else {
            return fail(libc::EINVAL);
        };
        if let Some(there) = world.ids.get_mut(&peer) {
            there.peer = None;
        }
        world.push(Waiting {
            private_data,
            ..Waiting::new(peer, sys::RDMA_CM_EVENT_REJECTED, BY_APPLICATION)
        });
        0
    })
}

unsafe extern "C" fn disconnect(id: *mut sys::rdma_cm_id) -> c_int {
    run("rdma_disconnect", id, |world, raw| {
        let connected = |id: &Identifier| id.state == State::Connected;
        if !world.ids.get(&raw).is_some_and(connected) {
            return fail(libc::EINVAL);
        }
        world.part(raw);
        world.push(Waiting::new(raw, sys::RDMA_CM_EVENT_DISCONNECTED, 0));
        0
    })
}

unsafe extern "C" fn notify(_id: *mut sys::rdma_cm_id, _event: sys::ibv_event_type) -> c_int {
    0
}

fn port_of(id: *mut sys::rdma_cm_id) -> u16 {
    let world = world::lock();
    let address = world.ids.get(&(id as usize)).and_then(|own| own.address);
    address.map_or(0, |address| address.port().to_be())
}

unsafe extern "C" fn get_src_port(id: *mut sys::rdma_cm_id) -> u16 {
    port_of(id)
}

unsafe extern "C" fn get_dst_port(id: *mut sys::rdma_cm_id) -> u16 {
    port_of(id)
}

unsafe extern "C" fn init_qp_attr(
    id: *mut sys::rdma_cm_id,
    attributes: *mut sys::ibv_qp_attr,
    mask: *mut c_int,
) -> c_int {
    // SAFETY: the caller's structures.
    let (attributes, mask) = unsafe { (&mut *attributes, &mut *mask) };
    run("rdma_init_qp_attr", id, |world, raw| {
        let peer = world.ids.get(&raw).and_then(|own| own.peer);
        let Some(peer) = peer.and_then(|peer| world.ids.get(&peer)) else {
            return fail(libc::EINVAL);
        };
        let set = match attributes.qp_state {
            sys::IBV_QPS_INIT => {
                attributes.port_num = 1;
                sys::IBV_QP_PKEY_INDEX | sys::IBV_QP_PORT | sys::IBV_QP_ACCESS_FLAGS
            }
            sys::IBV_QPS_RTR => {
                attributes.dest_qp_num = peer.qp_number;
                attributes.path_mtu = sys::IBV_MTU_1024;
                sys::IBV_QP_AV
                    | sys::IBV_QP_PATH_MTU
                    | sys::IBV_QP_DEST_QPN
                    | sys::IBV_QP_RQ_PSN
                    | sys::IBV_QP_MAX_DEST_RD_ATOMIC
                    | sys::IBV_QP_MIN_RNR_TIMER
            }
            sys::IBV_QPS_RTS => {
                sys::IBV_QP_TIMEOUT
                    | sys::IBV_QP_RETRY_CNT
                    | sys::IBV_QP_RNR_RETRY
                    | sys::IBV_QP_SQ_PSN
                    | sys::IBV_QP_MAX_QP_RD_ATOMIC
            }
            _ => return fail(libc::EINVAL),
        };
        *mask = (sys::IBV_QP_STATE | set).cast_signed();
        0
    })
}
