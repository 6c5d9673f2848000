//! Identifiers as their users hold them: their addresses, and the devices that lead there.

use std::net::SocketAddr;
use std::ptr::null_mut;

use libc::sockaddr;
use socket2::{SockAddr, SockAddrStorage};

use super::world::{Identifier, State, World};
use crate::mock::devices::gid;
use crate::sys;

/// # Safety
/// The pointer must be to a complete IPv4 or IPv6 address.
pub(super) unsafe fn read_address(raw: *const sockaddr) -> Option<SocketAddr> {
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
pub(super) fn write_address(to: *mut u8, address: SocketAddr) {
    let encoded = SockAddr::from(address);
    // SAFETY: the field is as large as any address.
    unsafe {
        std::ptr::copy_nonoverlapping(encoded.as_ptr().cast(), to, encoded.len() as usize);
    }
}

/// Gives an identifier its device, as if one had been found for its address.
pub(super) fn give_device(id: usize) {
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

/// Makes an identifier on a channel.
pub(super) fn new_id(world: &mut World, channel: usize, state: State) -> usize {
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
