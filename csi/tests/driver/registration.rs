//! How kubelet comes to know the driver: through a socket in its own folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tonic::transport::{Channel, Endpoint};
use trackbed_csi::driver::{DRIVER_NAME, Driver, DriverConfig};
use trackbed_csi::expose::fuse::InProcess;
use trackbed_proto::csi::v1::NodeGetInfoRequest;
use trackbed_proto::pluginregistration::v1::registration_client::RegistrationClient;
use trackbed_proto::pluginregistration::v1::{InfoRequest, RegistrationStatus};

use crate::datasets;
use crate::support::cluster::{Cluster, Folder};

/// kubelet's folder, in a test's own.
fn plugins_registry(folder: &Folder) -> PathBuf {
    let path = folder.path().join("kubelet/plugins_registry");
    fs::create_dir_all(&path).expect("makes");
    path
}

fn socket(registry: &Path) -> PathBuf {
    registry.join("csi.trackbed.io-reg.sock")
}

async fn connect(path: &Path) -> RegistrationClient<Channel> {
    let endpoint = format!("unix://{}", path.display());
    let endpoint = Endpoint::from_shared(endpoint).expect("an endpoint");
    RegistrationClient::new(endpoint.connect().await.expect("connects"))
}

async fn start(folder: Folder) -> Cluster {
    let registry = plugins_registry(&folder);
    Cluster::start_below(folder, Some(registry), datasets(), true).await
}

#[tokio::test]
async fn kubelet_asks_who_is_there_and_finds_the_driver_at_work() {
    let folder = Folder::new();
    let registry = plugins_registry(&folder);
    // As kubelet watches: what appears in its folder under a plain name is a plug-in.
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(&registry, appears).expect("watches");
    let mut cluster = start(folder).await;
    let path = socket(&registry);
    let mut appeared = BTreeSet::new();
    while appeared.is_empty() {
        let events = watch.read_events().unwrap_or_default();
        let names = events.into_iter().filter_map(|event| event.name);
        let names = names.map(|name| name.to_string_lossy().into_owned());
        appeared.extend(names.filter(|name| !name.starts_with('.')));
        tokio::task::yield_now().await;
    }
    assert!(
        appeared.iter().eq(["csi.trackbed.io-reg.sock"]),
        "{appeared:?}"
    );
    let found = fs::symlink_metadata(&path).expect("there");
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o600);

    let mut kubelet = connect(&path).await;
    for _ in 0..2 {
        let info = kubelet.get_info(InfoRequest {}).await;
        let info = info.expect("answers").into_inner();
        assert_eq!(info.r#type, "CSIPlugin");
        assert_eq!(info.name, DRIVER_NAME);
        assert_eq!(info.endpoint, cluster.text("csi.sock"));
        assert_eq!(info.supported_versions, ["1.0.0"]);
        let status = RegistrationStatus {
            plugin_registered: true,
            error: String::new(),
        };
        let noted = kubelet.notify_registration_status(status).await;
        noted.expect("answers");
    }
    let node = cluster.node.node_get_info(NodeGetInfoRequest {}).await;
    node.expect("works");
    let (_folder, ended) = cluster.stop().await;
    ended.expect("ends well");
    assert_eq!(fs::read_dir(&registry).expect("lists").count(), 0);
}

#[tokio::test]
async fn a_driver_that_kubelet_refuses_ends_with_its_reason() {
    let folder = Folder::new();
    let registry = plugins_registry(&folder);
    let cluster = start(folder).await;
    let path = socket(&registry);
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    let mut kubelet = connect(&path).await;
    let status = RegistrationStatus {
        plugin_registered: false,
        error: "the name is taken".to_owned(),
    };
    let noted = kubelet.notify_registration_status(status).await;
    noted.expect("answers before it ends");
    let (folder, ended) = cluster.ended().await;
    let reason = ended.expect_err("refused").to_string();
    assert!(reason.contains("the name is taken"), "{reason}");
    assert_eq!(fs::read_dir(&registry).expect("lists").count(), 0);
    assert!(!folder.path().join("csi.sock").exists());
}

#[tokio::test]
async fn a_socket_of_an_earlier_life_is_replaced() {
    let folder = Folder::new();
    let registry = plugins_registry(&folder);
    let path = socket(&registry);
    drop(UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let cluster = start(folder).await;
    let mut kubelet = loop {
        let endpoint = format!("unix://{}", path.display());
        let endpoint = Endpoint::from_shared(endpoint).expect("an endpoint");
        match endpoint.connect().await {
            Ok(channel) => break RegistrationClient::new(channel),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let info = kubelet.get_info(InfoRequest {}).await;
    assert_eq!(info.expect("answers").into_inner().name, DRIVER_NAME);
    cluster.stop().await.1.expect("ends well");
}

#[tokio::test]
async fn a_kubelet_that_is_not_there_is_said_by_its_folder() {
    let folder = Folder::new();
    let nowhere = folder.path().join("nowhere");
    let config = DriverConfig {
        node_id: "node-1".to_owned(),
        state_dir: folder.path().join("state"),
        registry: folder.path().join("registry"),
        topology: Default::default(),
        plugins_registry: Some(nowhere.clone()),
        unmount_on_exit: true,
    };
    let driver = Driver::new(config, datasets(), Arc::new(InProcess)).expect("a driver");
    let endpoint = format!("unix://{}/csi.sock", folder.path().display());
    let endpoint = endpoint.parse().expect("an endpoint");
    let ended = driver.serve(endpoint, std::future::pending()).await;
    let reason = ended.expect_err("refused").to_string();
    assert!(reason.contains(&nowhere.display().to_string()), "{reason}");
}
