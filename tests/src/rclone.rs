//! An S3 service that is no bottleneck: `rclone serve s3` over a folder, which costs the machine a
//! fraction of what a service with volumes and replicas does.
//!
//! `TRACKBED_RCLONE` names its program (`hack/lib/s3-server.sh` installs it). A server has a free
//! port on loopback, a folder and a key of its own.

use std::{
    collections::hash_map::RandomState,
    fs,
    hash::{BuildHasher, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use object_store::RetryConfig;
use tempfile::TempDir;

use crate::s3_client::S3Client;

/// How long a server may take until it answers; far beyond what it needs.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The program to start, if it is installed.
pub fn program() -> Option<PathBuf> {
    std::env::var_os("TRACKBED_RCLONE").map(PathBuf::from)
}

/// A running server; killed, and its objects deleted, when dropped.
pub struct RcloneS3 {
    child: Child,
    client: S3Client,
    folder: TempDir,
}

impl RcloneS3 {
    /// Starts a server with these buckets, its objects below `parent`; returns when it answers.
    pub fn start(program: &Path, parent: &Path, buckets: &[&str]) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tb-s3-")
            .tempdir_in(parent)?;
        for bucket in buckets {
            fs::create_dir_all(folder.path().join("objects").join(bucket))?;
        }
        let (key, secret) = (random("K"), random("S"));
        let credentials =
            format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        fs::write(folder.path().join("credentials"), credentials)?;
        // Free now; whoever takes it first, the server or another, is seen below.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let log = fs::File::create(folder.path().join("log"))?;
        let child = Command::new(program)
            // What it reads it sends as it is; what it has listed, it remembers.
            .args(["serve", "s3", "--buffer-size=0", "--no-checksum"])
            .arg("--dir-cache-time=24h")
            .arg(format!("--addr={address}"))
            .arg(format!("--auth-key={key},{secret}"))
            .arg(format!(
                "--config={}",
                folder.path().join("config").display()
            ))
            .arg(folder.path().join("objects"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self {
            child,
            client: S3Client {
                endpoint: format!("http://{address}"),
                key,
                secret,
                retry: RetryConfig::default(),
            },
            folder,
        };
        server.ready(address)?;
        Ok(server)
    }

    fn ready(&mut self, address: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while TcpStream::connect(address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!(
                    "rclone serve s3 does not answer (ended: {ended:?}); its log:\n{log}"
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The folder whose files are the bucket's objects. To be filled before the bucket is asked for:
    /// the server remembers what is in it.
    pub fn bucket(&self, name: &str) -> PathBuf {
        self.folder.path().join("objects").join(name)
    }

    /// The base URL, as `endpoint=` wants it.
    pub fn endpoint(&self) -> &str {
        &self.client.endpoint
    }

    /// A file with the credentials that the server accepts, as `credentials=` wants it.
    pub fn credentials_file(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// The credentials as the variables of an environment.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("AWS_ACCESS_KEY_ID", &self.client.key),
            ("AWS_SECRET_ACCESS_KEY", &self.client.secret),
        ]
    }

    /// Gets all objects of a bucket, many at once, and keeps nothing: how many there are, and their bytes.
    pub async fn get_all(&self, bucket: &str) -> io::Result<(usize, u64)> {
        self.client.get_all(bucket).await
    }
}

impl Drop for RcloneS3 {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A word that no other run has.
fn random(prefix: &str) -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:016x}", half(), half())
}
