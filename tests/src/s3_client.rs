//! What fills the buckets of the tests' S3 servers: plain S3 requests, signed with one key.

use std::io;

use futures::{StreamExt, TryStreamExt};
use object_store::{
    MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};

/// Objects put or got at once.
const AT_ONCE: usize = 16;
/// The least that S3 takes of an object in parts, but for its last part.
const PART_BYTES: usize = 5 << 20;

/// A server's address, and a key that it accepts.
pub(crate) struct S3Client {
    /// `http://host:port`.
    pub(crate) endpoint: String,
    /// The key's name.
    pub(crate) key: String,
    /// The key's secret.
    pub(crate) secret: String,
    /// How often a request is made again.
    pub(crate) retry: RetryConfig,
}

impl S3Client {
    /// Puts objects, many at once.
    pub(crate) async fn put(
        &self,
        bucket: &str,
        objects: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> io::Result<()> {
        let store = &self.store(bucket)?;
        futures::stream::iter(objects)
            .map(|(key, bytes)| async move {
                let put = store.put(&parsed(&key)?, PutPayload::from(bytes)).await;
                put.map(|_| ()).map_err(io::Error::other)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Puts an object in parts, as uploaders do with large ones: its ETag is no digest of it.
    pub(crate) async fn put_in_parts(
        &self,
        bucket: &str,
        key: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        let store = self.store(bucket)?;
        let upload = store.put_multipart(&parsed(key)?).await;
        let mut upload = upload.map_err(io::Error::other)?;
        for part in bytes.chunks(PART_BYTES) {
            let part = PutPayload::from(part.to_vec());
            upload.put_part(part).await.map_err(io::Error::other)?;
        }
        upload.complete().await.map_err(io::Error::other)?;
        Ok(())
    }

    /// Gets all objects of a bucket, many at once, and keeps nothing: how many there are, and their bytes.
    pub(crate) async fn get_all(&self, bucket: &str) -> io::Result<(usize, u64)> {
        let store = &self.store(bucket)?;
        store
            .list(None)
            .map(|listed| async move {
                let object = listed?;
                let mut body = store.get(&object.location).await?.into_stream();
                let mut bytes = 0;
                while let Some(piece) = body.try_next().await? {
                    bytes += piece.len() as u64;
                }
                Ok::<_, object_store::Error>(bytes)
            })
            .buffer_unordered(AT_ONCE)
            .try_fold((0, 0), |(objects, all), bytes| async move {
                Ok((objects + 1, all + bytes))
            })
            .await
            .map_err(io::Error::other)
    }

    /// Deletes an object.
    pub(crate) async fn delete(&self, bucket: &str, key: &str) -> io::Result<()> {
        let store = self.store(bucket)?;
        store.delete(&parsed(key)?).await.map_err(io::Error::other)
    }

    fn store(&self, bucket: &str) -> io::Result<AmazonS3> {
        // The HTTP client wants one though it is asked for plain HTTP only. An error means that
        // there is one already, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_allow_http(true)
            .with_bucket_name(bucket)
            .with_access_key_id(&self.key)
            .with_secret_access_key(&self.secret)
            .with_retry(self.retry.clone())
            .build()
            .map_err(io::Error::other)
    }
}

fn parsed(key: &str) -> io::Result<Key> {
    Key::parse(key).map_err(io::Error::other)
}
