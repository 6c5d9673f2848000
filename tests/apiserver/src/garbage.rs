//! Garbage collection: what has owners and has lost all of them is deleted, as it is when it was made for
//! one that had gone by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::Shared;
use crate::store::{Event, Key};
use crate::write::Write;

/// Collects until dropped.
pub(crate) async fn collect(shared: Arc<Shared>) {
    let mut changes = shared.store.changes();
    let mut heap = Heap::default();
    let mut version = 0;
    loop {
        match shared.store.since(version) {
            Ok(events) => {
                for event in events {
                    version = event.version;
                    heap.take(event);
                }
            }
            Err(_) => {
                let (all, now) = shared.store.all(|_| true);
                heap = Heap::default();
                version = now;
                for (key, object) in all {
                    heap.there(key, &object);
                }
            }
        }
        for (key, uid) in heap.garbage() {
            let target = shared.kinds.target_at(&key);
            let write = Write::delete_if(&json!({ "preconditions": { "uid": uid } }));
            // It may have gone by itself.
            let _ = write.carry_out(shared.kinds.resource(&target), &target, &shared.store);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Who is there, and who is owned by whom.
#[derive(Default)]
struct Heap {
    live: BTreeSet<String>,
    /// What has owners: its uid and theirs.
    owned: BTreeMap<Key, (String, Vec<String>)>,
    /// Something may have lost its owners.
    changed: bool,
}

impl Heap {
    fn take(&mut self, event: Event) {
        match (event.before, event.after) {
            (_, Some(after)) => self.there(event.key, &after),
            (Some(before), None) => {
                self.live.remove(uid(&before["metadata"]));
                self.owned.remove(&event.key);
                self.changed = true;
            }
            (None, None) => {}
        }
    }

    fn there(&mut self, key: Key, object: &Value) {
        let metadata = &object["metadata"];
        let owners = metadata["ownerReferences"].as_array();
        let owners: Vec<_> = owners
            .into_iter()
            .flatten()
            .map(|it| uid(it).to_owned())
            .collect();
        self.live.insert(uid(metadata).to_owned());
        self.changed |= owners.iter().any(|owner| !self.live.contains(owner));
        if !owners.is_empty() {
            self.owned.insert(key, (uid(metadata).to_owned(), owners));
        }
    }

    fn garbage(&mut self) -> Vec<(Key, String)> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let lost = self
            .owned
            .iter()
            .filter(|(_, (_, owners))| owners.iter().all(|owner| !self.live.contains(owner)));
        lost.map(|(key, (uid, _))| (key.clone(), uid.clone()))
            .collect()
    }
}

fn uid(metadata: &Value) -> &str {
    metadata["uid"].as_str().unwrap_or_default()
}
