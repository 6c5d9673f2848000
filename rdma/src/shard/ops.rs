//! Socket and timer operations for tasks on the shard's thread: one typed function an operation.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{opcode, types};
use socket2::SockAddr;

use super::ring::{Ring, Socket, fd_of};
use super::transfer::{check_range, io_result};
use crate::slab::Lease;

/// What an operation owns while the kernel works on it.
pub(super) enum Held {
    Nothing,
    Socket(#[expect(dead_code, reason = "kept open, not looked at")] Socket),
    Accept(#[expect(dead_code, reason = "kept open, not looked at")] Socket),
    Connect(#[expect(dead_code, reason = "kept, not looked at")] Box<(Socket, SockAddr)>),
    Lease(
        Lease,
        #[expect(dead_code, reason = "kept open, not looked at")] Socket,
    ),
    Bytes(
        Box<[u8]>,
        #[expect(dead_code, reason = "kept open, not looked at")] Socket,
    ),
    Message(
        Box<Message>,
        #[expect(dead_code, reason = "kept open, not looked at")] Socket,
    ),
    Timer(#[expect(dead_code, reason = "read by the kernel")] Box<types::Timespec>),
}

impl Held {
    /// Ends an operation nobody waits for any more.
    pub(super) fn discard(self, result: i32) {
        if let (Held::Accept(_), Ok(fd)) = (&self, u32::try_from(result)) {
            // SAFETY: a successful accept made this descriptor for us, and nobody else learnt of it.
            drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        }
    }
}

/// Bytes to send in one operation: a head of its own, then up to two pieces of a lease.
pub(crate) struct Message {
    head: Vec<u8>,
    body: Option<Body>,
    sent: usize,
    parts: [libc::iovec; 3],
    header: libc::msghdr,
}

struct Body {
    lease: Lease,
    /// Start and length of each piece.
    pieces: [(usize, usize); 2],
}

impl Message {
    /// A head alone.
    pub(crate) fn new(head: Vec<u8>) -> Box<Message> {
        Box::new(Message {
            head,
            body: None,
            sent: 0,
            parts: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; 3],
            // SAFETY: a msghdr of zeroes is valid: no name, no parts, no control data.
            header: unsafe { std::mem::zeroed() },
        })
    }

    /// A head followed by two pieces of a lease, each given by its start and length.
    pub(crate) fn with_body(
        head: Vec<u8>,
        lease: Lease,
        pieces: [(usize, usize); 2],
    ) -> io::Result<Box<Message>> {
        for (at, len) in pieces {
            check_range(&lease, at, len)?;
        }
        let mut message = Message::new(head);
        message.body = Some(Body { lease, pieces });
        Ok(message)
    }

    fn len(&self) -> usize {
        let body = self
            .body
            .as_ref()
            .map_or(0, |body| body.pieces.iter().map(|(_, len)| len).sum());
        self.head.len() + body
    }

    /// Points the parts at what is still to be sent.
    fn point(&mut self) -> *const libc::msghdr {
        let mut skip = self.sent;
        let mut count = 0;
        let mut add = |start: *mut u8, len: usize| {
            let skipped = skip.min(len);
            skip -= skipped;
            if len > skipped {
                self.parts[count] = libc::iovec {
                    iov_base: start.wrapping_add(skipped).cast(),
                    iov_len: len - skipped,
                };
                count += 1;
            }
        };
        add(self.head.as_mut_ptr(), self.head.len());
        if let Some(body) = &self.body {
            for (at, len) in body.pieces {
                add(body.lease.start().wrapping_add(at), len);
            }
        }
        self.header.msg_iov = self.parts.as_mut_ptr();
        self.header.msg_iovlen = count as _;
        &raw const self.header
    }
}

impl Ring {
    /// Takes the next connection to a listening socket.
    pub(crate) async fn accept(self: &Rc<Self>, listener: &Socket) -> io::Result<OwnedFd> {
        let entry =
            opcode::Accept::new(fd_of(listener), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build();
        // SAFETY: the entry refers to the socket alone, which is held.
        let pending = unsafe { self.start(entry, Held::Accept(Arc::clone(listener))) };
        let (_, result) = pending.await;
        let fd = io_result(result)?;
        // SAFETY: a successful accept made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Connects a socket.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        socket: &Socket,
        address: SockAddr,
    ) -> io::Result<()> {
        let held = Box::new((Arc::clone(socket), address));
        let entry =
            opcode::Connect::new(fd_of(socket), held.1.as_ptr().cast(), held.1.len()).build();
        // SAFETY: the entry refers to the socket and the address, which lie in the box.
        let pending = unsafe { self.start(entry, Held::Connect(held)) };
        let (_, result) = pending.await;
        io_result(result).map(|_| ())
    }

    /// Receives exactly `len` bytes into the lease from byte `at`; fewer only at the end of the
    /// stream.
    pub(crate) async fn receive(
        self: &Rc<Self>,
        socket: &Socket,
        mut lease: Lease,
        at: usize,
        len: usize,
    ) -> (Lease, io::Result<usize>) {
        if let Err(error) = check_range(&lease, at, len) {
            return (lease, Err(error));
        }
        let mut done = 0;
        while done < len {
            let entry = opcode::Recv::new(
                fd_of(socket),
                lease.start().wrapping_add(at + done),
                u32::try_from(len - done).unwrap_or(u32::MAX),
            )
            .flags(libc::MSG_WAITALL)
            .build();
            // SAFETY: the entry refers to the lease's slot, inside which the range was found to
            // lie, and to the socket; both are held.
            let pending = unsafe { self.start(entry, Held::Lease(lease, Arc::clone(socket))) };
            let (held, result) = pending.await;
            let Held::Lease(back, _) = held else {
                unreachable!("what was held comes back")
            };
            lease = back;
            match io_result(result) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (lease, Err(error)),
            }
        }
        (lease, Ok(done))
    }

    /// Receives until the buffer is full; fewer bytes only at the end of the stream.
    pub(crate) async fn receive_bytes(
        self: &Rc<Self>,
        socket: &Socket,
        mut bytes: Box<[u8]>,
        len: usize,
    ) -> (Box<[u8]>, io::Result<usize>) {
        let len = len.min(bytes.len());
        let mut done = 0;
        while done < len {
            let rest = &mut bytes[done..len];
            let entry = opcode::Recv::new(fd_of(socket), rest.as_mut_ptr(), rest.len() as u32)
                .flags(libc::MSG_WAITALL)
                .build();
            // SAFETY: the entry refers to the boxed bytes and to the socket; both are held.
            let pending = unsafe { self.start(entry, Held::Bytes(bytes, Arc::clone(socket))) };
            let (held, result) = pending.await;
            let Held::Bytes(back, _) = held else {
                unreachable!("what was held comes back")
            };
            bytes = back;
            match io_result(result) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (bytes, Err(error)),
            }
        }
        (bytes, Ok(done))
    }

    /// Sends all of a message. Its lease, if any, returns to its slab afterwards.
    pub(crate) async fn send(
        self: &Rc<Self>,
        socket: &Socket,
        mut message: Box<Message>,
    ) -> io::Result<()> {
        while message.sent < message.len() {
            let header = message.point();
            let entry = opcode::SendMsg::new(fd_of(socket), header)
                .flags((libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32)
                .build();
            // SAFETY: the entry refers to the boxed message: its header, the parts it points to,
            // and through them its head and its lease's slot; and to the socket. All are held.
            let pending = unsafe { self.start(entry, Held::Message(message, Arc::clone(socket))) };
            let (held, result) = pending.await;
            let Held::Message(back, _) = held else {
                unreachable!("what was held comes back")
            };
            message = back;
            match io_result(result) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => message.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until a descriptor can be read.
    pub(crate) async fn readable(self: &Rc<Self>, socket: &Socket) -> io::Result<()> {
        let entry = opcode::PollAdd::new(fd_of(socket), libc::POLLIN as u32).build();
        // SAFETY: the entry refers to the descriptor alone, which is held.
        let pending = unsafe { self.start(entry, Held::Socket(Arc::clone(socket))) };
        let (_, result) = pending.await;
        io_result(result).map(|_| ())
    }

    /// Waits for a time.
    pub(crate) async fn sleep(self: &Rc<Self>, time: Duration) {
        let time = Box::new(types::Timespec::from(time));
        let entry = opcode::Timeout::new(&raw const *time).build();
        // SAFETY: the entry refers to the boxed time, which is held.
        let pending = unsafe { self.start(entry, Held::Timer(time)) };
        // ETIME is how an elapsed timer reports.
        pending.await;
    }
}
