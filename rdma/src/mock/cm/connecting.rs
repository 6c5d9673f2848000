//! The calls that make a connection and end it.

use std::ffi::{c_int, c_void};
use std::net::SocketAddr;

use super::calls::run;
use super::identifiers::{give_device, new_id, write_address};
use super::world::{Identifier, State, Waiting};
use crate::mock::calls::fail;
use crate::sys;

/// What the fields of the wire are long: what arrives is padded with zeros.
const REQUEST_BYTES: usize = 56;
const ACCEPTANCE_BYTES: usize = 196;
const REJECTION_BYTES: usize = 148;
/// The code of a rejection where nobody listens.
const NOBODY_LISTENS: i32 = 8;
const BY_APPLICATION: i32 = 28;

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

pub(super) unsafe extern "C" fn connect(
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

pub(super) unsafe extern "C" fn accept(
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

pub(super) unsafe extern "C" fn establish(id: *mut sys::rdma_cm_id) -> c_int {
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

pub(super) unsafe extern "C" fn reject(
    id: *mut sys::rdma_cm_id,
    start: *const c_void,
    len: u8,
) -> c_int {
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

pub(super) unsafe extern "C" fn disconnect(id: *mut sys::rdma_cm_id) -> c_int {
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

pub(super) unsafe extern "C" fn init_qp_attr(
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
