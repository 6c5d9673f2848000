//! How processes that measure together meet: over plain TCP on a network that is trusted, else over
//! mutual TLS, in which both ends show a certificate of one authority before anything is said.
//!
//! An [`Identity`] is what an end shows and accepts; a [`Stream`] is what a connection is to everything
//! above it, encrypted or not.

mod identity;
mod stream;
mod tls;

use std::fmt;

use thiserror::Error;

pub(crate) use identity::Fingerprint;
pub use identity::{Identity, IdentityError};
pub(crate) use stream::{Stream, is_readable};

/// What to do when one end speaks TLS and the other does not.
pub(crate) const ON_BOTH_OR_NEITHER: &str =
    "give both ends --tls-certificate, --tls-key and --tls-ca, or neither";

/// Why two ends did not come together over TLS.
#[derive(Debug, Error)]
#[error("mutual TLS failed: {0}")]
pub(crate) struct HandshakeError(String);

impl HandshakeError {
    fn new(reason: impl fmt::Display) -> HandshakeError {
        HandshakeError(reason.to_string())
    }
}

/// Whether what a plain end received first is a record of TLS (a handshake or an alert), which no text
/// and no greeting of ours begins with.
pub(crate) fn begins_tls(first: u8) -> bool {
    matches!(first, 0x15 | 0x16)
}
