//! The server treats a real client as Kubernetes does.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Config, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};
use trackbed_apiserver::ApiServer;
use trackbed_controller::api::{CacheNode, Dataset};

async fn start() -> (ApiServer, Client) {
    let definitions = [Dataset::crd(), CacheNode::crd()];
    let definitions = definitions.map(|it| serde_json::to_value(it).expect("JSON"));
    let server = ApiServer::start(&definitions).await.expect("serves");
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.expect("a configuration");
    config.default_retry = false;
    (server, Client::try_from(config).expect("a client"))
}

fn object(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
        "metadata": { "name": name, "namespace": "a" }, "spec": spec })
}

fn dataset(name: &str) -> Dataset {
    serde_json::from_value(object(name, json!({ "origin": "s3://sets" }))).expect("a dataset")
}

/// The HTTP status of a refusal.
fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("not refused: {other:?}"),
    }
}

fn applying(manager: &str) -> PatchParams {
    PatchParams::apply(manager)
}

#[tokio::test]
async fn who_writes_over_what_they_have_not_seen_gets_409() {
    let (_server, client) = start().await;
    let api: Api<Dataset> = Api::namespaced(client, "a");
    let created = api
        .create(&PostParams::default(), &dataset("cats"))
        .await
        .expect("created");
    assert_eq!(
        code(api.create(&PostParams::default(), &dataset("cats")).await),
        409
    );
    let mut first = created.clone();
    first.spec.pinned = true;
    let updated = api
        .replace("cats", &PostParams::default(), &first)
        .await
        .expect("updated");
    assert_eq!(updated.metadata.generation, Some(2));
    let mut late = created.clone();
    late.spec.shared_with = vec!["b".into()];
    assert_eq!(
        code(api.replace("cats", &PostParams::default(), &late).await),
        409
    );
    late.metadata.resource_version = None;
    assert_eq!(
        code(api.replace("cats", &PostParams::default(), &late).await),
        422
    );
    let same = api
        .replace("cats", &PostParams::default(), &updated)
        .await
        .expect("nothing changes");
    assert_eq!(same.resource_version(), updated.resource_version());
    let stale = Patch::Merge(
        json!({ "metadata": { "resourceVersion": created.resource_version() },
        "spec": { "pinned": false } }),
    );
    assert_eq!(
        code(api.patch("cats", &PatchParams::default(), &stale).await),
        409
    );
}

#[tokio::test]
async fn neither_the_spec_nor_the_status_can_be_written_through_the_other() {
    let (_server, client) = start().await;
    let api: Api<Dataset> = Api::namespaced(client, "a");
    let mut new = dataset("cats");
    new.status = Some(serde_json::from_value(json!({ "bytes": 1 })).expect("a status"));
    let created = api
        .create(&PostParams::default(), &new)
        .await
        .expect("created");
    assert_eq!(created.status, None);
    let both = Patch::Merge(json!({ "spec": { "pinned": true }, "status": { "bytes": 2 } }));
    let told = api
        .patch_status("cats", &PatchParams::default(), &both)
        .await
        .expect("patched");
    assert_eq!(
        (told.spec.pinned, told.status.and_then(|it| it.bytes)),
        (false, Some(2))
    );
    assert_eq!(told.metadata.generation, Some(1));
    let patched = api
        .patch(
            "cats",
            &PatchParams::default(),
            &Patch::Merge(json!({
        "spec": { "pinned": true }, "status": { "bytes": 3 } })),
        )
        .await
        .expect("patched");
    assert_eq!(
        (patched.spec.pinned, patched.status.and_then(|it| it.bytes)),
        (true, Some(2))
    );
    assert_eq!(patched.metadata.generation, Some(2));
}

#[tokio::test]
async fn what_breaks_the_schema_or_its_rules_is_refused_and_unknown_fields_are_dropped() {
    let (_server, client) = start().await;
    let api: Api<Dataset> = Api::namespaced(client, "a");
    let apply = async |name: &str, spec: Value| {
        let patch = Patch::Apply(object(name, spec));
        api.patch(name, &applying("me"), &patch).await
    };
    let version = "0".repeat(64);
    for bad in [
        json!({}),
        json!({ "origin": 5 }),
        json!({ "origin": "ftp://host/x" }),
        json!({ "origin": "s3://sets?credentials=env" }),
        json!({ "origin": "file:///x", "credentials": { "secretName": "s" } }),
        json!({ "origin": "s3://sets", "warmUp": { "percent": 101 } }),
        json!({ "origin": "s3://sets", "warmUp": { "percent": 10, "paths": ["a"] } }),
        json!({ "origin": "s3://sets", "warmUp": { "paths": [] } }),
        json!({ "origin": "s3://sets", "version": "latest" }),
        json!({ "origin": "s3://sets", "sharedWith": ["a", "a"] }),
        json!({ "origin": "s3://sets", "sharedWith": ["A"] }),
        json!({ "origin": "s3://sets", "refresh": -1 }),
    ] {
        assert_eq!(code(apply("cats", bad.clone()).await), 422, "{bad}");
    }
    let long = "a".repeat(64);
    assert_eq!(
        code(apply(&long, json!({ "origin": "s3://sets" })).await),
        422
    );
    let good = json!({ "origin": "s3://sets", "version": version, "refresh": 2, "unknown": 1 });
    let made = apply("cats", good).await.expect("applied");
    assert!(!made.spec.pinned, "defaulted");
    let lowered = json!({ "origin": "s3://sets", "refresh": 1 });
    assert_eq!(code(apply("cats", lowered).await), 422);
}

#[tokio::test]
async fn an_applier_owns_what_it_applies_and_nothing_else() {
    let (server, client) = start().await;
    let api: Api<CacheNode> = Api::all(client);
    let node = |spec: Value| {
        Patch::Apply(json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
            "metadata": { "name": "n" }, "spec": spec }))
    };
    let agent =
        json!({ "address": "a:1", "zone": "z", "disks": [{ "path": "/1", "capacityBytes": 1 }] });
    api.patch("n", &applying("agent"), &node(agent.clone()))
        .await
        .expect("made");
    let admin =
        json!({ "weight": 5, "address": "a:1", "disks": [{ "path": "/2", "capacityBytes": 2 }] });
    let both = api
        .patch("n", &applying("admin"), &node(admin.clone()))
        .await
        .expect("no conflict");
    assert_eq!((both.spec.weight, both.spec.disks.len()), (Some(5), 2));
    let again = api
        .patch("n", &applying("admin"), &node(admin))
        .await
        .expect("the same");
    assert_eq!(again.resource_version(), both.resource_version());
    let other = json!({ "address": "b:2", "weight": 5 });
    assert_eq!(
        code(
            api.patch("n", &applying("admin"), &node(other.clone()))
                .await
        ),
        409
    );
    let forced = api
        .patch("n", &applying("admin").force(), &node(other))
        .await
        .expect("forced");
    assert_eq!(forced.spec.address, "b:2");
    assert_eq!(forced.spec.disks.len(), 1, "what it no longer applies goes");
    assert_eq!(
        forced.spec.zone.as_deref(),
        Some("z"),
        "what another applies stays"
    );
    assert_eq!(
        code(api.patch("n", &applying("agent"), &node(agent)).await),
        409
    );
    let status = json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": "n" }, "status": { "freeBytes": 3 } });
    let status = Patch::Apply(status);
    let told = api
        .patch_status("n", &applying("agent"), &status)
        .await
        .expect("applied");
    assert_eq!(told.spec, forced.spec);
    assert_eq!(told.status.and_then(|it| it.free_bytes), Some(3));
    let missing = api.patch_status("m", &applying("agent"), &status).await;
    assert!([400, 404].contains(&code(missing)));
    let merged = server.merge("CacheNode", "", "n", &json!({ "spec": { "zone": "y" } }));
    assert_eq!(
        merged["spec"]["zone"], "y",
        "a plain write takes a field over"
    );
}

#[tokio::test]
async fn a_watch_goes_on_from_a_version_and_a_forgotten_one_is_410() {
    let (server, client) = start().await;
    let api: Api<Dataset> = Api::all(client);
    server.create(&object("cats", json!({ "origin": "s3://sets" })));
    let listed = api.list(&ListParams::default()).await.expect("lists");
    let from = listed.metadata.resource_version.clone().expect("a version");
    server.merge(
        "Dataset",
        "a",
        "cats",
        &json!({ "spec": { "pinned": true } }),
    );
    server.delete("Dataset", "a", "cats");
    let params = WatchParams::default();
    let mut events = api.watch(&params, &from).await.expect("watches").boxed();
    assert!(matches!(events.next().await, Some(Ok(WatchEvent::Modified(it))) if it.spec.pinned));
    assert!(matches!(
        events.next().await,
        Some(Ok(WatchEvent::Deleted(_)))
    ));
    let bookmark = events.next().await;
    let Some(Ok(WatchEvent::Bookmark(bookmark))) = bookmark else {
        panic!("no bookmark: {bookmark:?}");
    };
    assert_ne!(bookmark.metadata.resource_version, from);
    server.forget_history();
    let mut late = api.watch(&params, &from).await.expect("watches").boxed();
    assert!(matches!(late.next().await, Some(Ok(WatchEvent::Error(status))) if status.code == 410));
    assert!(late.next().await.is_none());
}

#[tokio::test]
async fn a_watcher_gets_over_cuts_stalls_outages_and_a_lost_history() {
    let (server, client) = start().await;
    let config = watcher::Config::default().timeout(5);
    let events = watcher::watcher(Api::<Dataset>::all(client), config);
    let mut names = events
        .filter_map(async |event| match event {
            Ok(Event::Apply(it) | Event::InitApply(it)) => Some(it.name_any()),
            Ok(_) => None,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        })
        .boxed();
    let mut sees = async |name: &str| while names.next().await.as_deref() != Some(name) {};
    let make = |name: &str| server.create(&object(name, json!({ "origin": "s3://sets" })));
    make("one");
    sees("one").await;
    server.cut_watches();
    make("two");
    sees("two").await;
    server.stop().await;
    make("three");
    server.forget_history();
    server.resume().await.expect("its port is free");
    sees("three").await;
    server.answer_with(Some(503));
    server.cut_watches();
    make("four");
    server.answer_with(None);
    sees("four").await;
    // One that has said nothing for a while says it all later.
    server.stall_watches(true);
    make("five");
    server.stall_watches(false);
    sees("five").await;
}

#[tokio::test]
async fn lists_come_in_pages_and_by_selectors_and_finalizers_hold_what_is_deleted() {
    let (server, client) = start().await;
    for number in 0..5 {
        let mut object = object(&format!("set-{number}"), json!({ "origin": "s3://sets" }));
        object["metadata"]["labels"] = json!({ "odd": (number % 2).to_string() });
        object["metadata"]["finalizers"] = json!(["trackbed.io/test"]);
        server.create(&object);
    }
    let api: Api<Dataset> = Api::namespaced(client.clone(), "a");
    let mut params = ListParams::default().limit(2);
    let mut seen = 0;
    loop {
        let page = api.list(&params).await.expect("lists");
        seen += page.items.len();
        match page.metadata.continue_ {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(seen, 5);
    let odd = api
        .list(&ListParams::default().labels("odd=1"))
        .await
        .expect("lists");
    assert_eq!(odd.items.len(), 2);
    let named = api
        .list(&ListParams::default().fields("metadata.name=set-3"))
        .await;
    assert_eq!(named.expect("lists").items.len(), 1);
    let elsewhere: Api<Dataset> = Api::namespaced(client.clone(), "b");
    assert!(
        elsewhere
            .list(&ListParams::default())
            .await
            .expect("lists")
            .items
            .is_empty()
    );
    api.delete("set-0", &DeleteParams::default())
        .await
        .expect("deleting");
    let leaving = api.get("set-0").await.expect("still there");
    assert!(leaving.metadata.deletion_timestamp.is_some());
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    api.patch("set-0", &PatchParams::default(), &free)
        .await
        .expect("let go");
    assert_eq!(code(api.get("set-0").await), 404);
    server.forbid("get", "secrets");
    let secrets: Api<Secret> = Api::namespaced(client, "a");
    assert_eq!(code(secrets.get("s").await), 403);
}
