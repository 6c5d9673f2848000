//! A byte stream between two processes, whatever is below it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Fingerprint;

/// A byte stream whose reads can be given a time limit.
pub(crate) trait Stream: Read + Write + Send {
    fn limit_read(&self, limit: Duration) -> io::Result<()>;
    fn limit_write(&self, limit: Duration) -> io::Result<()>;
    /// Whether a read would give something, or an end, at once.
    fn is_ready(&mut self) -> io::Result<bool>;
    /// Becomes readable when something comes.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// Of the certificate that the other end showed; `None` where none was asked for.
    fn peer(&self) -> Option<Fingerprint>;
}

macro_rules! plain_stream {
    ($socket:ty) => {
        impl Stream for $socket {
            fn limit_read(&self, limit: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(limit))
            }
            fn limit_write(&self, limit: Duration) -> io::Result<()> {
                self.set_write_timeout(Some(limit))
            }
            fn is_ready(&mut self) -> io::Result<bool> {
                is_readable(self.as_fd(), PollTimeout::ZERO)
            }
            fn descriptor(&self) -> BorrowedFd<'_> {
                self.as_fd()
            }
            fn peer(&self) -> Option<Fingerprint> {
                None
            }
        }
    };
}
plain_stream!(TcpStream);
plain_stream!(UnixStream);

/// Whether a descriptor can be read from, now or within a time.
pub(crate) fn is_readable(
    descriptor: BorrowedFd<'_>,
    within: impl Into<PollTimeout>,
) -> io::Result<bool> {
    let mut interest = [PollFd::new(descriptor, PollFlags::POLLIN)];
    match poll(&mut interest, within) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
