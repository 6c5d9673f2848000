//! The options by which processes that measure together show each other who they are.

use crate::exit::Failure;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trackbed_rdma::bench::Identity;

#[derive(Args)]
pub(super) struct TlsArgs {
    /// Meet over mutual TLS: our certificate, in PEM form
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"], help_heading = "Meeting")]
    tls_certificate: Option<PathBuf>,

    /// Its private key
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_certificate",
        help_heading = "Meeting"
    )]
    tls_key: Option<PathBuf>,

    /// Authorities that the other ends' certificates may be of
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_certificate",
        help_heading = "Meeting"
    )]
    tls_ca: Option<PathBuf>,

    /// The name in the certificate of the one we connect to [default: its host]
    #[arg(
        long,
        value_name = "NAME",
        requires = "tls_certificate",
        help_heading = "Meeting"
    )]
    tls_name: Option<String>,
}

impl TlsArgs {
    /// What the files hold; `None` where none is given.
    pub(super) fn identity(&self) -> Result<Option<Arc<Identity>>, Failure> {
        let (Some(certificate), Some(key), Some(ca)) =
            (&self.tls_certificate, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        Identity::from_pem(
            &read("--tls-certificate", certificate)?,
            &read("--tls-key", key)?,
            &read("--tls-ca", ca)?,
            self.tls_name.clone(),
        )
        .map(|identity| Some(Arc::new(identity)))
        .map_err(Failure::unable)
    }
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        let path = path.display();
        Failure::unable(format!(
            "{option} {path}: cannot read it: {error}: check the path, and that this user may read it"
        ))
    })
}
