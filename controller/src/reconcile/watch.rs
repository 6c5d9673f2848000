//! Keeps a world up to date: lists, then watches, and begins anew when the API server has forgotten where we
//! were.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::lead::Shared;
use super::world::{Change, Kind};
use crate::api::{CacheNode, Caffe2Job, Dataset, KubeflowCaffe2Job};
use crate::job::JOB_UID_LABEL;

/// After how many seconds a watch is begun anew. One that has died without a word is noticed by then.
const WATCH_SECONDS: u32 = 60;

/// Watches all kinds until the set is dropped.
pub(super) fn all(client: &Client, shared: &Arc<Shared>) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    let every = watcher::Config::default().timeout(WATCH_SECONDS);
    let ours = every.clone().labels(JOB_UID_LABEL);
    watches.spawn(keep::<Caffe2Job>(
        client.clone(),
        every.clone(),
        shared.clone(),
    ));
    watches.spawn(keep::<KubeflowCaffe2Job>(
        client.clone(),
        every.clone(),
        shared.clone(),
    ));
    watches.spawn(keep::<Pod>(client.clone(), every.clone(), shared.clone()));
    watches.spawn(keep::<Node>(client.clone(), every.clone(), shared.clone()));
    watches.spawn(keep::<Dataset>(
        client.clone(),
        every.clone(),
        shared.clone(),
    ));
    watches.spawn(keep::<CacheNode>(client.clone(), every, shared.clone()));
    watches.spawn(keep::<Service>(client.clone(), ours, shared.clone()));
    watches
}

async fn keep<T>(client: Client, config: watcher::Config, shared: Arc<Shared>)
where
    T: Kind + DeserializeOwned + Debug,
{
    let events = watcher(Api::<T>::all(client), config).default_backoff();
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        // Who manages which field is of no use here, and is most of an object.
        let lean = |mut object: T| {
            object.meta_mut().managed_fields = None;
            object
        };
        let change = match event {
            Ok(Event::Init) => Change::ListBegins,
            Ok(Event::InitApply(object)) => Change::Listed(lean(object)),
            Ok(Event::InitDone) => Change::ListEnds,
            Ok(Event::Apply(object)) => Change::There(lean(object)),
            Ok(Event::Delete(object)) => Change::Gone(object),
            Err(error) => {
                let kind = T::kind(&());
                tracing::warn!(%kind, %error, "going on with what the API server said before");
                continue;
            }
        };
        shared.change(|world| world.apply(change));
    }
}
