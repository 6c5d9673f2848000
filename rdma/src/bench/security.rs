//! The meeting over mutual TLS: both ends show a certificate of one authority before anything is said.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
use thiserror::Error;

use super::BenchError;
use super::channel::{PATIENCE, Stream, is_readable};

/// What an end shows to the other, and what it accepts.
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    peer_name: Option<String>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer_name", &self.peer_name)
            .finish_non_exhaustive()
    }
}

/// Why certificates can't be used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Not what it should be.
    #[error("the {what} is not in PEM form: {reason}")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// What was found.
        reason: String,
    },
    /// They don't go together.
    #[error("certificate, key and authority don't go together: {0}")]
    Unusable(String),
}

impl Identity {
    /// From a certificate (with its chain), its key and the authorities that the other end's certificate
    /// may be of, all in PEM form. The server's certificate must be for `peer_name`; without it, for
    /// the host that a client was told.
    pub fn from_pem(
        certificate: &[u8],
        key: &[u8],
        authorities: &[u8],
        peer_name: Option<String>,
    ) -> Result<Identity, IdentityError> {
        let chain = certificates("certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| IdentityError::Pem {
            what: "private key",
            reason: error.to_string(),
        })?;
        let unusable = |error: &dyn fmt::Display| IdentityError::Unusable(error.to_string());
        let mut roots = RootCertStore::empty();
        for authority in certificates("authority", authorities)? {
            roots.add(authority).map_err(|error| unusable(&error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unusable(&error))?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain.clone(), key.clone_key())
            })
            .map_err(|error| unusable(&error))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, key)
            })
            .map_err(|error| unusable(&error))?;
        Ok(Identity {
            client: Arc::new(client),
            server: Arc::new(server),
            peer_name,
        })
    }

    /// Shows a client who we are, and has it show who it is.
    pub(super) fn accept(&self, socket: TcpStream) -> Result<Box<dyn Stream>, BenchError> {
        let connection =
            ServerConnection::new(Arc::clone(&self.server)).map_err(|error| failed(&error))?;
        shake_hands(Connection::Server(connection), socket)
    }

    /// As [`Identity::accept`], the other way: the server must be `host`.
    pub(super) fn connect(
        &self,
        socket: TcpStream,
        host: &str,
    ) -> Result<Box<dyn Stream>, BenchError> {
        let name = self.peer_name.as_deref().unwrap_or_else(|| bare(host));
        let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(&error))?;
        let connection = ClientConnection::new(Arc::clone(&self.client), name)
            .map_err(|error| failed(&error))?;
        shake_hands(Connection::Client(connection), socket)
    }
}

fn certificates(
    what: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let refuse = |reason| IdentityError::Pem { what, reason };
    match found {
        Ok(found) if found.is_empty() => Err(refuse("it holds no certificate".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// A host without port and brackets.
fn bare(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, _)) if !name.contains(':') => name,
        _ => host,
    }
}

fn failed(error: &dyn fmt::Display) -> BenchError {
    BenchError::Stranger {
        reason: format!("mutual TLS failed: {error}"),
    }
}

/// A connection over TLS. Each read takes at most one read of the socket, so that its caller keeps to
/// its deadline.
struct TlsStream {
    connection: Connection,
    socket: TcpStream,
}

fn shake_hands(connection: Connection, socket: TcpStream) -> Result<Box<dyn Stream>, BenchError> {
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
        Err(error) => Err(failed(&error)),
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
        rustls::Error::InvalidMessage(_) => {
            "it doesn't speak TLS: give both ends --tls-certificate, --tls-key and --tls-ca, or \
             neither"
                .to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!(
            "it refused what we showed ({alert:?}): both ends need certificates of an authority in \
             the other's --tls-ca"
        ),
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
        if !is_readable(self.socket.as_fd())? {
            return Ok(false);
        }
        Ok(self.take_in()? == 0 || held(&mut self.connection))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_host_is_taken_without_its_port() {
        for (host, name) in [
            ("node-1", "node-1"),
            ("node-1:7", "node-1"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:7", "10.0.0.1"),
            ("fe80::1", "fe80::1"),
            ("[fe80::1]:7", "fe80::1"),
        ] {
            assert_eq!(bare(host), name);
        }
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let error = Identity::from_pem(b"hello", b"", b"", None).expect_err("no certificate");
        assert!(error.to_string().contains("the certificate"), "{error}");
    }
}
