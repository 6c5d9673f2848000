//! A pool's socket, and making kubelet call it: again whenever kubelet comes back.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};
use trackbed_proto::deviceplugin::v1beta1::RegisterRequest;
use trackbed_proto::deviceplugin::v1beta1::device_plugin_server::DevicePluginServer;
use trackbed_proto::deviceplugin::v1beta1::registration_client::RegistrationClient;
use trackbed_proto::endpoint::{EndpointError, listen};

use super::registrar;
use super::service::{PoolService, options};
use crate::config::PoolName;
use crate::plugin::Plugin;

const VERSION: &str = "v1beta1";
/// How long kubelet may take to register: it calls back before it answers, for which it gives itself 10 s.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long to wait before trying again, at first and at most.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Which socket is at a path: the number of a file that was removed may be the next one's.
fn identity(path: &Path) -> Option<(u64, u64, i64, i64)> {
    let found = path.symlink_metadata().ok()?;
    Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Serves a pool to kubelet until something is wrong with its socket that only a person can mend. Kubelet
/// removes all sockets of its folder when it starts: then ours is made anew.
pub async fn serve(
    plugin: &Arc<Plugin>,
    pool: &PoolName,
    folder: &Path,
    mut changes: watch::Receiver<u64>,
) -> EndpointError {
    let socket = folder.join(format!("trackbed-{pool}.sock"));
    loop {
        let endpoint = match socket.to_string_lossy().parse() {
            Ok(endpoint) => endpoint,
            Err(error) => return error,
        };
        let (listener, file) = match listen(&endpoint) {
            Ok(listening) => listening,
            // Kubelet's folder is not there yet, or no more.
            Err(EndpointError::Io { .. }) if !folder.is_dir() => {
                tokio::time::sleep(FIRST_RETRY).await;
                continue;
            }
            Err(error) => return error,
        };
        let service = DevicePluginServer::new(PoolService {
            plugin: Arc::clone(plugin),
            pool: pool.clone(),
        });
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let registered = stay_registered(plugin, pool, folder, &socket, &mut changes);
        tokio::select! {
            ended = server => tracing::error!(%pool, ?ended, "the socket's server ended"),
            () = registered => tracing::info!(%pool, "kubelet has removed the socket: it is made anew"),
        }
        drop(file);
    }
}

/// Registers now and whenever kubelet's own socket is another one; until ours is gone.
async fn stay_registered(
    plugin: &Plugin,
    pool: &PoolName,
    folder: &Path,
    socket: &Path,
    changes: &mut watch::Receiver<u64>,
) {
    let (ours, kubelets) = (identity(socket), registrar(folder));
    let mut known = None;
    let mut retry = FIRST_RETRY;
    loop {
        changes.mark_unchanged();
        if identity(socket) != ours {
            return;
        }
        let there = identity(&kubelets);
        if there.is_some() && there != known {
            match register(plugin, pool, &kubelets, socket).await {
                Ok(()) => {
                    tracing::info!(%pool, "registered with kubelet");
                    plugin.state.counters.registered();
                    known = there;
                    retry = FIRST_RETRY;
                }
                Err(why) => {
                    tracing::warn!(%pool, why, again_after = ?retry, "kubelet did not register the pool");
                    let _ = tokio::time::timeout(retry, changes.changed()).await;
                    retry = (retry * 2).min(LAST_RETRY);
                    continue;
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn register(
    plugin: &Plugin,
    pool: &PoolName,
    kubelets: &Path,
    socket: &Path,
) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", kubelets.display()));
    let endpoint = endpoint
        .map_err(|error| error.to_string())?
        .timeout(DEADLINE);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let name = socket.file_name().map(PathBuf::from).unwrap_or_default();
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: name.to_string_lossy().into_owned(),
        resource_name: plugin.state.config.resource(pool),
        options: Some(options()),
    };
    let answered = RegistrationClient::new(channel).register(request).await;
    answered
        .map(drop)
        .map_err(|status| status.message().to_owned())
}
