//! Other versions of a dataset on this node: what they share is not fetched again.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use futures::future::BoxFuture;

use super::Inner;
use crate::digest::Digest;
use crate::fill::Siblings;
use crate::open::Version;

/// The most versions that are opened beside one: their manifests take memory.
const MAX_SIBLINGS: usize = 3;

/// Finds them in the registry, for as long as the agent lives.
pub(super) struct Registered(pub(super) Weak<Inner>);

impl Siblings for Registered {
    fn of(&self, version: Digest) -> BoxFuture<'_, Vec<Weak<Version>>> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(inner) => inner.siblings_of(version).await,
                None => Vec::new(),
            }
        })
    }
}

impl Inner {
    async fn siblings_of(&self, version: Digest) -> Vec<Weak<Version>> {
        let mut seen = HashSet::from([version]);
        let mut found = Vec::new();
        for record in self.registry.datasets().unwrap_or_default() {
            if !record.has_version(version) {
                continue;
            }
            for digest in [record.version].iter().chain(&record.earlier) {
                let held = self.disks.holding(digest).is_some_and(|it| it.bytes() > 0);
                if found.len() == MAX_SIBLINGS || !held || !seen.insert(*digest) {
                    continue;
                }
                match self.version(*digest, Some(&record.origin)).await {
                    Ok(sibling) => found.push(Arc::downgrade(&sibling)),
                    Err(error) => tracing::info!(dataset = %record.name, %error,
                        "another version on this node's disk can't be opened, and shares nothing"),
                }
            }
        }
        found
    }
}
