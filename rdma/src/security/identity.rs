//! What an end shows to the other, and what it accepts.

use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::tls::shake_hands;
use super::{HandshakeError, Stream};

/// What an end shows to the other, and what it accepts.
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    roots: Arc<RootCertStore>,
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
        let provider = Arc::new(ring::default_provider());
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
                    .with_root_certificates(Arc::clone(&roots))
                    .with_client_auth_cert(chain, key)
            })
            .map_err(|error| unusable(&error))?;
        Ok(Identity {
            client: Arc::new(client),
            server: Arc::new(server),
            roots,
            peer_name,
        })
    }

    /// The same, for meeting servers that show this very certificate, whatever name it is for. Who knows
    /// that it is theirs must have told us.
    pub(crate) fn expecting(&self, certificate: Fingerprint) -> Identity {
        let mut client = ClientConfig::clone(&self.client);
        client
            .dangerous()
            .set_certificate_verifier(Arc::new(Pinned {
                certificate,
                roots: Arc::clone(&self.roots),
                algorithms: ring::default_provider().signature_verification_algorithms,
            }));
        // A session that another server began would be resumed without a look at its certificate.
        client.resumption = Resumption::disabled();
        Identity {
            client: Arc::new(client),
            server: Arc::clone(&self.server),
            roots: Arc::clone(&self.roots),
            peer_name: self.peer_name.clone(),
        }
    }

    /// Shows a client who we are, and has it show who it is.
    pub(crate) fn accept(&self, socket: TcpStream) -> Result<Box<dyn Stream>, HandshakeError> {
        let connection =
            ServerConnection::new(Arc::clone(&self.server)).map_err(HandshakeError::new)?;
        shake_hands(Connection::Server(connection), socket)
    }

    /// As [`Identity::accept`], the other way: the server must be `host`.
    pub(crate) fn connect(
        &self,
        socket: TcpStream,
        host: &str,
    ) -> Result<Box<dyn Stream>, HandshakeError> {
        let name = self.peer_name.as_deref().unwrap_or_else(|| bare(host));
        let name = ServerName::try_from(name.to_owned()).map_err(HandshakeError::new)?;
        let connection =
            ClientConnection::new(Arc::clone(&self.client), name).map_err(HandshakeError::new)?;
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

/// By which a certificate is known: the SHA-256 of its DER form, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(String);

impl Fingerprint {
    /// `None` of a provider without SHA-256, which ours is not.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
        let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
        let hash = suite.common.hash_provider.hash(certificate);
        let digits = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Some(Fingerprint(digits.collect()))
    }
}

/// Accepts one certificate, of one of our authorities.
#[derive(Debug)]
struct Pinned {
    certificate: Fingerprint,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if Fingerprint::of(end_entity).as_ref() == Some(&self.certificate) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
