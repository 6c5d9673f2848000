//! `trackbed in-use`: which pods of a cluster have volumes of Trackbed. What the chart asks before it is
//! uninstalled, as mounts end with the keepers.

mod users;

use crate::exit::Failure;
use crate::node::kubernetes::{connect, reason};
use crate::output::print;
use clap::Args;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use trackbed_controller::reconcile::list_all;

/// How many pods are named; the rest are counted.
const NAMED: usize = 20;

/// Say which pods of the cluster have volumes of Trackbed, which end with its keepers
///
/// Asks the API server, as the pod's service account or as KUBECONFIG says. Ends with 1 if a pod has
/// one. The chart runs it before it is uninstalled.
#[derive(Args)]
pub(crate) struct InUseArgs {}

/// Asks, and says.
pub(crate) fn run(_: &InUseArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let users = runtime.block_on(ask())?;
    if users.is_empty() {
        return print("no pod has a volume of csi.trackbed.io");
    }
    let mut lines: Vec<String> = users.iter().take(NAMED).cloned().collect();
    if users.len() > NAMED {
        lines.push(format!("and {} more", users.len() - NAMED));
    }
    Err(Failure::failed(format!(
        "pods that have volumes of csi.trackbed.io, and would get errors when they read them: end them \
         first\n  {}",
        lines.join("\n  ")
    )))
}

async fn ask() -> Result<Vec<String>, Failure> {
    let client = connect().await?;
    let volumes: Vec<PersistentVolume> = all(&client, "persistent volumes").await?;
    let claims: Vec<PersistentVolumeClaim> = all(&client, "claims").await?;
    let pods: Vec<Pod> = all(&client, "pods").await?;
    Ok(users::of(&volumes, &claims, &pods))
}

async fn all<K>(client: &Client, what: &str) -> Result<Vec<K>, Failure>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let listed = list_all(client).await;
    listed.map_err(|error| Failure::failed(format!("listing {what}: {}", reason(&error))))
}
