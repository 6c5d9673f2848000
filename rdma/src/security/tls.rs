//! A connection over TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use rustls::{CertificateError, Connection};

use super::{Fingerprint, HandshakeError, ON_BOTH_OR_NEITHER, Stream, is_readable};

/// How long both ends may take to show each other who they are.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection over TLS. Each read takes at most one read of the socket, so that its caller keeps to
/// its deadline.
struct TlsStream {
    connection: Connection,
    socket: TcpStream,
}

/// Has both ends show who they are.
pub(super) fn shake_hands(
    connection: Connection,
    socket: TcpStream,
) -> Result<Box<dyn Stream>, HandshakeError> {
    let mut stream = TlsStream { connection, socket };
    let deadline = Instant::now() + PATIENCE;
    let outcome = stream.limit_write(PATIENCE).and_then(|()| {
        stream.flush()?;
        while stream.connection.is_handshaking() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it did not finish the handshake in time",
                ));
            }
            stream.limit_read(left)?;
            match stream.take_in() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(Box::new(stream)),
        Err(error) => {
            linger(&mut stream.socket);
            Err(HandshakeError::new(error))
        }
    }
}

/// Reads on for a moment what nobody looks at: closing with something unread would reset the connection,
/// and take from the other end the alert that says why.
fn linger(socket: &mut TcpStream) {
    const MOMENT: Duration = Duration::from_secs(1);
    const MOST: u64 = 64 << 10;
    let ready = socket
        .shutdown(Shutdown::Write)
        .and_then(|()| socket.set_read_timeout(Some(MOMENT)));
    if ready.is_ok() {
        io::copy(&mut socket.take(MOST), &mut io::sink()).ok();
    }
}

impl TlsStream {
    /// Reads once from the socket and looks at what that gave.
    fn take_in(&mut self) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut self.socket)?;
        if let Err(error) = self.connection.process_new_packets() {
            // Says why to the peer, which may be gone.
            self.flush().ok();
            return Err(io::Error::other(explain(&error)));
        }
        self.flush()?;
        Ok(count)
    }
}

fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(_) => format!("it doesn't speak TLS: {ON_BOTH_OR_NEITHER}"),
        rustls::Error::AlertReceived(alert) => format!(
            "it refused what we showed ({alert:?}): both ends need certificates of an authority in \
             the other's --tls-ca"
        ),
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure) => {
            "its certificate is not the one that its node showed to the coordinator: is another \
             process at that address?"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(reason) => format!(
            "its certificate is not accepted ({reason:?}): it must be of an authority in --tls-ca \
             and, a server's, for the host or --tls-name"
        ),
        other => other.to_string(),
    }
}

impl Read for TlsStream {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self.connection.reader().read(target) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
        if self.take_in()? == 0 {
            return Ok(0);
        }
        self.connection.reader().read(target)
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(bytes)?;
        self.flush()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

impl Stream for TlsStream {
    fn limit_read(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit))
    }

    fn limit_write(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_write_timeout(Some(limit))
    }

    fn is_ready(&mut self) -> io::Result<bool> {
        let held = |connection: &mut Connection| {
            connection
                .process_new_packets()
                .map_or(true, |state| state.plaintext_bytes_to_read() > 0)
        };
        if held(&mut self.connection) {
            return Ok(true);
        }
        if !is_readable(self.socket.as_fd(), PollTimeout::ZERO)? {
            return Ok(false);
        }
        Ok(self.take_in()? == 0 || held(&mut self.connection))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn peer(&self) -> Option<Fingerprint> {
        Fingerprint::of(self.connection.peer_certificates()?.first()?)
    }
}
