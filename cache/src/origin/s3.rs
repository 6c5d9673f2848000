//! An S3-compatible bucket, or what lies below a prefix of it, as an origin.
//!
//! The client is `object_store`, on a runtime of the process's own ([`S3Runtime`]): callers poll
//! on any thread. Every read names the entity tag that was listed (`If-Match`), and the answer's
//! own tag and size are compared too, since not every compatible server keeps to the condition.
//! Requests are made again after passing failures, within [`S3Budget`].

mod credentials;
mod failure;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod keys;
mod listing;
mod reading;
mod runtime;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::{
    CredentialsRef, ListProgress, Listing, ObjectRef, Origin, OriginError, OriginUrl, S3Location,
};
use credentials::{Environment, FileCredentials};

pub use runtime::S3Runtime;

/// How long and how often a request is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Budget {
    /// Tries after the first.
    pub retries: usize,
    /// No try begins later than this after the first.
    pub retry_for: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// For one try, its answer's body included.
    pub request: Duration,
}

impl Default for S3Budget {
    fn default() -> S3Budget {
        S3Budget {
            retries: 5,
            retry_for: Duration::from_secs(60),
            connect: Duration::from_secs(5),
            request: Duration::from_secs(60),
        }
    }
}

/// A bucket or a prefix of one. Shown and logged by its URL alone.
pub struct S3Origin {
    client: Arc<Client>,
    runtime: Arc<S3Runtime>,
}

/// What the tasks on the runtime share.
struct Client {
    store: AmazonS3,
    location: S3Location,
    url: String,
}

impl S3Origin {
    /// Gets ready to ask `location`; looks up the credentials it refers to, asks nothing yet.
    pub fn open(
        location: &S3Location,
        budget: S3Budget,
        runtime: Arc<S3Runtime>,
    ) -> Result<S3Origin, OriginError> {
        Self::open_with(location, budget, runtime, &Environment::of_process())
    }

    fn open_with(
        location: &S3Location,
        budget: S3Budget,
        runtime: Arc<S3Runtime>,
        environment: &Environment,
    ) -> Result<S3Origin, OriginError> {
        let url = OriginUrl::S3(location.clone()).to_string();
        let mut builder = match &location.credentials {
            CredentialsRef::Environment => environment.builder(),
            CredentialsRef::Anonymous => AmazonS3Builder::new().with_skip_signature(true),
            CredentialsRef::File(path) => AmazonS3Builder::new()
                .with_credentials(Arc::new(FileCredentials::open(path, &url)?)),
        };
        builder = builder
            .with_bucket_name(&location.bucket)
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: budget.retries,
                retry_timeout: budget.retry_for,
            })
            .with_client_options(
                ClientOptions::new()
                    .with_connect_timeout(budget.connect)
                    .with_timeout(budget.request)
                    .with_allow_http(
                        location
                            .endpoint
                            .as_deref()
                            .is_some_and(|endpoint| endpoint.starts_with("http://")),
                    ),
            );
        if let Some(endpoint) = &location.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &location.region {
            builder = builder.with_region(region);
        }
        runtime::install_tls_provider();
        let store = builder
            .build()
            .map_err(|error| failure::cannot_build(&url, &error))?;
        Ok(S3Origin {
            client: Arc::new(Client {
                store,
                location: location.clone(),
                url,
            }),
            runtime,
        })
    }
}

impl fmt::Debug for S3Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Origin").field(&self.client.url).finish()
    }
}

impl Origin for S3Origin {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        Box::pin(listing::list(&self.client, &self.runtime, progress))
    }

    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>> {
        Box::pin(reading::read(
            &self.client,
            &self.runtime,
            object,
            offset,
            into,
        ))
    }
}
