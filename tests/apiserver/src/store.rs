//! What is stored, and what happened to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::answer::Refusal;

/// The most events that are remembered.
const HISTORY: usize = 10_000;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) resource: usize,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// An object that became another.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The version of the store that it made.
    pub(crate) version: u64,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Value>>,
    /// `None`: it was deleted.
    pub(crate) after: Option<Arc<Value>>,
}

/// All objects.
#[derive(Default)]
pub(crate) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Event>,
    /// What happened up to this version is forgotten.
    forgotten: u64,
    named: u64,
}

impl Store {
    pub(crate) fn get(&self, key: &Key) -> Option<Value> {
        self.state
            .lock()
            .objects
            .get(key)
            .map(|it| it.as_ref().clone())
    }

    /// All objects, and the version at which they were so.
    pub(crate) fn all(&self, wanted: impl Fn(&Key) -> bool) -> (Vec<(Key, Arc<Value>)>, u64) {
        let state = self.state.lock();
        let found = state.objects.iter().filter(|(key, _)| wanted(key));
        let found = found.map(|(key, object)| (key.clone(), object.clone()));
        (found.collect(), state.version)
    }

    /// Replaces an object by what `act` makes of it, alone with the store. What does not change makes no
    /// new version. Gives the object as it is then, or was before it was deleted.
    pub(crate) fn change(
        &self,
        key: &Key,
        act: impl FnOnce(Option<&Value>) -> Result<Option<Value>, Refusal>,
    ) -> Result<Value, Refusal> {
        let mut state = self.state.lock();
        let before = state.objects.get(key).cloned();
        let mut after = act(before.as_deref())?;
        if after.as_ref() == before.as_deref() {
            return after.ok_or_else(|| Refusal::not_found(format!("{:?} not found", key.name)));
        }
        state.version += 1;
        let version = state.version;
        let left = after.is_some();
        let mut told = after
            .take()
            .or(before.as_deref().cloned())
            .unwrap_or_default();
        told["metadata"]["resourceVersion"] = version.to_string().into();
        let shared = Arc::new(told.clone());
        // Who watches is told of a deletion with the version that it made.
        let (before, after) = match left {
            true => {
                state.objects.insert(key.clone(), shared.clone());
                (before, Some(shared))
            }
            false => {
                state.objects.remove(key);
                (Some(shared), None)
            }
        };
        state.history.push_back(Event {
            version,
            key: key.clone(),
            before,
            after,
        });
        if state.history.len() > HISTORY
            && let Some(first) = state.history.pop_front()
        {
            state.forgotten = first.version;
        }
        drop(state);
        self.changed.send_replace(version);
        Ok(told)
    }

    /// What happened after `version`; 410 if that is not known any more.
    pub(crate) fn since(&self, version: u64) -> Result<Vec<Event>, Refusal> {
        let state = self.state.lock();
        if version < state.forgotten {
            return Err(Refusal::gone());
        }
        let first = state
            .history
            .partition_point(|event| event.version <= version);
        Ok(state.history.range(first..).cloned().collect())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Forgets what happened. A new version is made, so that every older one is too old.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock();
        state.version += 1;
        state.forgotten = state.version;
        state.history.clear();
    }

    /// A number that no other object got.
    pub(crate) fn next_number(&self) -> u64 {
        let mut state = self.state.lock();
        state.named += 1;
        state.named
    }
}
