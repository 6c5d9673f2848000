//! An S3 service that nobody here wrote: SeaweedFS, as its package installs it.
//!
//! `TRACKBED_S3_SERVER` names its program (`hack/lib/s3-server.sh` installs it). Each server has
//! free ports on loopback, a folder and a key of its own, and counts by itself what it sends.
//! What it cannot be made to do (be overloaded, page without end) is [`crate::s3_server`]'s.

use std::{
    collections::hash_map::RandomState,
    fs::{self, OpenOptions},
    hash::{BuildHasher, Hasher},
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use object_store::RetryConfig;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::s3_client::S3Client;

/// How long a server may take until it keeps objects: some 5 s where nothing else runs.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Ports are free when they are looked for, and another program may take them before the server.
const STARTS: usize = 3;

/// The program to start, or `None`, having said so, where it is not installed.
pub fn program() -> Option<PathBuf> {
    let program = std::env::var_os("TRACKBED_S3_SERVER").map(PathBuf::from);
    if program.is_none() {
        println!("skipped: TRACKBED_S3_SERVER names no S3 server (hack/test installs one)");
    }
    program
}

/// A running server; killed, and its objects deleted, when dropped.
pub struct SeaweedFs {
    child: Child,
    ports: Ports,
    client: S3Client,
    folder: TempDir,
}

impl SeaweedFs {
    /// Starts a server; returns when it keeps objects.
    pub async fn start(program: &Path) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..STARTS {
            let mut server = Self::spawn(program)?;
            match server.ready().await {
                Ok(()) => return Ok(server),
                Err(error) if server.child.try_wait()?.is_none() => return Err(error),
                // A port that it could not have ends it at once.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn spawn(program: &Path) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data"))?;
        let (key, secret) = (random("K"), random("S"));
        let identity = serde_json::json!({ "identities": [{
            "name": "trackbed",
            "credentials": [{ "accessKey": key, "secretKey": secret }],
            "actions": ["Admin"],
        }] });
        private(&at("identities.json"), &identity.to_string())?;
        private(&at("credentials"), &credentials(&key, &secret))?;
        let ports = Ports::free()?;
        let log = fs::File::create(at("log"))?;
        let child = Command::new(program)
            .args(["-logtostderr=true", "server"])
            // It must report to nobody, and listen where only this machine can reach it.
            .args(["-master.telemetry=false", "-ip=127.0.0.1"])
            .args(["-ip.bind=127.0.0.1", "-metricsIp=127.0.0.1"])
            .args(["-filer", "-s3", "-s3.iam=false", "-s3.autoCreateBucket"])
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            // Each bucket takes seven volumes, which grow as they are filled.
            .args(["-volume.max=100", "-master.volumeSizeLimitMB=64"])
            .args(ports.flags())
            .args([
                flag("dir", at("data")),
                flag("s3.config", at("identities.json")),
                flag("s3.localSocket", at("s3.sock")),
                flag("filer.localSocket", at("filer.sock")),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| {
                let program = program.display();
                io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
            })?;
        Ok(Self {
            child,
            client: S3Client {
                endpoint: format!("http://127.0.0.1:{}", ports.s3),
                key,
                secret,
                // Until it is ready: whoever waits sees at once why it is not.
                retry: RetryConfig {
                    max_retries: 0,
                    ..RetryConfig::default()
                },
            },
            ports,
            folder,
        })
    }

    /// Waits until an object can be put, which makes its bucket.
    async fn ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let probe = [("probe".to_owned(), b"ready".to_vec())];
            let Err(failed) = self.client.put("readiness", probe).await else {
                self.client.retry = RetryConfig::default();
                return Ok(());
            };
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!(
                    "SeaweedFS keeps no object ({failed}; ended: {ended:?}); its log:\n{log}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The base URL, as `endpoint=` wants it.
    pub fn endpoint(&self) -> &str {
        &self.client.endpoint
    }

    /// A file with the credentials that the server accepts, as `credentials=` wants it.
    pub fn credentials_file(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// A file with the accepted key and a secret that is not the key's.
    pub fn credentials_file_with_secret(&self, secret: &str) -> io::Result<PathBuf> {
        let path = self.folder.path().join("other-credentials");
        private(&path, &credentials(&self.client.key, secret))?;
        Ok(path)
    }

    /// The credentials as the variables of an environment.
    pub fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("AWS_ACCESS_KEY_ID", &self.client.key),
            ("AWS_SECRET_ACCESS_KEY", &self.client.secret),
        ]
    }

    /// Puts objects, making the bucket with the first of them.
    pub async fn put(
        &self,
        bucket: &str,
        objects: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> io::Result<()> {
        self.client.put(bucket, objects).await
    }

    /// Puts an object in parts, as uploaders do with large ones: its ETag is no digest of it.
    pub async fn put_in_parts(&self, bucket: &str, key: &str, bytes: &[u8]) -> io::Result<()> {
        self.client.put_in_parts(bucket, key, bytes).await
    }

    /// Gets all objects of a bucket, many at once, and keeps nothing: how many there are, and their bytes.
    pub async fn get_all(&self, bucket: &str) -> io::Result<(usize, u64)> {
        self.client.get_all(bucket).await
    }

    /// Deletes an object.
    pub async fn delete(&self, bucket: &str, key: &str) -> io::Result<()> {
        self.client.delete(bucket, key).await
    }

    /// Bytes of `bucket`'s objects that the server says it has sent.
    pub async fn bytes_sent(&self, bucket: &str) -> io::Result<u64> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.metrics)).await?;
        connection
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        if !answer.contains("SeaweedFS_s3_request_total") {
            return Err(io::Error::other(format!("no metrics of S3 in: {answer}")));
        }
        let name = format!("SeaweedFS_s3_bucket_traffic_sent_bytes_total{{bucket=\"{bucket}\"}} ");
        let value = answer.lines().find_map(|line| line.strip_prefix(&name));
        // It is printed as 4.1943e+06, and not at all before the first byte.
        let value: f64 = value.unwrap_or("0").parse().map_err(io::Error::other)?;
        Ok(value as u64)
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // Killed, as an orderly end takes it many seconds. It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (part, port) in self.ports.grpc() {
            // Where it puts these cannot be said to it; one that never was is no concern.
            let _ = fs::remove_file(format!("/tmp/seaweedfs-{part}-grpc-{port}.sock"));
        }
    }
}

/// Where the parts of the server listen.
struct Ports {
    master: [u16; 2],
    volume: [u16; 2],
    filer: [u16; 2],
    s3: u16,
    s3_grpc: u16,
    metrics: u16,
}

impl Ports {
    /// Ports that are free now, all different as they are held together.
    fn free() -> io::Result<Self> {
        let mut held = Vec::new();
        let mut next = || -> io::Result<u16> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            Ok(port)
        };
        Ok(Self {
            master: [next()?, next()?],
            volume: [next()?, next()?],
            filer: [next()?, next()?],
            s3: next()?,
            s3_grpc: next()?,
            metrics: next()?,
        })
    }

    fn grpc(&self) -> [(&'static str, u16); 4] {
        [
            ("master", self.master[1]),
            ("volume", self.volume[1]),
            ("filer", self.filer[1]),
            ("s3", self.s3_grpc),
        ]
    }

    fn flags(&self) -> impl Iterator<Item = String> {
        let http = [
            ("master.port", self.master[0]),
            ("volume.port", self.volume[0]),
            ("filer.port", self.filer[0]),
            ("s3.port", self.s3),
            ("metricsPort", self.metrics),
        ];
        let grpc = self
            .grpc()
            .map(|(part, port)| format!("-{part}.port.grpc={port}"));
        http.map(|(name, port)| format!("-{name}={port}"))
            .into_iter()
            .chain(grpc)
    }
}

fn flag(name: &str, path: PathBuf) -> String {
    format!("-{name}={}", path.display())
}

fn credentials(key: &str, secret: &str) -> String {
    format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
}

/// A word that no other run has.
fn random(prefix: &str) -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{prefix}{:016x}{:016x}", half(), half())
}

fn private(path: &Path, content: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(content.as_bytes())
}
