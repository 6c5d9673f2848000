//! A disk operation from its request to its answer, continued as often as the kernel is short.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use futures::channel::oneshot;
use io_uring::{opcode, squeue, types};

use super::buffers::Buffers;
use crate::slab::Lease;

/// A lease that comes back with the result of its operation.
type Answer<T> = oneshot::Receiver<(Lease, io::Result<T>)>;

/// The most that one operation asks of the kernel, which caps a count at 2 GiB less a page.
const MAX_OPERATION_BYTES: usize = 1 << 30;

/// O_DIRECT counts are multiples of a sector, at least this many bytes, except at the file's end.
const SECTOR_BYTES: usize = 512;

/// One request, and who waits for it. Owns the buffer and the file until it is answered.
pub(crate) struct Transfer {
    file: Arc<File>,
    kind: Kind,
}

enum Kind {
    Read {
        span: Span,
        reply: oneshot::Sender<(Lease, io::Result<usize>)>,
    },
    Write {
        span: Span<Arc<Lease>>,
        reply: oneshot::Sender<io::Result<()>>,
    },
    Fdatasync {
        reply: oneshot::Sender<io::Result<()>>,
    },
}

/// The bytes of a lease and of a file that meet, and how many have. A lease that is only read from
/// may be shared.
pub(super) struct Span<L = Lease> {
    pub(super) lease: L,
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) offset: u64,
    pub(super) done: usize,
}

/// Whether `at..at + len` lies inside the lease.
pub(super) fn check_range(lease: &Lease, at: usize, len: usize) -> io::Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= lease.len() => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{len} bytes at {at} lie outside a slot of {} bytes",
                lease.len()
            ),
        )),
    }
}

impl Transfer {
    /// A read, and where its answer arrives. The channel is one small allocation an operation.
    pub(super) fn read(
        file: Arc<File>,
        offset: u64,
        lease: Lease,
        at: usize,
        len: usize,
    ) -> (Transfer, Answer<usize>) {
        let (reply, answer) = oneshot::channel();
        let span = Span {
            lease,
            at,
            len,
            offset,
            done: 0,
        };
        (
            Transfer {
                file,
                kind: Kind::Read { span, reply },
            },
            answer,
        )
    }

    /// A write, and where its answer arrives. Its share of the lease is given back before that.
    pub(super) fn write(
        file: Arc<File>,
        offset: u64,
        lease: Arc<Lease>,
        at: usize,
        len: usize,
    ) -> (Transfer, oneshot::Receiver<io::Result<()>>) {
        let (reply, answer) = oneshot::channel();
        let span = Span {
            lease,
            at,
            len,
            offset,
            done: 0,
        };
        (
            Transfer {
                file,
                kind: Kind::Write { span, reply },
            },
            answer,
        )
    }

    /// A durability request, and where its answer arrives.
    pub(super) fn fdatasync(file: Arc<File>) -> (Transfer, oneshot::Receiver<io::Result<()>>) {
        let (reply, answer) = oneshot::channel();
        (
            Transfer {
                file,
                kind: Kind::Fdatasync { reply },
            },
            answer,
        )
    }

    /// The operation that brings this transfer further.
    pub(super) fn entry(&mut self, buffers: &Buffers) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        match &mut self.kind {
            Kind::Read { span, .. } => {
                let (at, len, offset) = span.rest();
                // The pointer stays inside the slot: the range was checked by `check_range`.
                let start = span.lease.start().wrapping_add(at);
                match buffers.index_of(&span.lease, at) {
                    Some(index) => opcode::ReadFixed::new(fd, start, len, index)
                        .offset(offset)
                        .build(),
                    None => opcode::Read::new(fd, start, len).offset(offset).build(),
                }
            }
            Kind::Write { span, .. } => {
                let (at, len, offset) = span.rest();
                let start = span.lease.start().wrapping_add(at);
                match buffers.index_of(&span.lease, at) {
                    Some(index) => opcode::WriteFixed::new(fd, start, len, index)
                        .offset(offset)
                        .build(),
                    None => opcode::Write::new(fd, start, len).offset(offset).build(),
                }
            }
            Kind::Fdatasync { .. } => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
    }

    /// Takes an operation's result. Gives the transfer back if it needs another one, else answers
    /// whoever waits; if nobody does any more, the lease returns to its slab here.
    pub(super) fn advance(mut self, result: i32) -> Option<Transfer> {
        if result == -libc::EINTR {
            return Some(self);
        }
        match self.kind {
            Kind::Read { mut span, reply } => {
                let outcome = match io_result(result) {
                    Ok(count) => {
                        let short = span.is_short(count, &self.file);
                        span.done += count;
                        if short {
                            self.kind = Kind::Read { span, reply };
                            return Some(self);
                        }
                        Ok(span.done)
                    }
                    Err(error) => Err(error),
                };
                let _ = reply.send((span.lease, outcome));
            }
            Kind::Write { mut span, reply } => {
                let outcome = match io_result(result) {
                    Ok(0) if span.done < span.len => Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        span.done += count;
                        if span.done < span.len {
                            self.kind = Kind::Write { span, reply };
                            return Some(self);
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                drop(span);
                let _ = reply.send(outcome);
            }
            Kind::Fdatasync { reply } => {
                let _ = reply.send(io_result(result).map(|_| ()));
            }
        }
        None
    }
}

impl<L> Span<L> {
    /// Whether a read that brought so many bytes more has some left to bring: neither all came, nor
    /// did the file end.
    #[inline]
    pub(super) fn is_short(&self, count: usize, file: &File) -> bool {
        let done = self.done + count;
        done < self.len && count > 0 && (done.is_multiple_of(SECTOR_BYTES) || !is_direct(file))
    }

    /// Where in the slot, how many bytes, where in the file.
    #[inline]
    pub(super) fn rest(&self) -> (usize, u32, u64) {
        let len = (self.len - self.done).min(MAX_OPERATION_BYTES);
        (
            self.at + self.done,
            len as u32,
            self.offset + self.done as u64,
        )
    }
}

/// The count or the error that an operation's result stands for.
pub(super) fn io_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Whether the file bypasses the page cache: a count that is no multiple of a sector is then the
/// file's end, and asking for the rest from there would be EINVAL.
fn is_direct(file: &File) -> bool {
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL)
        .is_ok_and(|flags| flags & libc::O_DIRECT != 0)
}
