//! Lines over a connection: bounded in length and in time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::Mutex;
use serde::Serialize;

use super::message::LONGEST;
use crate::security::{Fingerprint, ON_BOTH_OR_NEITHER, Stream, begins_tls, is_readable};

/// How long a line may take to be written before the other end counts as gone.
const WRITE: Duration = Duration::from_secs(5);
/// Each end says at least this often that it is there.
pub(super) const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// An end that was silent for this long is gone.
pub(super) const SILENT: Duration = Duration::from_secs(20);

/// A connection that one thread reads, and any thread writes to. Under TLS both share one state, so it is
/// locked while bytes are moved, and not while they are waited for.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Box<dyn Stream>>>);

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> io::Result<Wire> {
        stream.limit_read(SILENT)?;
        stream.limit_write(WRITE)?;
        Ok(Wire(Arc::new(Mutex::new(stream))))
    }

    pub(super) fn write(&self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.lock().write_all(&line)
    }

    /// Of the certificate that the other end showed.
    pub(super) fn peer(&self) -> Option<Fingerprint> {
        self.0.lock().peer()
    }

    /// Ends the connection: its reader finds that it has ended.
    pub(super) fn cut(&self) {
        let stream = self.0.lock();
        // It may have ended by itself.
        shutdown(stream.descriptor().as_raw_fd(), Shutdown::Both).ok();
    }
}

/// The one that reads.
pub(super) struct LineReader {
    wire: Wire,
    /// The same socket, to wait on while the wire is free for writers.
    socket: OwnedFd,
    /// What was read and not taken yet: from `taken` on.
    buffer: Vec<u8>,
    taken: usize,
}

impl LineReader {
    pub(super) fn new(wire: Wire) -> io::Result<LineReader> {
        let socket = wire.0.lock().descriptor().try_clone_to_owned()?;
        Ok(LineReader {
            wire,
            socket,
            buffer: Vec::new(),
            taken: 0,
        })
    }

    /// The next line without its end; `None` when the other end closed the connection.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        while line.len() <= LONGEST {
            if self.taken == self.buffer.len() && self.fill()? == 0 {
                return match line.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let available = &self.buffer[self.taken..];
            if line.is_empty() && begins_tls(available[0]) {
                let text = format!("it speaks TLS, this end does not: {ON_BOTH_OR_NEITHER}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let (taken, ended) = match available.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (available.len(), false),
            };
            line.extend_from_slice(&available[..taken]);
            self.taken += taken;
            if ended {
                line.pop();
                return Ok(Some(line));
            }
        }
        let text = format!("it sent a line of more than {LONGEST} bytes");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }

    /// Waits for bytes; how many came, 0 at the end of the connection.
    fn fill(&mut self) -> io::Result<usize> {
        const CHUNK: usize = 4096;
        self.taken = 0;
        self.buffer.resize(CHUNK, 0);
        let outcome = self.read();
        self.buffer.truncate(*outcome.as_ref().unwrap_or(&0));
        outcome
    }

    fn read(&mut self) -> io::Result<usize> {
        let deadline = Instant::now() + SILENT;
        loop {
            {
                let mut stream = self.wire.0.lock();
                if stream.is_ready()? {
                    match stream.read(&mut self.buffer) {
                        Err(error) if is_passing(&error) => {}
                        outcome => return outcome,
                    }
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("it said nothing for {} s", SILENT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            is_readable(self.socket.as_fd(), wait)?;
        }
    }
}

/// Whether to try again: what was readable was no whole record.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn reader(says: &[u8]) -> LineReader {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut theirs =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (ours, _) = listener.accept().expect("accepted");
        theirs.write_all(says).expect("written");
        let wire = Wire::new(Box::new(ours)).expect("a wire");
        LineReader::new(wire).expect("a reader")
    }

    #[test]
    fn lines_come_one_by_one_and_the_end_is_told_from_a_cut() {
        let mut lines = reader(b"one\n\ntwo\n");
        assert_eq!(lines.next().expect("a line"), Some(b"one".to_vec()));
        assert_eq!(lines.next().expect("a line"), Some(Vec::new()));
        assert_eq!(lines.next().expect("a line"), Some(b"two".to_vec()));
        assert_eq!(lines.next().expect("closed"), None);
        assert!(reader(b"half").next().is_err());
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let error = reader(&vec![b'x'; 2 * LONGEST])
            .next()
            .expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_end_that_speaks_tls_is_told_what_to_do_at_once() {
        let error = reader(&[0x16, 3, 1]).next().expect_err("no line");
        assert!(error.to_string().contains("--tls-certificate"), "{error}");
    }
}
