//! The registry of a node in Kubernetes.

use std::fs;
use std::path::PathBuf;

use futures::future::BoxFuture;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;
use trackbed_cache::registry::{DatasetRecord, Member, RegistryError};
use trackbed_cache::{DatasetName, Registry};
use trackbed_controller::api::{Dataset, MAX_EARLIER};

use super::view::{Remembered, View, object_of};
use super::{ANSWER_WITHIN, KubernetesConfig, VERSIONS, reason};

/// No cluster's members and datasets take as much.
const MAX_REMEMBERED: u64 = 64 << 20;

/// The cluster's members and datasets, as the API server has them.
pub(crate) struct KubernetesRegistry {
    client: Client,
    runtime: tokio::runtime::Handle,
    node: String,
    config: KubernetesConfig,
    view: Mutex<View>,
    changed: watch::Sender<u64>,
    file: PathBuf,
    remembered: Mutex<Remembered>,
}

impl KubernetesRegistry {
    /// The registry of the node of this name, which remembers what it knows in `file`.
    pub(crate) fn new(
        client: Client,
        node: &str,
        config: KubernetesConfig,
        file: PathBuf,
    ) -> KubernetesRegistry {
        let remembered = read(&file);
        let own = Member {
            name: node.to_owned(),
            control: config.address.clone(),
            weight: config.weight.unwrap_or(100),
        };
        KubernetesRegistry {
            client,
            runtime: tokio::runtime::Handle::current(),
            node: node.to_owned(),
            view: Mutex::new(View::new(own, config.report_every, remembered.clone())),
            config,
            changed: watch::Sender::new(0),
            file,
            remembered: Mutex::new(remembered),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn config(&self) -> &KubernetesConfig {
        &self.config
    }

    /// Looks at the view.
    pub(super) fn look<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.lock())
    }

    /// Changes the view, and wakes who waits for that.
    pub(super) fn change(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.view.lock());
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Tells of every change of the view.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Waits until the API server has told all, for as long as it may be expected to; without it, what was
    /// known before has to do.
    pub(crate) async fn known(&self) {
        let mut changes = self.changes();
        let whole = async {
            while !self.look(View::is_whole) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(ANSWER_WITHIN / 3, whole).await.is_err() {
            let (members, datasets) =
                self.look(|view| (view.members().len(), view.records().len()));
            tracing::warn!(
                members,
                datasets,
                "the API server does not answer: beginning with what this node knew before"
            );
        }
    }

    /// Writes what is known down, if it has changed. Waits for the disk.
    pub(super) fn remember(&self) {
        let known = self.look(|view| view.is_whole().then(|| view.to_remember()));
        let Some(known) = known else { return };
        let mut remembered = self.remembered.lock();
        if *remembered == known {
            return;
        }
        let text = serde_json::to_vec(&known).unwrap_or_default();
        let written = fs::write(self.file.with_extension("new"), text)
            .and_then(|()| fs::rename(self.file.with_extension("new"), &self.file));
        match written {
            Ok(()) => *remembered = known,
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error,
                    "what the API server said can't be remembered");
            }
        }
    }
}

fn read(file: &PathBuf) -> Remembered {
    let small = fs::metadata(file).is_ok_and(|found| found.len() <= MAX_REMEMBERED);
    let text = if small {
        fs::read(file).unwrap_or_default()
    } else {
        Vec::new()
    };
    // A file that is not there, or was half written by a crash, is no knowledge.
    serde_json::from_slice(&text).unwrap_or_default()
}

impl Registry for KubernetesRegistry {
    fn members(&self) -> Result<Vec<Member>, RegistryError> {
        Ok(self.look(View::members))
    }

    fn dataset(&self, name: &DatasetName) -> Result<Option<DatasetRecord>, RegistryError> {
        Ok(self.look(|view| view.record(name)))
    }

    fn datasets(&self) -> Result<Vec<DatasetRecord>, RegistryError> {
        Ok(self.look(View::records))
    }

    fn put_dataset<'a>(
        &'a self,
        record: &'a DatasetRecord,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        Box::pin(async move {
            let failed = |why: String, remedy| RegistryError::Unavailable {
                action: "writing the version of",
                place: format!("Dataset {}", record.name),
                why,
                remedy,
            };
            const MISSING: &str = "make the Dataset object first (trackbed dataset create, or kubectl), and \
                                   name it NAMESPACE.NAME here";
            const ASK: &str = "check that the API server can be reached, and that the node's service account \
                               may patch datasets/status";
            let place = object_of(&record.name);
            let object = self.look(|view| view.object(&record.name).cloned());
            let (Some((namespace, name)), Some(object)) = (place, object) else {
                return Err(failed("there is no such object".into(), MISSING));
            };
            let status = object.status.unwrap_or_default();
            let version = record.version.to_string();
            let had = status.version.into_iter().chain(status.earlier_versions);
            let earlier: Vec<_> = had
                .filter(|had| *had != version)
                .take(MAX_EARLIER)
                .collect();
            let patch = json!({
                "apiVersion": "trackbed.io/v1", "kind": "Dataset",
                // Not one of the same name that was made since.
                "metadata": { "name": name, "uid": object.metadata.uid },
                "status": { "version": version, "earlierVersions": earlier, "origin": record.origin,
                    "volumeDataset": record.name },
            });
            let api: Api<Dataset> = Api::namespaced(self.client(), namespace);
            let name = name.to_owned();
            // Whoever asks may be on a thread without a runtime.
            let written = self.runtime.spawn(async move {
                let how = PatchParams::apply(VERSIONS).force();
                timeout(
                    ANSWER_WITHIN,
                    api.patch_status(&name, &how, &Patch::Apply(patch)),
                )
                .await
            });
            match written.await {
                Ok(Ok(Ok(object))) => {
                    self.change(|view| view.dataset(object));
                    Ok(())
                }
                Ok(Ok(Err(error))) => Err(failed(reason(&error), ASK)),
                Ok(Err(_)) => Err(failed(format!("no answer within {ANSWER_WITHIN:?}"), ASK)),
                Err(_) => Err(failed("this node is shutting down".into(), ASK)),
            }
        })
    }
}
