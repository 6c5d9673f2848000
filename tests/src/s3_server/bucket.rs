//! What the server's buckets hold, and the answers that s3s-fs does not give as S3 does.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use s3s::dto::{
    CommonPrefix, DeleteObjectsInput, DeleteObjectsOutput, ETag, ETagCondition, GetObjectInput,
    GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object, PutObjectInput, PutObjectOutput, Timestamp,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

use super::S3Counters;

/// As of S3.
const MAX_KEYS: i32 = 1000;

/// The server's objects: bytes in files, and an index of them that listings are made from.
pub(super) struct Buckets {
    files: FileSystem,
    index: Mutex<HashMap<String, BTreeMap<String, Kept>>>,
    pub(super) endless: AtomicBool,
    pub(super) empty: AtomicBool,
    pub(super) unconditional: AtomicBool,
    pub(super) busy: AtomicU32,
    gets: AtomicU64,
    bytes: AtomicU64,
    lists: AtomicU64,
}

/// The buckets as the protocol's library takes them.
pub(super) struct Served(pub(super) Arc<Buckets>);

/// An object as listings show it.
#[derive(Clone)]
struct Kept {
    size: i64,
    etag: ETag,
    modified: SystemTime,
}

/// One page of a listing.
#[derive(Default)]
struct Page {
    objects: Vec<(String, Kept)>,
    prefixes: Vec<String>,
    next: Option<String>,
}

impl Buckets {
    pub(super) fn new(files: FileSystem) -> Buckets {
        Buckets {
            files,
            index: Mutex::default(),
            endless: AtomicBool::new(false),
            empty: AtomicBool::new(false),
            unconditional: AtomicBool::new(false),
            busy: AtomicU32::new(0),
            gets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lists: AtomicU64::new(0),
        }
    }

    pub(super) fn counters(&self) -> S3Counters {
        S3Counters {
            gets: self.gets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            lists: self.lists.load(Relaxed),
        }
    }

    fn index(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<String, Kept>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create(&self, bucket: &str) {
        self.index().entry(bucket.to_owned()).or_default();
    }

    pub(super) fn pretend(&self, bucket: &str, key: &str, size: u64) {
        let kept = Kept {
            size: size as i64,
            etag: ETag::Strong("00000000000000000000000000000000".into()),
            modified: SystemTime::now(),
        };
        self.keep(bucket, key, kept);
    }

    fn keep(&self, bucket: &str, key: &str, kept: Kept) {
        let mut index = self.index();
        index
            .entry(bucket.to_owned())
            .or_default()
            .insert(key.to_owned(), kept);
    }

    /// The object, if it is there and is what the condition wants.
    fn find(&self, bucket: &str, key: &str, condition: Option<&ETagCondition>) -> S3Result<Kept> {
        let index = self.index();
        let objects = index.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        let kept = objects.get(key).ok_or_else(|| s3_error!(NoSuchKey))?;
        match condition {
            Some(ETagCondition::ETag(tag))
                if !kept.etag.strong_cmp(tag) && !self.unconditional.load(Relaxed) =>
            {
                Err(s3_error!(PreconditionFailed))
            }
            _ => Ok(kept.clone()),
        }
    }
}

#[async_trait::async_trait]
impl S3 for Served {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.gets.fetch_add(1, Relaxed);
        let one_less = |left: u32| left.checked_sub(1);
        if self.0.busy.fetch_update(Relaxed, Relaxed, one_less).is_ok() {
            return Err(s3_error!(SlowDown));
        }
        let input = &request.input;
        self.0
            .find(&input.bucket, &input.key, input.if_match.as_ref())?;
        let answer = self.0.files.get_object(request).await?;
        let length = answer.output.content_length.unwrap_or(0);
        self.0.bytes.fetch_add(length.unsigned_abs(), Relaxed);
        Ok(answer)
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = &request.input;
        self.0
            .find(&input.bucket, &input.key, input.if_match.as_ref())?;
        self.0.files.head_object(request).await
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        if !self.0.index().contains_key(&bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let size = request.input.content_length;
        let answer = self.0.files.put_object(request).await?;
        let (Some(size), Some(etag)) = (size, answer.output.e_tag.clone()) else {
            return Err(s3_error!(MissingContentLength));
        };
        let modified = SystemTime::now();
        self.0.keep(
            &bucket,
            &key,
            Kept {
                size,
                etag,
                modified,
            },
        );
        Ok(answer)
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let bucket = request.input.bucket.clone();
        let deleted = request.input.delete.objects.clone();
        let answer = self.0.files.delete_objects(request).await?;
        if let Some(objects) = self.0.index().get_mut(&bucket) {
            for object in deleted {
                objects.remove(&object.key);
            }
        }
        Ok(answer)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.0.lists.fetch_add(1, Relaxed);
        let input = request.input;
        let max_keys = input.max_keys.unwrap_or(MAX_KEYS).clamp(1, MAX_KEYS);
        let mut page = {
            let index = self.0.index();
            let objects = index
                .get(&input.bucket)
                .ok_or_else(|| s3_error!(NoSuchBucket))?;
            page(
                objects,
                input.prefix.as_deref().unwrap_or(""),
                input.delimiter.as_deref(),
                input
                    .continuation_token
                    .as_deref()
                    .or(input.start_after.as_deref()),
                max_keys as usize,
            )
        };
        if self.0.endless.load(Relaxed) {
            page.next = Some("again".into());
        }
        if self.0.empty.load(Relaxed) {
            page = Page {
                next: Some(format!("{}", self.0.lists.load(Relaxed))),
                ..Page::default()
            };
        }
        let contents = page.objects.into_iter().map(|(key, kept)| Object {
            key: Some(key),
            size: Some(kept.size),
            e_tag: Some(kept.etag),
            last_modified: Some(Timestamp::from(kept.modified)),
            ..Object::default()
        });
        let prefixes = page.prefixes.into_iter().map(|prefix| CommonPrefix {
            prefix: Some(prefix),
        });
        let (contents, prefixes): (Vec<_>, Vec<_>) = (contents.collect(), prefixes.collect());
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            max_keys: Some(max_keys),
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            is_truncated: Some(page.next.is_some()),
            continuation_token: input.continuation_token,
            next_continuation_token: page.next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            ..ListObjectsV2Output::default()
        }))
    }
}

/// The page after `after` of the objects whose keys begin with `prefix`, grouped at `delimiter`.
fn page(
    objects: &BTreeMap<String, Kept>,
    prefix: &str,
    delimiter: Option<&str>,
    after: Option<&str>,
    max_keys: usize,
) -> Page {
    let mut page = Page::default();
    let mut last = after.filter(|after| *after >= prefix).map(str::to_owned);
    loop {
        // A group's keys all follow it: go past them at once.
        let past_group = last
            .as_deref()
            .filter(|last| *last != prefix)
            .zip(delimiter)
            .and_then(|(last, delimiter)| last.strip_suffix(delimiter))
            .zip(delimiter)
            .map(|(group, delimiter)| format!("{group}{delimiter}\u{10ffff}"));
        let from = match (&past_group, &last) {
            (Some(past), _) => Excluded(past.as_str()),
            (None, Some(last)) => Excluded(last.as_str()),
            (None, None) => Included(prefix),
        };
        let next = objects.range::<str, _>((from, Unbounded)).next();
        let Some((key, kept)) = next.filter(|(key, _)| key.starts_with(prefix)) else {
            return page;
        };
        if page.objects.len() + page.prefixes.len() == max_keys {
            page.next = last;
            return page;
        }
        let below = &key[prefix.len()..];
        let group = delimiter.and_then(|delimiter| {
            let end = below.find(delimiter)? + delimiter.len();
            Some(key[..prefix.len() + end].to_owned())
        });
        match group {
            Some(group) => {
                page.prefixes.push(group.clone());
                last = Some(group);
            }
            None => {
                page.objects.push((key.clone(), kept.clone()));
                last = Some(key.clone());
            }
        }
    }
}
