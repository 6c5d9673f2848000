//! How long and how often origins that are asked by HTTP are tried.

use std::time::Duration;

use object_store::{BackoffConfig, ClientOptions, RetryConfig};

/// How long and how often a request is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBudget {
    /// Tries after the first.
    pub retries: usize,
    /// No try begins later than this after the first.
    pub retry_for: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// For one try, its answer's body included.
    pub request: Duration,
}

impl Default for RequestBudget {
    fn default() -> RequestBudget {
        RequestBudget {
            retries: 5,
            retry_for: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            request: Duration::from_secs(60),
        }
    }
}

impl RequestBudget {
    pub(super) fn retries(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: self.retries,
            retry_timeout: self.retry_for,
        }
    }

    /// For a server at `base`, an `http` or `https` URL. `alone`: nobody else is asked, for credentials say.
    pub(super) fn options(&self, base: &str, alone: bool) -> ClientOptions {
        let plain = base.starts_with("http://");
        ClientOptions::new()
            .with_connect_timeout(self.connect)
            .with_timeout(self.request)
            .with_allow_http(plain)
            // Reading a hundred certificates takes a cold disk a tenth of a second.
            .with_no_system_certificates(plain && alone)
    }
}
