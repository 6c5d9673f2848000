//! A folder of a web server as an origin.
//!
//! What is there comes from an index, a file of the server's that names the others, a path a line; or, of
//! a server that has WebDAV (RFC 4918), from that. A server must give parts of files, and tell by an entity
//! tag or a time of modification which content it has: reads name what was listed, as for buckets.

mod index;
mod listing;
mod webdav;

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use object_store::http::HttpBuilder;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::answers::Connector;
use super::objects::{self, Objects};
use super::runtime::{self, RequestRuntime};
use super::{
    CredentialsRef, ListProgress, Listing, ObjectRef, Origin, OriginError, OriginUrl,
    RequestBudget, SecretValues, WebLocation, failure, secrets,
};

#[cfg(feature = "fuzzing")]
pub(super) use index::paths as paths_of_index;

/// A folder of a web server. Shown and logged by its URL alone.
pub struct WebOrigin {
    objects: Arc<Objects>,
    /// Path of the index below the folder.
    index: Option<String>,
    runtime: Arc<RequestRuntime>,
}

impl WebOrigin {
    /// Gets ready to ask `location`; looks up the credentials it refers to, asks nothing yet. `secret`
    /// is the one it refers to, if it does.
    pub fn open(
        location: &WebLocation,
        budget: RequestBudget,
        runtime: Arc<RequestRuntime>,
        secret: Option<&SecretValues>,
    ) -> Result<WebOrigin, OriginError> {
        let url = OriginUrl::Web(location.clone()).to_string();
        runtime::install_tls_provider();
        let mut options = budget.options(&location.server, true);
        if let Some(who) = authorization(location, &url, secret)? {
            options = options.with_default_headers(HeaderMap::from_iter([(AUTHORIZATION, who)]));
        }
        // The server and not the folder: what WebDAV lists has its path on the server.
        let store = HttpBuilder::new()
            .with_url(&location.server)
            .with_client_options(options)
            .with_retry(budget.retries())
            .with_http_connector(Connector(budget))
            .build()
            .map_err(|error| failure::cannot_build(&url, &error))?;
        Ok(WebOrigin {
            objects: Arc::new(Objects {
                store: Arc::new(store),
                prefix: location.folder.clone(),
                url,
            }),
            index: location.index.clone(),
            runtime,
        })
    }
}

/// What says who asks, if anything does.
fn authorization(
    location: &WebLocation,
    url: &str,
    secret: Option<&SecretValues>,
) -> Result<Option<HeaderValue>, OriginError> {
    let values = match (&location.credentials, secret) {
        (CredentialsRef::Environment | CredentialsRef::Anonymous, _) => return Ok(None),
        (CredentialsRef::File(path), _) => {
            secrets::parse_lines(path, &secrets::read_file(path, url)?, url)?
        }
        (CredentialsRef::Secret { .. }, secret) => secret.cloned().unwrap_or_default(),
    };
    let text = secrets::authorization(&values, url)?;
    let mut header = HeaderValue::from_str(&text).map_err(|_| failure::bad_credentials(url))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

impl fmt::Debug for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WebOrigin").field(&self.objects.url).finish()
    }
}

impl Origin for WebOrigin {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        Box::pin(listing::list(
            &self.objects,
            self.index.as_deref(),
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
