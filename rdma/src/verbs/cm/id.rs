//! A communication identifier of librdmacm with an event channel of its own, released in the one
//! right order.

use std::ffi::c_void;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

use socket2::SockAddr;

use super::error::ConnectError;
use super::private_data::PrivateData;
use crate::sys::{self, ConnectionManager};
use crate::verbs::event::set_blocking;
use crate::verbs::{Context, Gid};

/// An event, copied out of librdmacm's and acknowledged.
///
/// Each is acknowledged when it is taken, as destroying an identifier waits for the acknowledgement of
/// all its events that were taken: none can be left over to wait for.
pub(super) struct CmEvent {
    pub(super) kind: sys::rdma_cm_event_type,
    pub(super) status: i32,
    pub(super) private_data: PrivateData,
    /// What the peer wants of our end: reads and atomics to serve at a time, and to have under way.
    pub(super) responder_resources: u8,
    pub(super) initiator_depth: u8,
    request: Option<Request>,
}

/// The identifier of a connection request that nobody has taken over; dropping it rejects the request.
struct Request {
    raw: NonNull<sys::rdma_cm_id>,
    library: &'static ConnectionManager,
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: it came with an event that is acknowledged, nobody else knows it, and the listener's
        // channel, which it still uses, outlives the event.
        unsafe { (self.library.destroy_id)(self.raw.as_ptr()) };
    }
}

impl CmEvent {
    /// The negative errno that most events carry.
    pub(super) fn error(&self) -> io::Error {
        match self.status {
            0 => io::Error::other("no reason was given"),
            status => io::Error::from_raw_os_error(status.saturating_abs()),
        }
    }
}

/// An event channel: the queue of events, with a descriptor that does not block.
struct Channel {
    raw: NonNull<sys::rdma_event_channel>,
    library: &'static ConnectionManager,
}

impl Channel {
    fn new(
        library: &'static ConnectionManager,
        address: SocketAddr,
    ) -> Result<Channel, ConnectError> {
        let failed = |call, source| ConnectError::Call {
            call,
            address,
            source,
        };
        // SAFETY: takes no arguments.
        let raw = unsafe { (library.create_event_channel)() };
        let raw = NonNull::new(raw)
            .ok_or_else(|| failed("rdma_create_event_channel", io::Error::last_os_error()))?;
        let channel = Channel { raw, library };
        set_blocking(channel.descriptor().as_raw_fd(), false)
            .map_err(|error| failed("fcntl", error))?;
        Ok(channel)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and with it its descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: the identifier on it was destroyed before: see the fields of `Id`.
        unsafe { (self.library.destroy_event_channel)(self.raw.as_ptr()) };
    }
}

/// A communication identifier. It never has a queue pair of its own.
pub(super) struct Id {
    raw: NonNull<sys::rdma_cm_id>,
    library: &'static ConnectionManager,
    /// The peer's address or, of a listener, our own: for what errors say.
    address: SocketAddr,
    // Dropped after `Drop::drop` has destroyed the identifier.
    channel: Channel,
}

// SAFETY: librdmacm's functions may be called from any thread; an identifier and its channel are used
// by the one owner of this value.
unsafe impl Send for Id {}

impl Id {
    /// Makes one, on a channel of its own.
    pub(super) fn new(
        library: &'static ConnectionManager,
        address: SocketAddr,
    ) -> Result<Id, ConnectError> {
        let channel = Channel::new(library, address)?;
        let mut raw = null_mut();
        // SAFETY: the channel is open; the out pointer is ours.
        let code = unsafe {
            (library.create_id)(channel.raw.as_ptr(), &mut raw, null_mut(), sys::RDMA_PS_TCP)
        };
        let source = io::Error::last_os_error();
        match NonNull::new(raw) {
            Some(raw) if code == 0 => Ok(Id {
                raw,
                library,
                address,
                channel,
            }),
            _ => Err(ConnectError::Call {
                call: "rdma_create_id",
                address,
                source,
            }),
        }
    }

    /// Takes the identifier of a connection request over, onto a channel of its own.
    pub(super) fn of_request(&self, event: &mut CmEvent) -> Result<Option<Id>, ConnectError> {
        let Some(request) = event.request.take() else {
            return Ok(None);
        };
        let channel = Channel::new(self.library, self.address)?;
        let raw = request.raw;
        std::mem::forget(request);
        // SAFETY: both are alive; all events of the identifier that were taken are acknowledged, so
        // this does not wait.
        let code = unsafe { (self.library.migrate_id)(raw.as_ptr(), channel.raw.as_ptr()) };
        let source = io::Error::last_os_error();
        let mut id = Id {
            raw,
            library: self.library,
            address: self.address,
            channel,
        };
        if code != 0 {
            return Err(id.failure("rdma_migrate_id", source));
        }
        if let Some(peer) = id.peer_address() {
            id.address = peer;
        }
        Ok(Some(id))
    }

    /// The address that errors name.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn library(&self) -> &'static ConnectionManager {
        self.library
    }

    /// Becomes readable when there is an event to take.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.channel.descriptor()
    }

    /// Takes the next event that is of this identifier, or a request to it, if there is one. Others are
    /// of connections that were asked for here and are over: a request comes with an identifier of its
    /// own, which shares this channel until somebody takes it over.
    pub(super) fn next_event(&mut self) -> Result<Option<CmEvent>, ConnectError> {
        while let Some((event, own)) = self.take_event()? {
            if own {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Takes the next event of the channel; with it, whether it is for this identifier.
    fn take_event(&mut self) -> Result<Option<(CmEvent, bool)>, ConnectError> {
        let mut raw = null_mut();
        // SAFETY: the channel is ours alone and doesn't block; the out pointer is ours.
        let code = unsafe { (self.library.get_cm_event)(self.channel.raw.as_ptr(), &mut raw) };
        if code != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(self.failure("rdma_get_cm_event", error)),
            };
        }
        // SAFETY: an event was taken; it lives until it is acknowledged below.
        let event = unsafe { copy(raw, self.library) };
        // SAFETY: as above.
        let about = unsafe { raw.as_ref() }.map(|event| match event.event {
            sys::RDMA_CM_EVENT_CONNECT_REQUEST => event.listen_id,
            _ => event.id,
        });
        // SAFETY: taken a moment ago, and not used any more.
        unsafe { (self.library.ack_cm_event)(raw) };
        Ok(event.map(|event| (event, about == Some(self.raw.as_ptr()))))
    }

    /// Calls a function of librdmacm that returns 0 or sets errno.
    pub(super) fn call(
        &mut self,
        name: &'static str,
        function: impl FnOnce(&'static ConnectionManager, *mut sys::rdma_cm_id) -> i32,
    ) -> Result<(), ConnectError> {
        match function(self.library, self.raw.as_ptr()) {
            0 => Ok(()),
            // Almost all set errno; some return it, in one sign or the other.
            -1 => Err(self.failure(name, io::Error::last_os_error())),
            code => {
                let source = io::Error::from_raw_os_error(code.saturating_abs());
                Err(self.failure(name, source))
            }
        }
    }

    pub(super) fn failure(&self, call: &'static str, source: io::Error) -> ConnectError {
        ConnectError::Call {
            call,
            address: self.address,
            source,
        }
    }

    /// Sets the traffic class of what is to be connected.
    pub(super) fn set_traffic_class(&mut self, class: u8) -> Result<(), ConnectError> {
        let mut class = class;
        self.call("rdma_set_option", |library, id| {
            let (level, option) = (sys::RDMA_OPTION_ID, sys::RDMA_OPTION_ID_TOS);
            let value = (&raw mut class).cast::<c_void>();
            // SAFETY: the identifier is alive; the option is one byte, and copied.
            unsafe { (library.set_option)(id, level as i32, option as i32, value, 1) }
        })
    }

    /// The attributes with which a queue pair goes to that state.
    pub(super) fn queue_pair_attributes(
        &mut self,
        state: sys::ibv_qp_state,
    ) -> Result<(sys::ibv_qp_attr, u32), ConnectError> {
        let mut attributes = sys::ibv_qp_attr {
            qp_state: state,
            ..Default::default()
        };
        let mut mask = 0;
        let name = "rdma_init_qp_attr";
        let init_qp_attr = self
            .library
            .init_qp_attr
            .ok_or(ConnectError::TooOld(name))?;
        self.call(name, |_, id| {
            // SAFETY: the identifier is alive, the structures are ours.
            unsafe { init_qp_attr(id, &mut attributes, &mut mask) }
        })?;
        // Bits above the last that ibv_modify_qp knows are the kernel's own.
        let known = (sys::IBV_QP_DEST_QPN << 1) - 1;
        Ok((attributes, mask.cast_unsigned() & known))
    }

    /// Whether a device was found for it, which has a name, a GUID and a port.
    pub(super) fn device(&self) -> Option<Device> {
        // SAFETY: the identifier is alive; librdmacm sets these fields before it hands out the event
        // that says so, and keeps the device open.
        unsafe {
            let id = self.raw.as_ref();
            let context = id.verbs.as_ref()?;
            let name = std::ffi::CStr::from_ptr((*context.device).name.as_ptr());
            Some(Device {
                name: name.to_string_lossy().into_owned(),
                port: id.port_num,
                gid: Gid(id.route.addr.addr.ibaddr.sgid.raw),
            })
        }
    }

    /// Our own address, as far as it is known.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is alive; the field has the size of any address.
        let storage = unsafe {
            *self
                .raw
                .as_ref()
                .route
                .addr
                .__bindgen_anon_1
                .src_storage
                .as_ref()
        };
        decode_address(&storage)
    }

    /// The peer's address, as far as it is known.
    pub(super) fn peer_address(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        let storage = unsafe {
            *self
                .raw
                .as_ref()
                .route
                .addr
                .__bindgen_anon_2
                .dst_storage
                .as_ref()
        };
        decode_address(&storage)
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again; every event that was taken is acknowledged, so this does
        // not wait. Events that were not taken go with it.
        unsafe { (self.library.destroy_id)(self.raw.as_ptr()) };
    }
}

/// The device that leads to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) port: u8,
    pub(super) gid: Gid,
}

impl Device {
    /// Whether our context is of this device.
    pub(super) fn is_of(&self, context: &Context) -> bool {
        self.name == context.name()
    }
}

/// # Safety
/// `raw` must be an event that was taken and not acknowledged yet.
unsafe fn copy(
    raw: *mut sys::rdma_cm_event,
    library: &'static ConnectionManager,
) -> Option<CmEvent> {
    // SAFETY: the caller vouches for it.
    let event = unsafe { raw.as_ref() }?;
    let mut copied = CmEvent {
        kind: event.event,
        status: event.status,
        private_data: PrivateData::default(),
        responder_resources: 0,
        initiator_depth: 0,
        request: None,
    };
    if !matches!(
        event.event,
        sys::RDMA_CM_EVENT_CONNECT_REQUEST
            | sys::RDMA_CM_EVENT_CONNECT_RESPONSE
            | sys::RDMA_CM_EVENT_ESTABLISHED
            | sys::RDMA_CM_EVENT_REJECTED
    ) {
        return Some(copied);
    }
    // SAFETY: these events, of an identifier for connections, carry connection parameters.
    let parameters = unsafe { &event.param.conn };
    copied.responder_resources = parameters.responder_resources;
    copied.initiator_depth = parameters.initiator_depth;
    let len = usize::from(parameters.private_data_len);
    if len > 0 && !parameters.private_data.is_null() {
        // SAFETY: librdmacm points at that many bytes within the event.
        let bytes = unsafe { std::slice::from_raw_parts(parameters.private_data.cast(), len) };
        copied.private_data = PrivateData::arrived(bytes);
    }
    if event.event == sys::RDMA_CM_EVENT_CONNECT_REQUEST {
        copied.request = NonNull::new(event.id).map(|raw| Request { raw, library });
    }
    Some(copied)
}

/// An address for librdmacm, which takes it mutable and only reads it.
pub(super) fn encode_address(address: SocketAddr) -> SockAddr {
    SockAddr::from(address)
}

fn decode_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage: *const libc::sockaddr_storage = storage;
    // SAFETY: the storage is large enough for either, aligned for both, and all their bit patterns are
    // valid; which one it holds is what the family says.
    unsafe {
        match i32::from((*storage).ss_family) {
            libc::AF_INET => {
                let ipv4 = &*storage.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(ipv4.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(ipv4.sin_port)))
            }
            libc::AF_INET6 => {
                let ipv6 = &*storage.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(ipv6.sin6_addr.s6_addr);
                Some(SocketAddr::new(
                    IpAddr::V6(ip),
                    u16::from_be(ipv6.sin6_port),
                ))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for address in ["10.1.2.3:7174", "[fd00::1:2]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            let encoded = encode_address(address);
            // SAFETY: all bytes of it are initialised.
            let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
            // SAFETY: an encoded address is never longer than the storage.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    encoded.as_ptr().cast::<u8>(),
                    (&raw mut storage).cast::<u8>(),
                    encoded.len() as usize,
                );
            }
            assert_eq!(decode_address(&storage), Some(address));
        }
        // SAFETY: plain integers.
        assert_eq!(decode_address(&unsafe { std::mem::zeroed() }), None);
    }
}
