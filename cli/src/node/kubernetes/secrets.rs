//! Credentials from Secrets, asked of the API server each time an origin is opened.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::time::timeout;
use trackbed_cache::origin::{SecretValues, Secrets};

use super::{ANSWER_WITHIN, reason};

/// The cluster's Secrets.
pub(crate) struct ApiSecrets {
    client: Client,
    runtime: tokio::runtime::Handle,
}

impl ApiSecrets {
    /// Secrets as `client` may read them. Must be made in the runtime that the client is used on.
    pub(crate) fn new(client: Client) -> ApiSecrets {
        ApiSecrets {
            client,
            runtime: tokio::runtime::Handle::current(),
        }
    }
}

impl Secrets for ApiSecrets {
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SecretValues, String>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let asked = name.to_owned();
        let asking = self
            .runtime
            .spawn(async move { timeout(ANSWER_WITHIN, api.get(&asked)).await });
        Box::pin(async move {
            let secret = match asking.await {
                Ok(Ok(Ok(secret))) => secret,
                Ok(Ok(Err(error))) => return Err(reason(&error)),
                Ok(Err(_)) => return Err(format!("no answer within {ANSWER_WITHIN:?}")),
                Err(_) => return Err("this node is shutting down".into()),
            };
            let data = secret.data.unwrap_or_default().into_iter();
            let text =
                data.filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?)));
            Ok(SecretValues::new(text.collect::<BTreeMap<_, _>>()))
        })
    }
}
