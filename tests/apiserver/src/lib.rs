//! A Kubernetes API server in the test's own process: small, and strict where clients go wrong.
//!
//! It serves the kinds of the CustomResourceDefinitions it is given, and some of Kubernetes' own, by
//! plain HTTP on loopback, as described in "Kubernetes API Concepts" and "Server-Side Apply" of the
//! Kubernetes documentation:
//!
//! - resource versions, and 409 for who writes over what they have not seen;
//! - the status subresource: neither side of it can write the other; generations;
//! - schemas: what they do not name is dropped, what they default is set, what breaks them or their CEL
//!   rules is 422;
//! - server-side apply: field managers, conflicts, forcing, fields that are no longer applied;
//! - watches: from a version on, an event of code 410 if that is too old, bookmarks, time limits, selectors;
//! - lists in pages; finalizers; garbage collection by owner references;
//! - pods: what may change in one behind scheduling gates and what may not, binding, an end that takes a
//!   kubelet.
//!
//! [`Machines`] are nodes for it: a scheduler and kubelets.
//!
//! A test can stop it and have it come back on the same port, cut or stall its watches, forget its
//! history, forbid calls, answer with errors, and look at which calls were made. What nobody here uses
//! (strategic merge patch, JSON patch, discovery, authentication beyond one token) is refused.

mod answer;
mod apply;
mod fields;
mod garbage;
mod machines;
mod pods;
mod resource;
mod schema;
mod serve;
mod store;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use answer::Refusal;
use resource::{Kinds, Target};
use store::Store;
use write::Write;

pub use machines::Machines;

/// What every request must carry.
const TOKEN: &str = "a-token-of-this-test";

/// A verb, and the resource with its group and subresource, as RBAC has them: `patch`,
/// `datasets.trackbed.io/status`.
pub type Call = (String, String);

/// A running server; dropping it ends it.
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Mutex<Option<JoinHandle<()>>>,
    collecting: JoinHandle<()>,
}

/// What connections share.
struct Shared {
    kinds: Kinds,
    store: Store,
    faults: Faults,
    calls: Mutex<BTreeMap<Call, u64>>,
}

/// What goes wrong on purpose.
struct Faults {
    /// Watches send nothing while this is set.
    stalled: watch::Sender<bool>,
    /// Raised to end the watches that run.
    cut: watch::Sender<u64>,
    /// Every request is answered with this.
    status: Mutex<Option<u16>>,
    forbidden: Mutex<Vec<Call>>,
}

impl ApiServer {
    /// Starts a server that knows these CustomResourceDefinitions, as JSON. Must be called in a tokio
    /// runtime.
    ///
    /// # Panics
    ///
    /// If a definition is none.
    pub async fn start(definitions: &[Value]) -> io::Result<ApiServer> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            kinds: Kinds::new(definitions),
            store: Store::default(),
            faults: Faults {
                stalled: watch::Sender::new(false),
                cut: watch::Sender::new(0),
                status: Mutex::default(),
                forbidden: Mutex::default(),
            },
            calls: Mutex::default(),
        });
        let serving = tokio::spawn(serve::serve(listener, shared.clone()));
        let collecting = tokio::spawn(garbage::collect(shared.clone()));
        Ok(ApiServer {
            address,
            shared,
            collecting,
            serving: Mutex::new(Some(serving)),
        })
    }

    /// The text of a kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster: {{ \
             server: \"http://{}\" }}\nusers:\n- name: test\n  user: {{ token: {TOKEN} }}\ncontexts:\n- \
             name: test\n  context: {{ cluster: test, user: test, namespace: default }}\n",
            self.address
        )
    }

    /// Stops answering: connections break, new ones are refused. What is stored stays.
    pub async fn stop(&self) {
        let serving = self.serving.lock().take();
        if let Some(serving) = serving {
            serving.abort();
            // It has ended, and its port is free.
            let _ = serving.await;
        }
    }

    /// Comes back on the same port.
    pub async fn resume(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        let serving = tokio::spawn(serve::serve(listener, self.shared.clone()));
        *self.serving.lock() = Some(serving);
        Ok(())
    }

    /// Lets watches say nothing from now on, or speak again; they stay open.
    pub fn stall_watches(&self, stalled: bool) {
        self.shared.faults.stalled.send_replace(stalled);
    }

    /// Breaks the watches that run.
    pub fn cut_watches(&self) {
        self.shared.faults.cut.send_modify(|cut| *cut += 1);
    }

    /// Forgets the history: watches from an earlier version get 410.
    pub fn forget_history(&self) {
        self.shared.store.compact();
    }

    /// Answers every request with this HTTP status, or again as it should.
    pub fn answer_with(&self, status: Option<u16>) {
        *self.shared.faults.status.lock() = status;
    }

    /// Forbids a verb on a resource, written as in [`Call`].
    pub fn forbid(&self, verb: &str, resource: &str) {
        let call = (verb.to_owned(), resource.to_owned());
        self.shared.faults.forbidden.lock().push(call);
    }

    /// Which calls were made, and how often.
    pub fn calls(&self) -> BTreeMap<Call, u64> {
        self.shared.calls.lock().clone()
    }

    /// Creates an object as `kubectl create` would; gives it as stored.
    ///
    /// # Panics
    ///
    /// If the server refuses it, with its reason.
    pub fn create(&self, object: &Value) -> Value {
        let target = self.shared.kinds.target_of(object);
        let write = Write::create(object.clone(), "test");
        self.write(&target, write)
            .unwrap_or_else(|refusal| panic!("not created: {}", refusal.body()))
    }

    /// Merges a patch into an object (RFC 7386), its status left out; gives it as stored.
    ///
    /// # Panics
    ///
    /// If the server refuses it, with its reason, or does not have the object.
    pub fn merge(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Value {
        let target = self.shared.kinds.named(kind, namespace, name);
        let write = Write::merge(patch.clone(), "test");
        self.write(&target, write)
            .unwrap_or_else(|refusal| panic!("not merged: {}", refusal.body()))
    }

    /// The object, if there is one; `namespace` is empty for what has none.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let target = self.shared.kinds.named(kind, namespace, name);
        self.shared.store.get(&target.key())
    }

    /// The same for its status.
    ///
    /// # Panics
    ///
    /// If the server refuses it, with its reason, or does not have the object.
    pub fn merge_status(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Value {
        let mut target = self.shared.kinds.named(kind, namespace, name);
        target.subresource = Some("status".to_owned());
        let write = Write::merge(patch.clone(), "test");
        self.write(&target, write)
            .unwrap_or_else(|refusal| panic!("not merged: {}", refusal.body()))
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let mut target = self.shared.kinds.named(kind, "", "");
        target.name = None;
        let (all, _) = self.shared.store.all(|key| target.covers(key));
        all.into_iter()
            .map(|(_, object)| object.as_ref().clone())
            .collect()
    }

    /// Binds a pod to a node as a scheduler does; why not, if it may not be.
    pub fn bind(&self, namespace: &str, pod: &str, node: &str) -> Result<(), String> {
        let target = self.shared.kinds.named("Pod", namespace, pod);
        let done = self.write(&target, Write::bind(node));
        done.map(drop).map_err(|refusal| refusal.body().to_string())
    }

    /// A kubelet has ended a pod that was deleted: it is gone.
    pub fn ended(&self, namespace: &str, pod: &str) {
        let target = self.shared.kinds.named("Pod", namespace, pod);
        // It is gone either way.
        let _ = self.write(
            &target,
            Write::delete_if(&json!({ "gracePeriodSeconds": 0 })),
        );
    }

    /// Deletes an object; nothing happens if there is none.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let target = self.shared.kinds.named(kind, namespace, name);
        // It is gone either way.
        let _ = self.write(&target, Write::delete());
    }

    fn write(&self, target: &Target, write: Write) -> Result<Value, Refusal> {
        let resource = self.shared.kinds.resource(target);
        write.carry_out(resource, target, &self.shared.store)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.collecting.abort();
        if let Some(serving) = self.serving.lock().take() {
            serving.abort();
        }
    }
}
