//! A cache without anybody else: one member, one dataset, no peers.

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use trackbed_cache::registry::{DatasetRecord, Member, RegistryError};
use trackbed_cache::{ControlError, DatasetName, Digest, PeerControl, Registry};

/// A registry in memory.
#[derive(Default)]
pub(super) struct Alone(Mutex<Option<DatasetRecord>>);

impl Registry for Alone {
    fn members(&self) -> Result<Vec<Member>, RegistryError> {
        Ok(vec![Member {
            name: super::NAME.to_owned(),
            control: String::new(),
            weight: 1,
        }])
    }

    fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, RegistryError> {
        Ok(self.0.lock().clone().filter(|record| record.name == *name))
    }

    fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError> {
        Ok(self.0.lock().iter().cloned().collect())
    }

    fn put_dataset<'a>(
        &'a self,
        record: &'a DatasetRecord,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        *self.0.lock() = Some(record.clone());
        Box::pin(async { Ok(()) })
    }
}

/// Nobody to call.
pub(super) struct NoPeers;

fn nobody(member: &Member) -> ControlError {
    ControlError {
        node: member.name.clone(),
        address: member.control.clone(),
        why: "a mount of its own has no peers".to_owned(),
    }
}

impl PeerControl for NoPeers {
    fn connect<'a>(
        &'a self,
        member: &'a Member,
        _: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, ControlError>> {
        Box::pin(async { Err(nobody(member)) })
    }

    fn manifest<'a>(
        &'a self,
        member: &'a Member,
        _: Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, ControlError>> {
        Box::pin(async { Err(nobody(member)) })
    }
}
