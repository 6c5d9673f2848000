//! Snapshots: a volume's version under a name of its own, that outlives the volume.

use prost_types::Timestamp;
use trackbed_cache::registry::Key;
use trackbed_proto::csi::v1::list_snapshots_response::Entry as ListEntry;
use trackbed_proto::csi::v1::{
    CreateSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, Snapshot,
};

use super::capacity::to_csi;
use super::find::Size;
use super::page::Page;
use super::{ControllerService, missing};
use crate::driver::error::VolumeError;
use crate::driver::ledger::{Created, Entry, SnapshotEntry, check_name, snapshot_key};
use crate::driver::spec::Said;

impl ControllerService {
    /// Makes the snapshot of a name, or finds it made already.
    pub(super) async fn take_snapshot(
        &self,
        request: CreateSnapshotRequest,
    ) -> Result<Snapshot, VolumeError> {
        check_name("snapshot", &request.name)?;
        if request.source_volume_id.is_empty() {
            return Err(missing("source_volume_id"));
        }
        let about = format!("snapshot {:?}", request.name);
        let said = Said::parse(&about, "parameters", &request.parameters)?;
        if said.spec().is_some() || said.version.is_some() {
            return Err(VolumeError::Invalid(format!(
                "{about}: its parameters (VolumeSnapshotClass) name a dataset or a version: it shows its volume's"
            )));
        }
        let (name, source) = (request.name.clone(), request.source_volume_id.clone());
        let found = self.blocking(move |service| {
            if let Some(existing) = service.ledger.snapshots.get(Key::of(&name))? {
                return same_source(existing, &source).map(Ok);
            }
            match service.find(&source)? {
                Some(volume) => Ok(Err(volume)),
                None => Err(VolumeError::NotFound(format!(
                    "{about}: there is no volume {source:?}"
                ))),
            }
        });
        let volume = match found.await? {
            Ok(existing) => return Ok(to_snapshot(existing)),
            Err(volume) => volume,
        };
        let bytes = match volume.size {
            Size::Settled { bytes, .. } => bytes,
            Size::OfVersion => self.bytes_of(&volume.content).await?,
        };
        let entry = SnapshotEntry {
            name: request.name,
            volume: request.source_volume_id,
            content: volume.content,
            bytes,
            created: Created::now(),
        };
        self.blocking(move |service| {
            if service.ledger.snapshots.add(&entry)? {
                return Ok(to_snapshot(entry));
            }
            // Another call, here or on another node, was quicker.
            match service.ledger.snapshots.get(entry.key())? {
                Some(existing) => same_source(existing, &entry.volume).map(to_snapshot),
                None => Err(VolumeError::Unavailable(format!(
                    "snapshot {:?} was made and deleted meanwhile: try again",
                    entry.name
                ))),
            }
        })
        .await
    }

    /// Forgets a snapshot; one that is not known is fine. Volumes made of it stay.
    pub(super) async fn drop_snapshot(&self, id: String) -> Result<(), VolumeError> {
        if id.is_empty() {
            return Err(missing("snapshot_id"));
        }
        let Some(key) = snapshot_key(&id) else {
            return Ok(());
        };
        self.blocking(move |service| service.ledger.snapshots.remove(key))
            .await
    }

    /// One snapshot.
    pub(super) async fn snapshot(&self, id: String) -> Result<Snapshot, VolumeError> {
        if id.is_empty() {
            return Err(missing("snapshot_id"));
        }
        self.blocking(move |service| {
            let key = snapshot_key(&id);
            let snapshot = key
                .map(|key| service.ledger.snapshots.get(key))
                .transpose()?;
            snapshot.flatten().map(to_snapshot).ok_or_else(|| {
                let id: String = id.chars().take(200).collect();
                VolumeError::NotFound(format!("there is no snapshot {id:?}"))
            })
        })
        .await
    }

    /// A page of the snapshots that match, in the order of their creation.
    pub(super) async fn snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse, VolumeError> {
        let page = Page::parse(request.max_entries, &request.starting_token)?;
        self.blocking(move |service| {
            let shelf = &service.ledger.snapshots;
            let mut all = match (
                request.snapshot_id.as_str(),
                snapshot_key(&request.snapshot_id),
            ) {
                ("", _) => shelf.all()?,
                (_, None) => Vec::new(),
                (_, Some(key)) => shelf
                    .get(key)?
                    .map(|found| (key, found))
                    .into_iter()
                    .collect(),
            };
            if !request.source_volume_id.is_empty() {
                all.retain(|(_, snapshot)| snapshot.volume == request.source_volume_id);
            }
            let (snapshots, next_token) = page.of(all);
            let entries = snapshots.into_iter().map(|snapshot| ListEntry {
                snapshot: Some(to_snapshot(snapshot)),
            });
            Ok(ListSnapshotsResponse {
                entries: entries.collect(),
                next_token,
            })
        })
        .await
    }
}

fn same_source(existing: SnapshotEntry, source: &str) -> Result<SnapshotEntry, VolumeError> {
    if existing.volume == source {
        return Ok(existing);
    }
    Err(VolumeError::Conflict(format!(
        "there is a snapshot {:?} already, of volume {:?}: delete it first, or take another name",
        existing.name, existing.volume
    )))
}

fn to_snapshot(entry: SnapshotEntry) -> Snapshot {
    const NANOS: u64 = 1_000_000_000;
    Snapshot {
        size_bytes: to_csi(entry.bytes),
        snapshot_id: entry.id(),
        creation_time: Some(Timestamp {
            seconds: to_csi(entry.created.0 / NANOS),
            nanos: i32::try_from(entry.created.0 % NANOS).unwrap_or(0),
        }),
        source_volume_id: entry.volume,
        // It is a name: nothing has to be copied first.
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}
