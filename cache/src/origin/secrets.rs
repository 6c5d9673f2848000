//! Credentials that are kept elsewhere, as in the Secrets of Kubernetes.

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;

use super::OriginError;

/// Gives secrets by their names.
pub trait Secrets: Send + Sync {
    /// The secret's values as they are now, or why they can't be had.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<SecretValues, String>>;
}

/// What a secret holds: texts by their keys. Shown by its keys alone.
#[derive(Clone, Default)]
pub struct SecretValues(BTreeMap<String, String>);

impl SecretValues {
    /// A secret of these values.
    pub fn new(values: BTreeMap<String, String>) -> SecretValues {
        SecretValues(values)
    }

    /// The value of a key, such as `AWS_ACCESS_KEY_ID`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Asks for a secret; `secrets` are where they are kept, if this node has such a place.
pub(super) async fn look_up(
    secrets: Option<&dyn Secrets>,
    origin: &str,
    namespace: &str,
    name: &str,
) -> Result<SecretValues, OriginError> {
    let denied = |why: String, remedy| OriginError::Denied {
        origin: origin.to_owned(),
        object: "/".to_owned(),
        why: format!("secret {namespace}/{name}: {why}"),
        remedy,
    };
    let Some(secrets) = secrets else {
        let why = "this node is not in a Kubernetes cluster".to_owned();
        return Err(denied(
            why,
            "start the node with --kubernetes, or name a file",
        ));
    };
    secrets.secret(namespace, name).await.map_err(|why| {
        denied(
            why,
            "make the Secret in the dataset's namespace, and let the nodes' service account get it",
        )
    })
}
