//! Who this node is to its peers: its certificate, and the names in theirs.

use super::settings::NodeConfig;
use crate::exit::Failure;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use tonic::transport::{Certificate, ClientTlsConfig, ServerTlsConfig};
use webpki::EndEntityCert;

/// The certificate, the key and the authorities, read and looked at.
#[derive(Clone)]
pub(crate) struct Identity {
    authorities: Certificate,
    identity: tonic::transport::Identity,
}

impl Identity {
    /// Reads the three files, and checks that the certificate carries the node's name: peers
    /// would refuse it otherwise, and say so far from here.
    pub(crate) fn load(config: &NodeConfig) -> Result<Identity, Failure> {
        let authorities = read("--tls-ca", &config.tls_ca)?;
        let certificate = read("--tls-cert", &config.tls_cert)?;
        let key = read("--tls-key", &config.tls_key)?;
        let refuse = |flag: &str, path: &Path, why: String| {
            Failure::usage(format!("{flag} {}: {why}", path.display()))
        };
        let own = CertificateDer::from_pem_slice(&certificate).map_err(|error| {
            refuse(
                "--tls-cert",
                &config.tls_cert,
                format!("no certificate in PEM form: {error}"),
            )
        })?;
        let names = dns_names(&own);
        if !names.contains(&config.name) {
            let names = names.join(", ");
            let why = format!(
                "it is for [{names}], not for {}: issue one whose DNS name is the node's --name",
                config.name
            );
            return Err(refuse("--tls-cert", &config.tls_cert, why));
        }
        if CertificateDer::from_pem_slice(&authorities).is_err() {
            let why = "no certificate in PEM form in it".to_owned();
            return Err(refuse("--tls-ca", &config.tls_ca, why));
        }
        if PrivateKeyDer::from_pem_slice(&key).is_err() {
            let why = "no private key in PEM form in it".to_owned();
            return Err(refuse("--tls-key", &config.tls_key, why));
        }
        Ok(Identity {
            authorities: Certificate::from_pem(authorities),
            identity: tonic::transport::Identity::from_pem(certificate, key),
        })
    }

    /// For the server: callers must show a certificate of our authorities.
    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.authorities.clone())
    }

    /// For calling `peer`: whoever answers must show a certificate with that name.
    pub(crate) fn client(&self, peer: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(self.authorities.clone())
            .identity(self.identity.clone())
            .domain_name(peer)
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage(format!(
            "{flag} {}: cannot read it: {error}: check the path, and that this user may read it",
            path.display()
        ))
    })
}

/// The DNS names a certificate is for; none when it cannot be read.
pub(crate) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match EndEntityCert::try_from(certificate) {
        Ok(parsed) => parsed.valid_dns_names().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    }
}
