//! What a node can be told: by flag, by `TRACKBED_*` variable, or in a YAML file whose keys are
//! the flags' names. A flag wins over its variable, both over the file.

mod in_cluster;
#[cfg(test)]
mod tests;
mod values;

use super::kubernetes::KubernetesConfig;
use crate::exit::Failure;
use crate::keeper::PassthroughChoice;
use crate::size::Size;
use clap::Args;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use trackbed_cache::registry::Namespace;
use trackbed_proto::endpoint::Endpoint;
pub(crate) use values::{ExposeChoice, FabricChoice, Quota};

/// Largest configuration file read, in bytes: this is not a place for data.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Pinned memory when nothing else is said.
pub(crate) const DEFAULT_MEMORY: Size = Size(128 << 20);

/// How full the cache may make its disk when nothing else is said, in percent.
const DEFAULT_DISK_PERCENT: u8 = 95;

/// What a peer may take to show that it lives when nothing else is said.
const DEFAULT_PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings as given; each may be missing in one source and there in another.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// This node's name: a DNS name that its certificate and the registry carry
    #[arg(long, env = "TRACKBED_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Folder of the registry: who the members are, which datasets there are; with --kubernetes only
    /// the volumes that were created by name [default there: registry in the cache's folder]
    #[arg(long, env = "TRACKBED_REGISTRY", value_name = "FOLDER")]
    pub(crate) registry: Option<PathBuf>,

    /// Take members and datasets from the Kubernetes API: as the pod's service account, or as
    /// KUBECONFIG says
    #[arg(long, env = "TRACKBED_KUBERNETES", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) kubernetes: Option<bool>,

    /// With --kubernetes: where peers reach this node's control interface
    /// [default: --control-listen, if that is one address]
    #[arg(long, env = "TRACKBED_CONTROL_ADVERTISE", value_name = "HOST:PORT")]
    pub(crate) control_advertise: Option<String>,

    /// With --kubernetes: how often the node reports to the API server, in seconds; one of which three
    /// reports fail to come is left out of the cache [default: 30]
    #[arg(long, env = "TRACKBED_REPORT_EVERY", value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub(crate) report_every: Option<u16>,

    /// With --kubernetes: this node's share of the chunks relative to the others', 0 to 1000
    /// [default: what its CacheNode object says, 100 if that says nothing]
    #[arg(long, env = "TRACKBED_WEIGHT", value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) weight: Option<u32>,

    /// With --kubernetes: the zone this node is in
    #[arg(long, env = "TRACKBED_ZONE", value_name = "ZONE")]
    pub(crate) zone: Option<String>,

    /// With --kubernetes: the rack this node is in
    #[arg(long, env = "TRACKBED_RACK", value_name = "RACK")]
    pub(crate) rack: Option<String>,

    /// With --kubernetes: a folder of this machine below which Dataset objects of any namespace may have
    /// their origin [default: none]
    #[arg(
        long = "share-folder",
        env = "TRACKBED_SHARE_FOLDERS",
        value_name = "FOLDER",
        value_delimiter = ','
    )]
    pub(crate) share_folders: Option<Vec<PathBuf>>,

    /// With --kubernetes: let Dataset objects of any namespace that name no credentials use those of this
    /// node's environment
    #[arg(long, env = "TRACKBED_SHARE_CREDENTIALS", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) share_credentials: Option<bool>,

    /// Folder of the cache, on the disk that shall hold the datasets; may be given several times, once
    /// for each disk. What the node itself keeps goes to the first
    #[arg(
        long,
        env = "TRACKBED_CACHE_DIR",
        value_name = "FOLDER",
        value_delimiter = ','
    )]
    #[serde(default, deserialize_with = "one_or_several")]
    pub(crate) cache_dir: Option<Vec<PathBuf>>,

    /// How much the cache may hold on each disk, such as 2TiB [default: what --cache-disk-percent
    /// allows]
    #[arg(long, env = "TRACKBED_CACHE_CAPACITY", value_name = "SIZE")]
    pub(crate) cache_capacity: Option<Size>,

    /// How full the cache may make each disk, in percent, whatever else is on it [default: 95]
    #[arg(long, env = "TRACKBED_CACHE_DISK_PERCENT", value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) cache_disk_percent: Option<u8>,

    /// How much the cache may hold of the datasets that only this namespace's pods may read, such as
    /// team-a=500GiB; may be given several times [default: as all the others]
    #[arg(
        long = "cache-quota",
        env = "TRACKBED_CACHE_QUOTA",
        value_name = "NAMESPACE=SIZE",
        value_delimiter = ','
    )]
    pub(crate) cache_quota: Option<Vec<Quota>>,

    /// Pinned memory for data on its way between disk and network [default: 128MiB]
    #[arg(long, env = "TRACKBED_MEMORY", value_name = "SIZE")]
    pub(crate) memory: Option<Size>,

    /// Where peers reach this node's control interface [default: 0.0.0.0:7420]
    #[arg(long, env = "TRACKBED_CONTROL_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) control_listen: Option<SocketAddr>,

    /// Certificates of the authorities that sign the members' certificates, PEM
    #[arg(long, env = "TRACKBED_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// This node's certificate, PEM, followed by any intermediate ones
    #[arg(long, env = "TRACKBED_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key, PEM
    #[arg(long, env = "TRACKBED_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// What carries data between peers [default: auto]
    #[arg(long, env = "TRACKBED_FABRIC", value_name = "KIND")]
    pub(crate) fabric: Option<FabricChoice>,

    /// Where peers reach this node's data over TCP; the address must be one that they can
    /// connect to [default: the control interface's address, any port]
    #[arg(long, env = "TRACKBED_FABRIC_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) fabric_listen: Option<SocketAddr>,

    /// The address at which peers reach this node's data over TCP, where it is not the one
    /// listened on: behind a translated address, say
    #[arg(long, env = "TRACKBED_FABRIC_ADVERTISE", value_name = "ADDRESS")]
    pub(crate) fabric_advertise: Option<IpAddr>,

    /// The RDMA device for verbs [default: the first with an active port]
    #[arg(long, env = "TRACKBED_RDMA_DEVICE", value_name = "DEVICE")]
    pub(crate) rdma_device: Option<String>,

    /// How long a peer that owes data may give no sign of life until it is given up, in seconds
    /// [default: 10]
    #[arg(long, env = "TRACKBED_PEER_TIMEOUT", value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) peer_timeout: Option<u16>,

    /// Folder in which the CSI driver remembers what it has mounted, over restarts
    /// [default: csi in the cache's folder]
    #[arg(long, env = "TRACKBED_STATE_DIR", value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Take the mounts away at the end, instead of leaving them to the next start
    #[arg(long, env = "TRACKBED_UNMOUNT_ON_EXIT", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) unmount_on_exit: Option<bool>,

    /// How datasets are shown to pods [default: auto]
    #[arg(long, env = "TRACKBED_EXPOSE", value_name = "HOW")]
    pub(crate) expose: Option<ExposeChoice>,

    /// Unix socket of the keeper that serves the mounts [default: one in the cache's folder, of a
    /// keeper that the node starts itself and that outlives it]
    #[arg(long, env = "TRACKBED_KEEPER", value_name = "SOCKET")]
    pub(crate) keeper: Option<PathBuf>,

    /// Whether the kernel may read whole files by itself, unchecked by us [default: auto]
    #[arg(long, env = "TRACKBED_PASSTHROUGH", value_name = "WHEN")]
    pub(crate) passthrough: Option<PassthroughChoice>,

    /// Unix socket for `trackbed dataset`; only this user can open it
    #[arg(long, env = "TRACKBED_ADMIN_SOCKET", value_name = "SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,

    /// Unix socket of the CSI driver, as unix:///path; without it there is none
    #[arg(long, env = "CSI_ENDPOINT", value_name = "ENDPOINT")]
    pub(crate) csi_endpoint: Option<String>,

    /// kubelet's folder of registration sockets, /var/lib/kubelet/plugins_registry: the CSI driver
    /// registers itself there; without it, something else has to
    #[arg(long, env = "TRACKBED_KUBELET_PLUGINS_REGISTRY", value_name = "FOLDER")]
    pub(crate) kubelet_plugins_registry: Option<PathBuf>,

    /// Where /metrics is served over HTTP; without it they are not
    #[arg(long, env = "TRACKBED_METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// A node's configuration: complete and checked for what can be checked without acting.
#[derive(Clone, Debug)]
pub(crate) struct NodeConfig {
    pub(crate) name: String,
    pub(crate) registry: PathBuf,
    /// `None`: members and datasets are in the registry's folder.
    pub(crate) kubernetes: Option<KubernetesConfig>,
    /// One on each disk; at least one.
    pub(crate) cache_dirs: Vec<PathBuf>,
    /// Bytes on each disk; `None` leaves it to the disk.
    pub(crate) cache_capacity: Option<u64>,
    /// 1 to 100.
    pub(crate) cache_disk_percent: u8,
    /// Bytes by namespace.
    pub(crate) cache_quotas: BTreeMap<Namespace, u64>,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) control_listen: SocketAddr,
    pub(crate) tls_ca: PathBuf,
    pub(crate) tls_cert: PathBuf,
    pub(crate) tls_key: PathBuf,
    pub(crate) fabric: FabricChoice,
    pub(crate) fabric_listen: SocketAddr,
    pub(crate) fabric_advertise: Option<IpAddr>,
    pub(crate) rdma_device: Option<String>,
    pub(crate) peer_timeout: Duration,
    pub(crate) state_dir: PathBuf,
    pub(crate) unmount_on_exit: bool,
    pub(crate) expose: ExposeChoice,
    /// `None`: the node starts one of its own.
    pub(crate) keeper: Option<Endpoint>,
    pub(crate) passthrough: PassthroughChoice,
    pub(crate) admin_socket: Endpoint,
    pub(crate) csi_endpoint: Option<Endpoint>,
    pub(crate) kubelet_plugins_registry: Option<PathBuf>,
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// Reads the file, if one is named, lays the flags and variables over it, and completes the rest.
pub(crate) fn resolve(flags: Settings, file: Option<&Path>) -> Result<NodeConfig, Failure> {
    let settings = match file {
        Some(path) => flags.over(read(path)?),
        None => flags,
    };
    settings.complete()
}

fn read(path: &Path) -> Result<Settings, Failure> {
    let refuse = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("configuration {}: {why}", path.display()))
    };
    let size = std::fs::metadata(path)
        .map_err(|error| refuse(&error))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(refuse(&format!(
            "{size} bytes are no configuration: name another file"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refuse(&error))?;
    if text.trim().is_empty() {
        return Ok(Settings::default());
    }
    serde_saphyr::from_str(&text).map_err(|error| refuse(&error))
}

impl Settings {
    /// These settings, and where one is missing that of `other`.
    fn over(self, other: Settings) -> Settings {
        Settings {
            name: self.name.or(other.name),
            registry: self.registry.or(other.registry),
            kubernetes: self.kubernetes.or(other.kubernetes),
            control_advertise: self.control_advertise.or(other.control_advertise),
            report_every: self.report_every.or(other.report_every),
            weight: self.weight.or(other.weight),
            zone: self.zone.or(other.zone),
            rack: self.rack.or(other.rack),
            share_folders: self.share_folders.or(other.share_folders),
            share_credentials: self.share_credentials.or(other.share_credentials),
            cache_dir: self.cache_dir.or(other.cache_dir),
            cache_capacity: self.cache_capacity.or(other.cache_capacity),
            cache_disk_percent: self.cache_disk_percent.or(other.cache_disk_percent),
            cache_quota: self.cache_quota.or(other.cache_quota),
            memory: self.memory.or(other.memory),
            control_listen: self.control_listen.or(other.control_listen),
            tls_ca: self.tls_ca.or(other.tls_ca),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            fabric: self.fabric.or(other.fabric),
            fabric_listen: self.fabric_listen.or(other.fabric_listen),
            fabric_advertise: self.fabric_advertise.or(other.fabric_advertise),
            rdma_device: self.rdma_device.or(other.rdma_device),
            peer_timeout: self.peer_timeout.or(other.peer_timeout),
            state_dir: self.state_dir.or(other.state_dir),
            unmount_on_exit: self.unmount_on_exit.or(other.unmount_on_exit),
            expose: self.expose.or(other.expose),
            keeper: self.keeper.or(other.keeper),
            passthrough: self.passthrough.or(other.passthrough),
            admin_socket: self.admin_socket.or(other.admin_socket),
            csi_endpoint: self.csi_endpoint.or(other.csi_endpoint),
            kubelet_plugins_registry: self
                .kubelet_plugins_registry
                .or(other.kubelet_plugins_registry),
            metrics_listen: self.metrics_listen.or(other.metrics_listen),
        }
    }

    fn complete(self) -> Result<NodeConfig, Failure> {
        let control_listen = self
            .control_listen
            .unwrap_or((Ipv4Addr::UNSPECIFIED, 7420).into());
        let kubernetes = self.in_cluster(control_listen)?;
        let cache_dirs = self.cache_dir.filter(|given| !given.is_empty());
        let cache_dirs = required(cache_dirs, "cache-dir")?;
        let cache_dir = &cache_dirs[0];
        let registry = match (self.registry, &kubernetes) {
            (None, Some(_)) => cache_dir.join("registry"),
            (registry, _) => required(registry, "registry")?,
        };
        let endpoint = |flag: &str, text: &str| {
            text.parse::<Endpoint>()
                .map_err(|error| Failure::usage(format!("--{flag}: {error}")))
        };
        let csi_endpoint = match &self.csi_endpoint {
            Some(text) => Some(endpoint("csi-endpoint", text)?),
            None => None,
        };
        if self.kubelet_plugins_registry.is_some() && csi_endpoint.is_none() {
            return Err(Failure::usage(
                "--kubelet-plugins-registry registers the CSI driver, which is not served: give \
                 --csi-endpoint too",
            ));
        }
        let keeper = match &self.keeper {
            Some(path) => Some(endpoint("keeper", &path.to_string_lossy())?),
            None => None,
        };
        let admin_socket = self
            .admin_socket
            .unwrap_or_else(|| cache_dir.join("admin.sock"));
        let admin_socket = endpoint("admin-socket", &admin_socket.to_string_lossy())?;
        let name = required(self.name, "name")?;
        if !is_dns_name(&name) {
            return Err(Failure::usage(format!(
                "--name {name:?} is no DNS name: use a-z, 0-9, - and . as in its certificate"
            )));
        }
        let cache_disk_percent = match self.cache_disk_percent {
            Some(percent @ (0 | 101..)) => {
                return Err(Failure::usage(format!(
                    "--cache-disk-percent {percent}: give 1 to 100"
                )));
            }
            percent => percent.unwrap_or(DEFAULT_DISK_PERCENT),
        };
        let quotas = self.cache_quota.into_iter().flatten();
        let peer_timeout = match self.peer_timeout {
            Some(0) => return Err(Failure::usage("--peer-timeout 0: give at least 1 second")),
            Some(seconds) => Duration::from_secs(seconds.into()),
            None => DEFAULT_PEER_TIMEOUT,
        };
        Ok(NodeConfig {
            name,
            registry,
            kubernetes,
            cache_capacity: self.cache_capacity.map(|size| size.0),
            cache_disk_percent,
            cache_quotas: quotas
                .map(|quota| (quota.namespace, quota.size.0))
                .collect(),
            memory: self.memory.unwrap_or(DEFAULT_MEMORY).0,
            control_listen,
            tls_ca: required(self.tls_ca, "tls-ca")?,
            tls_cert: required(self.tls_cert, "tls-cert")?,
            tls_key: required(self.tls_key, "tls-key")?,
            fabric: self.fabric.unwrap_or_default(),
            fabric_listen: self
                .fabric_listen
                .unwrap_or_else(|| SocketAddr::new(control_listen.ip(), 0)),
            fabric_advertise: self.fabric_advertise,
            rdma_device: self.rdma_device,
            peer_timeout,
            state_dir: self.state_dir.unwrap_or_else(|| cache_dir.join("csi")),
            unmount_on_exit: self.unmount_on_exit.unwrap_or(false),
            expose: self.expose.unwrap_or_default(),
            keeper,
            passthrough: self.passthrough.unwrap_or_default(),
            admin_socket,
            csi_endpoint,
            kubelet_plugins_registry: self.kubelet_plugins_registry,
            metrics_listen: self.metrics_listen,
            cache_dirs,
        })
    }
}

impl NodeConfig {
    /// The folder of what the node itself keeps.
    pub(crate) fn own_dir(&self) -> &Path {
        &self.cache_dirs[0]
    }
}

/// A path, or a list of them.
fn one_or_several<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<PathBuf>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a folder, or a list of folders")]
    enum Folders {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(Some(match Folders::deserialize(from)? {
        Folders::One(one) => vec![one],
        Folders::Several(several) => several,
    }))
}

fn required<T>(value: Option<T>, key: &str) -> Result<T, Failure> {
    value.ok_or_else(|| {
        let variable = key.to_ascii_uppercase().replace('-', "_");
        Failure::usage(format!(
            "a node needs --{key} (or TRACKBED_{variable}, or `{key}:` in the --config file)"
        ))
    })
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}
