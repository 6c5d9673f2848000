//! An S3-compatible server on loopback, in the test's own process.
//!
//! HTTP, signatures, XML and error codes are s3s's, and objects are kept by s3s-fs, in a folder
//! that goes with the server. s3s-fs alone gives no ETag in listings, walks the whole bucket for
//! each directory, and ignores `If-Match`; [`bucket`] answers those as S3 does. It also plays the
//! services that no file system can be: odd keys, pages without end, a service that is overloaded.

mod bucket;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use object_store::RetryConfig;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

use crate::s3_client::S3Client;
use bucket::{Buckets, Served};

/// The key that the server accepts. A test's own, of no worth anywhere else.
const KEY: &str = "trackbed-test";
const SECRET: &str = "not-a-secret-of-anyone";

/// A running server; ends, and its objects are deleted, when dropped.
pub struct S3Server {
    address: SocketAddr,
    folder: TempDir,
    buckets: Arc<Buckets>,
    /// `None` only while being dropped.
    runtime: Option<Runtime>,
}

/// What the server was asked for and gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Counters {
    /// Requests for an object or a range of it, refused ones included.
    pub gets: u64,
    /// Bytes of objects in answers.
    pub bytes: u64,
    /// Pages of listings.
    pub lists: u64,
}

impl S3Server {
    /// Starts a server on a free port of 127.0.0.1.
    pub fn start() -> io::Result<S3Server> {
        let folder = tempfile::tempdir()?;
        let objects = folder.path().join("objects");
        fs::create_dir(&objects)?;
        let files = FileSystem::new(&objects).map_err(|e| io::Error::other(format!("{e:?}")))?;
        let buckets = Arc::new(Buckets::new(files));
        let mut service = S3ServiceBuilder::new(Served(buckets.clone()));
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();

        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that goes away mid-way is no concern of the server's.
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
                });
            }
        });
        let server = S3Server {
            address,
            folder,
            buckets,
            runtime: Some(runtime),
        };
        fs::write(
            server.credentials_file(),
            format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"),
        )?;
        Ok(server)
    }

    /// The base URL, as `endpoint=` wants it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file with the credentials that the server accepts, as `credentials=` wants it.
    pub fn credentials_file(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// The URL of an origin: what lies below `prefix` (which may be empty) in `bucket`.
    pub fn origin_url(&self, bucket: &str, prefix: &str) -> String {
        format!(
            "s3://{bucket}/{prefix}?endpoint={}&credentials={}",
            self.endpoint(),
            self.credentials_file().display()
        )
    }

    /// Makes an empty bucket.
    pub fn create_bucket(&self, bucket: &str) -> io::Result<()> {
        fs::create_dir(self.folder.path().join("objects").join(bucket))?;
        self.buckets.create(bucket);
        Ok(())
    }

    /// Puts objects through the server's front door. Keys must be such that a file system can
    /// hold them all; see [`S3Server::pretend_object`] for others.
    pub fn put(
        &self,
        bucket: &str,
        objects: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> io::Result<()> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(self.client().put(bucket, objects)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Deletes an object through the server's front door.
    pub fn delete(&self, bucket: &str, key: &str) -> io::Result<()> {
        match &self.runtime {
            Some(runtime) => runtime.block_on(self.client().delete(bucket, key)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Lists an object, under any key, that is not there to be read.
    pub fn pretend_object(&self, bucket: &str, key: &str, size: u64) {
        self.buckets.pretend(bucket, key, size);
    }

    /// From now on every page of a listing points to itself as the next.
    pub fn repeat_pages_for_ever(&self) {
        self.buckets.endless.store(true, Relaxed);
    }

    /// From now on every page of a listing is empty and points to one more.
    pub fn give_empty_pages_for_ever(&self) {
        self.buckets.empty.store(true, Relaxed);
    }

    /// Answers the next `count` requests for objects with "slow down" (503).
    pub fn be_busy_for(&self, count: u32) {
        self.buckets.busy.store(count, Relaxed);
    }

    /// Stops heeding `If-Match`, as some compatible servers never do.
    pub fn ignore_conditions(&self) {
        self.buckets.unconditional.store(true, Relaxed);
    }

    /// What the server was asked for so far.
    pub fn counters(&self) -> S3Counters {
        self.buckets.counters()
    }

    fn client(&self) -> S3Client {
        S3Client {
            endpoint: self.endpoint(),
            key: KEY.to_owned(),
            secret: SECRET.to_owned(),
            retry: RetryConfig::default(),
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
