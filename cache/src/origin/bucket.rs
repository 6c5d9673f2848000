//! A bucket of an object store (S3 and what is compatible with it, Google Cloud Storage, Azure Blob
//! Storage), or what lies below a prefix of it, as an origin.
//!
//! The client is `object_store`, on a runtime of the process's own ([`RequestRuntime`]): callers poll
//! on any thread. Every read names the entity tag that was listed (`If-Match`), and the answer's
//! own tag and size are compared too, since not every compatible server keeps to the condition.
//! Requests are made again after passing failures, within [`RequestBudget`].

mod listing;
mod service;

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use object_store::list::PaginatedListStore;

use super::objects::{self, Objects};
use super::runtime::{self, RequestRuntime};
use super::{
    BucketLocation, ListProgress, Listing, ObjectRef, Origin, OriginError, OriginUrl,
    RequestBudget, SecretValues,
};

pub(super) use service::CREDENTIALS_FILE;
#[cfg(feature = "fuzzing")]
pub(super) use service::parse_credentials;

/// A bucket or a prefix of one. Shown and logged by its URL alone.
pub struct BucketOrigin {
    objects: Arc<Objects>,
    lists: Arc<dyn PaginatedListStore>,
    runtime: Arc<RequestRuntime>,
}

impl BucketOrigin {
    /// Gets ready to ask `location`; looks up the credentials it refers to, asks nothing yet. `secret`
    /// is the one it refers to, if it does.
    pub fn open(
        location: &BucketLocation,
        budget: RequestBudget,
        runtime: Arc<RequestRuntime>,
        secret: Option<&SecretValues>,
    ) -> Result<BucketOrigin, OriginError> {
        let url = OriginUrl::Bucket(location.clone()).to_string();
        runtime::install_tls_provider();
        let (store, lists) = service::build(location, &url, &budget, secret)?;
        Ok(BucketOrigin {
            objects: Arc::new(Objects {
                store,
                prefix: location.prefix.clone(),
                url,
            }),
            lists,
            runtime,
        })
    }
}

impl fmt::Debug for BucketOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BucketOrigin")
            .field(&self.objects.url)
            .finish()
    }
}

impl Origin for BucketOrigin {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        Box::pin(listing::list(
            &self.objects,
            &self.lists,
            &self.runtime,
            progress,
        ))
    }

    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>> {
        Box::pin(objects::read(
            &self.objects,
            &self.runtime,
            object,
            offset,
            into,
        ))
    }
}
