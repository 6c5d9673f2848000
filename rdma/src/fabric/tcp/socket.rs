//! Data sockets: large buffers, no delay, and an end to peers that went silent.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Kernel buffer of each direction, so that a chunk is on its way while the next is read.
const BUFFER_BYTES: usize = 4 << 20;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening data socket.
pub(super) fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    enlarge_buffers(&socket);
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A data socket to be connected.
pub(super) fn outgoing(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    enlarge_buffers(&socket);
    Ok(socket)
}

/// Prepares a connected socket: requests go at once, and a peer that acknowledges nothing for
/// `patience`, or doesn't read for that long, ends the connection.
pub(super) fn prepare(socket: &impl AsFd, patience: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(patience))?;
    let probe = (patience / 4).max(Duration::from_secs(1));
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(probe)
            .with_interval(probe)
            .with_retries(3),
    )
}

/// Asks for large buffers. A fixed size below what the kernel would tune to is worse than none, so
/// it is only set where the system's limit can be passed (CAP_NET_ADMIN).
fn enlarge_buffers(socket: &Socket) {
    let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES);
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES);
}
