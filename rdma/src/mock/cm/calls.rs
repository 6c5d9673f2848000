//! The functions of the mock connection manager, as C sees them: channels, identifiers, events, addresses.
//! Each structure handed out is a leaked box that its destroying call frees.

use std::ffi::{c_char, c_int, c_void};

use libc::sockaddr;

use super::Answer;
use super::connecting::{accept, connect, disconnect, establish, init_qp_attr, reject};
use super::identifiers::{give_device, new_id, read_address, take_device, write_address};
use super::world::{self, Channel, State, Waiting, World};
use crate::mock::calls::{fail, take_signal};
use crate::sys::{self, ConnectionManager};

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
pub(super) fn run(
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
