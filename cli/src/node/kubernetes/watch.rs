//! Keeps the view up to date: lists, then watches, and begins anew when the API server has forgotten where
//! we were. While it is away, what was known goes on being used.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use trackbed_controller::api::{CacheNode, Dataset};

use super::registry::KubernetesRegistry;

/// After how many seconds a watch is begun anew. One that has died without a word is noticed by then.
const WATCH_SECONDS: u32 = 60;

/// Watches the nodes until the runtime ends.
pub(super) async fn nodes(registry: Arc<KubernetesRegistry>) {
    let mut listed = Vec::new();
    let mut events = pin!(events::<CacheNode>(&registry));
    while let Some(event) = events.next().await {
        registry.change(|view| match event {
            Event::Init => listed.clear(),
            Event::InitApply(node) => listed.push(node),
            Event::InitDone => view.all_nodes(std::mem::take(&mut listed), Timestamp::now()),
            Event::Apply(node) => view.node(node, Timestamp::now()),
            Event::Delete(node) => view.node_gone(&node.name_any()),
        });
    }
}

/// Watches the datasets until the runtime ends.
pub(super) async fn datasets(registry: Arc<KubernetesRegistry>) {
    let mut listed = Vec::new();
    let mut events = pin!(events::<Dataset>(&registry));
    while let Some(event) = events.next().await {
        registry.change(|view| match event {
            Event::Init => listed.clear(),
            Event::InitApply(dataset) => listed.push(dataset),
            Event::InitDone => view.all_datasets(std::mem::take(&mut listed)),
            Event::Apply(dataset) => view.dataset(dataset),
            Event::Delete(dataset) => view.dataset_gone(&dataset),
        });
    }
}

/// All that happens to a kind's objects, without end: what fails is logged and tried again, less and less
/// often.
fn events<K>(registry: &KubernetesRegistry) -> impl Stream<Item = Event<K>> + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let events = watcher(Api::<K>::all(registry.client()), config).default_backoff();
    events.filter_map(|event| async {
        // Who manages which field is of no use here, and is most of an object.
        let event = event.map(|event| event.modify(|object| object.managed_fields_mut().clear()));
        event
            .inspect_err(|error| {
                tracing::warn!(kind = %K::kind(&()), %error, "going on with what the API server said before");
            })
            .ok()
    })
}
