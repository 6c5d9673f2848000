//! The versions this node has open, and how it comes to know one: from its disk, else the manifest
//! from whichever member has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use futures_timer::Delay;
use parking_lot::Mutex;

use super::{AgentError, Inner};
use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::open::Version;
use crate::origin::OriginUrl;
use crate::registry::Member;

/// How long a member may take to send a manifest.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(30);

/// Open versions, each behind a lock of its own that is held while it is being opened.
#[derive(Default)]
pub(super) struct Versions(Mutex<HashMap<Digest, Arc<Place>>>);

impl Versions {
    /// Where a version is, or would be, open.
    pub(super) fn place(&self, digest: Digest) -> Arc<Place> {
        Arc::clone(self.0.lock().entry(digest).or_default())
    }

    /// The version, if it is open now and not just being opened or evicted.
    pub(super) fn opened(&self, digest: &Digest) -> Option<Arc<Version>> {
        let place = self.0.lock().get(digest).map(Arc::clone)?;
        place.try_lock()?.clone()
    }
}

/// Opens the datasets' current versions as far as this node has them, so that upkeep can make them
/// ready before anyone asks for them.
pub(super) fn open_current(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    inner.shard.spawn(move || async move {
        let datasets = weak.upgrade().map(|inner| inner.registry.datasets());
        for record in datasets.and_then(Result::ok).unwrap_or_default() {
            let Some(inner) = weak.upgrade() else { return };
            if inner.disks.home(&record.version).is_none() {
                continue;
            }
            if let Err(error) = inner.version(record.version, Some(&record.origin)).await {
                tracing::warn!(dataset = %record.name, %error,
                    "a dataset on this node's disk can't be opened");
            }
        }
    });
}

pub(super) type Place = futures::lock::Mutex<Option<Arc<Version>>>;

impl Inner {
    /// The version, opened if it is not. `origin` is where its bytes come from, if the caller
    /// knows; else the registry is searched for a dataset of this version.
    pub(crate) async fn version(
        &self,
        digest: Digest,
        origin: Option<&OriginUrl>,
    ) -> Result<Arc<Version>, AgentError> {
        let place = self.versions.place(digest);
        let mut place = place.lock().await;
        if let Some(version) = &*place {
            if let Some(origin) = origin {
                version.set_origin(origin);
            }
            return Ok(Arc::clone(version));
        }
        let version = match self.disks.version(digest).await? {
            Some(store) => {
                let origin = origin.unwrap_or(store.origin()).clone();
                Version::new(store, origin)
            }
            None => {
                let origin = match origin {
                    Some(origin) => origin.clone(),
                    None => self.origin_of(digest)?,
                };
                let (manifest, encoded) = self.manifest_from_members(digest).await?;
                Version::new(self.disks.create(manifest, encoded, &origin).await?, origin)
            }
        };
        let version = Arc::new(version);
        self.upkeep.add(&version);
        *place = Some(Arc::clone(&version));
        self.assign_tenants();
        Ok(version)
    }

    /// Makes room on disk for a version that was just listed, unless this node has it.
    pub(super) async fn create_version(
        &self,
        manifest: Arc<Manifest>,
        encoded: Bytes,
        origin: &OriginUrl,
    ) -> Result<(), AgentError> {
        // Not while it is being evicted.
        let place = self.versions.place(manifest.digest());
        let _place = place.lock().await;
        let created = self.disks.create(manifest, encoded, origin).await?;
        created.touch();
        Ok(())
    }

    fn origin_of(&self, digest: Digest) -> Result<OriginUrl, AgentError> {
        let datasets = self.registry.datasets()?;
        let known = datasets.into_iter().find(|record| record.version == digest);
        known
            .map(|record| record.origin)
            .ok_or_else(|| AgentError::UnknownVersion {
                version: digest,
                tried: "no dataset has it as its current version".into(),
            })
    }

    async fn manifest_from_members(
        &self,
        digest: Digest,
    ) -> Result<(Arc<Manifest>, Bytes), AgentError> {
        let mut tried = Vec::new();
        let members = self.filler.membership.now();
        for member in members
            .iter()
            .filter(|member| member.name != self.config.node)
        {
            match self.manifest_from(member, digest).await {
                Ok(found) => return Ok(found),
                Err(why) => {
                    tracing::debug!(peer = %member.name, version = %digest.short(), why,
                        "no manifest from this member");
                    tried.push(format!("{}: {why}", member.name));
                }
            }
        }
        if tried.is_empty() {
            tried.push("there are no other members".into());
        }
        Err(AgentError::UnknownVersion {
            version: digest,
            tried: tried.join("; "),
        })
    }

    async fn manifest_from(
        &self,
        member: &Member,
        digest: Digest,
    ) -> Result<(Arc<Manifest>, Bytes), String> {
        let asked = self.filler.peers.control().manifest(member, digest);
        let encoded = match future::select(asked, Delay::new(MANIFEST_DEADLINE)).await {
            Either::Left((Ok(Some(encoded)), _)) => encoded,
            Either::Left((Ok(None), _)) => return Err("it does not have it".into()),
            Either::Left((Err(error), _)) => return Err(error.to_string()),
            Either::Right(((), _)) => return Err(format!("nothing came in {MANIFEST_DEADLINE:?}")),
        };
        let decoding = encoded.clone();
        let decoded = self
            .workers
            .run(move || Manifest::decode_as(&decoding, digest))
            .await;
        match decoded {
            Ok(manifest) => Ok((Arc::new(manifest), encoded)),
            Err(error) => Err(error.to_string()),
        }
    }
}
