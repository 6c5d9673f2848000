//! Several nodes on this machine, each on an address of its own (usually of loopback), with a registry and
//! certificates made for the occasion.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU16, Ordering},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::node::Node;

/// Port of every node's control interface; the addresses differ.
const CONTROL_PORT: u16 = 7420;

/// The `trackbed` binary that was built with the running program: beside it, or a folder above it
/// where `cargo test` puts tests.
pub fn trackbed() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let mut found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("trackbed"));
    found.find(|binary| binary.exists()).unwrap_or_else(|| {
        panic!(
            "there is no `trackbed` near {}: run `cargo build -p trackbed` first (with --release \
             for a benchmark), or `cargo test --workspace`",
            own.display()
        )
    })
}

/// Nodes that know each other; dropping it ends them and removes what they left.
pub struct Cluster {
    /// The nodes, by rising address. Dropped before the folder they use.
    pub nodes: Vec<Node>,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Starts as many nodes.
    pub async fn start(nodes: usize) -> io::Result<Self> {
        Self::start_in(&std::env::temp_dir(), nodes).await
    }

    /// Starts as many nodes, all they have in a folder below this one, which goes with them.
    pub async fn start_in(folder: &Path, nodes: usize) -> io::Result<Self> {
        let mut cluster = Self::prepare_in(folder, nodes)?;
        for node in &mut cluster.nodes {
            node.start().await?;
        }
        Ok(cluster)
    }

    /// Makes the folders, the registry and the certificates, and starts nothing yet.
    pub fn prepare(nodes: usize) -> io::Result<Self> {
        Self::prepare_in(&std::env::temp_dir(), nodes)
    }

    fn prepare_in(folder: &Path, nodes: usize) -> io::Result<Self> {
        let [high, low] = private_network();
        let address = |node| Ipv4Addr::new(127, high, low, node as u8);
        let addresses: Vec<_> = (1..=nodes).map(address).collect();
        Self::prepare_at(folder, &addresses, "tcp")
    }

    /// Makes the same for nodes at these addresses, which talk to each other over this fabric. Where
    /// the addresses are not this machine's own, the nodes want a [`Node::prefix`] that leads there.
    pub fn prepare_at(folder: &Path, addresses: &[Ipv4Addr], fabric: &str) -> io::Result<Self> {
        // The kernel limits a socket's path to 107 bytes, so the folder's name is short.
        let folder = tempfile::Builder::new().prefix("tb").tempdir_in(folder)?;
        let authority = Authority::new()?;
        let registry = folder.path().join("registry");
        std::fs::create_dir_all(registry.join("datasets"))?;
        let mut members = Vec::new();
        let mut made = Vec::new();
        for (index, &address) in (1..).zip(addresses) {
            let name = format!("node-{index}");
            let home = folder.path().join(&name);
            for part in ["cache", "staging", "pods"] {
                std::fs::create_dir_all(home.join(part))?;
            }
            authority.issue(&name, &home)?;
            members.push(serde_json::json!({
                "name": name, "control": format!("{address}:{CONTROL_PORT}"), "weight": 100
            }));
            let mut command = command(&name, address, &home, &registry);
            command.extend(["--fabric".to_owned(), fabric.to_owned()]);
            made.push(Node::new(&name, address, home, command));
        }
        let members = serde_json::json!({ "members": members });
        std::fs::write(registry.join("members.json"), members.to_string())?;
        Ok(Self {
            nodes: made,
            folder,
        })
    }

    /// A folder that goes with the cluster, for origins and the like.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Registers what is in the folder `origin` through the first node.
    pub async fn register(&self, name: &str, origin: &Path) {
        let url = format!("file://{}", origin.display());
        self.nodes[0]
            .register(name, &url)
            .await
            .expect("a readable folder registers");
    }

    /// Bytes that all nodes together have read from origins.
    pub async fn origin_bytes(&self) -> u64 {
        let mut total = 0;
        for node in &self.nodes {
            total += node
                .counters()
                .await
                .expect("a running node counts")
                .origin_bytes;
        }
        total
    }
}

/// Two octets below 127 that no other cluster on this machine uses now, in all likelihood.
fn private_network() -> [u8; 2] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = std::process::id() as u16;
    let [high, low] = process
        .wrapping_mul(16)
        .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
        .to_be_bytes();
    [(high & 0x3f) + 1, low]
}

fn command(name: &str, address: Ipv4Addr, home: &Path, registry: &Path) -> Vec<String> {
    let path = |name: &str| home.join(name).display().to_string();
    let flags = [
        ("--name", name.to_owned()),
        ("--registry", registry.display().to_string()),
        ("--cache-dir", path("cache")),
        ("--memory", "96MiB".to_owned()),
        ("--control-listen", format!("{address}:{CONTROL_PORT}")),
        ("--tls-ca", path("ca.pem")),
        ("--tls-cert", path("tls.pem")),
        ("--tls-key", path("tls.key")),
        ("--admin-socket", path("admin.sock")),
        ("--csi-endpoint", format!("unix://{}", path("csi.sock"))),
    ];
    let mut command = vec![trackbed().display().to_string(), "node".to_owned()];
    for (flag, value) in flags {
        command.extend([flag.to_owned(), value]);
    }
    command
}

/// Signs the nodes' certificates; its key is never written.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self {
            pem,
            issuer: Issuer::new(params, key),
        })
    }

    fn issue(&self, name: &str, folder: &Path) -> io::Result<()> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .and_then(|params| params.signed_by(&key, &self.issuer))
            .map_err(io::Error::other)?;
        std::fs::write(folder.join("ca.pem"), &self.pem)?;
        std::fs::write(folder.join("tls.pem"), certificate.pem())?;
        std::fs::write(folder.join("tls.key"), key.serialize_pem())
    }
}
