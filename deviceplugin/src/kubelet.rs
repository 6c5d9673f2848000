//! Kubelet's device plugin interface, version v1beta1: a server for each pool, and the registration that
//! makes kubelet call it.

mod pods;
mod registration;
mod service;
mod watch;

use std::path::{Path, PathBuf};

pub use pods::{PodsError, held_by_pods};
pub use registration::serve;
pub use watch::FolderWatch;

/// Where kubelet and its device plugins have their sockets.
pub const FOLDER: &str = "/var/lib/kubelet/device-plugins";
/// Where kubelet says which pod has which device.
pub const POD_RESOURCES: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";

/// The socket on which kubelet takes registrations.
fn registrar(folder: &Path) -> PathBuf {
    folder.join("kubelet.sock")
}
