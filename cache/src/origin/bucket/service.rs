//! The services that have buckets, and how each is told who asks.
//!
//! Where credentials are is the URL's to say; under which names they are found there is each service's
//! own: the variables of the agent's environment, the keys of a Secret, or a file in the service's own
//! form (S3: `~/.aws/credentials`; Google: a service account's key in JSON; Azure: `NAME=VALUE` lines).
//! Without any, the libraries ask the machine's metadata service who it is: that is for the environment
//! alone, and never the way out of a Secret or a file that says too little.

mod azure;
mod gcs;
mod s3;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::list::PaginatedListStore;

use super::super::answers::Connector;
use super::super::{
    BucketLocation, CredentialsRef, OriginError, RequestBudget, SecretValues, Service, failure,
};

#[cfg(feature = "fuzzing")]
pub(in super::super) use s3::parse as parse_credentials;

/// By this "store" in an error of the library we know an error of our own credentials file.
pub(in super::super) const CREDENTIALS_FILE: &str = "credentials file";

type Store = (Arc<dyn ObjectStore>, Arc<dyn PaginatedListStore>);

/// The client for a bucket: as what reads objects, and as what lists them.
pub(super) fn build(
    location: &BucketLocation,
    url: &str,
    budget: &RequestBudget,
    secret: Option<&SecretValues>,
) -> Result<Store, OriginError> {
    let endpoint = location.endpoint.as_deref().unwrap_or("https://");
    // S3's keys sign; the others', and what an environment says, may be for a service that gives a token.
    let signs =
        location.service == Service::S3 && location.credentials != CredentialsRef::Environment;
    let options = budget.options(endpoint, signs);
    match &location.service {
        Service::S3 => s3::builder(location, url, secret)?
            .with_client_options(options)
            .with_retry(budget.retries())
            .with_http_connector(Connector(*budget))
            .build()
            .map(both)
            .map_err(|error| failure::cannot_build(url, &error)),
        // What else these are told was valid when the URL was parsed.
        Service::Gcs => gcs::builder(location, url, secret)?
            .with_client_options(options)
            .with_retry(budget.retries())
            .with_http_connector(Connector(*budget))
            .build()
            .map(both)
            .map_err(|_| failure::bad_credentials(url)),
        Service::Azure { account } => azure::builder(account, location, url, secret)?
            .with_client_options(options)
            .with_retry(budget.retries())
            .with_http_connector(Connector(*budget))
            .build()
            .map(both)
            .map_err(|_| failure::bad_credentials(url)),
    }
}

fn both<S: ObjectStore + PaginatedListStore>(store: S) -> Store {
    let store = Arc::new(store);
    (store.clone(), store)
}
