//! Reads ranges of the objects that were listed, and of no others: of buckets and of web servers alike.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_channel::Sender;
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, ObjectStore};

use super::runtime::RequestRuntime;
use super::{ObjectIdentity, ObjectRef, OriginError, failure, keys};

/// Bytes of an answer that are handed over at a time: each time wakes another thread.
const BATCH_BYTES: usize = 512 << 10;
/// Batches of an answer that may wait to be copied.
const BATCHES: usize = 4;

/// Where objects are, shared by the tasks on the runtime.
pub(super) struct Objects {
    pub(super) store: Arc<dyn ObjectStore>,
    /// Keys begin with this; no slash at either end.
    pub(super) prefix: String,
    /// As errors name the origin.
    pub(super) url: String,
}

/// What is read: an [`ObjectRef`] and its range, for the task on the runtime.
struct Wanted {
    key: Path,
    object: String,
    size: u64,
    identity: ObjectIdentity,
    offset: u64,
    length: u64,
}

/// Fills `into` with the object's bytes from `offset` on.
pub(super) async fn read(
    objects: &Arc<Objects>,
    runtime: &RequestRuntime,
    object: ObjectRef<'_>,
    offset: u64,
    into: &mut [u8],
) -> Result<(), OriginError> {
    object.check_range(&objects.url, offset, into.len())?;
    if into.is_empty() {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(object.path)
        .escape_debug()
        .to_string();
    let Some(key) = keys::key_of(&objects.prefix, object.path) else {
        // No listing of ours gave this path, so no object has it.
        return Err(OriginError::Missing {
            origin: objects.url.clone(),
            object: shown,
        });
    };
    let wanted = Wanted {
        key,
        object: shown,
        size: object.size,
        identity: object.identity.clone(),
        offset,
        length: into.len() as u64,
    };
    let (sender, batches) = async_channel::bounded(BATCHES);
    let objects = objects.clone();
    let short = wanted.short(&objects);
    let _task = runtime.spawn(async move {
        if let Err(error) = fetch(&objects, &wanted, &sender).await {
            // If the reader is gone, nobody wants to know.
            let _ = sender.send(Err(error)).await;
        }
    });
    let mut rest = into;
    while let Ok(batch) = batches.recv().await {
        let batch: Vec<Bytes> = batch?;
        for piece in batch {
            let Some((here, after)) = rest.split_at_mut_checked(piece.len()) else {
                return Err(short);
            };
            here.copy_from_slice(&piece);
            rest = after;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(short) }
}

async fn fetch(
    objects: &Objects,
    wanted: &Wanted,
    sender: &Sender<Result<Vec<Bytes>, OriginError>>,
) -> Result<(), OriginError> {
    let range = wanted.offset..wanted.offset + wanted.length;
    let condition = match &wanted.identity {
        // A weak tag never matches in `If-Match`; the answer's own is compared anyway.
        ObjectIdentity::Etag(tag) if !tag.starts_with("W/") => Some(quoted(tag)),
        ObjectIdentity::Etag(_) | ObjectIdentity::Modified(_) => None,
    };
    // Headers have whole seconds only: what was listed with more would always seem to be modified.
    let unmodified_since = match &wanted.identity {
        ObjectIdentity::Modified(at) if at.nanos == 0 => u64::try_from(at.seconds).ok(),
        _ => None,
    };
    let unmodified_since =
        unmodified_since.and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    let options = GetOptions::new()
        .with_range(Some(range.clone()))
        .with_if_match(condition)
        .with_if_unmodified_since(unmodified_since);
    let answer = objects
        .store
        .get_opts(&wanted.key, options)
        .await
        .map_err(|error| wanted.failed(objects, &error))?;
    wanted.check(objects, &answer)?;
    if answer.range != range {
        return Err(wanted.short(objects));
    }
    let mut body = answer.into_stream();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| wanted.failed(objects, &error))?;
        bytes += piece.len();
        batch.push(piece);
        if bytes >= BATCH_BYTES {
            bytes = 0;
            if sender.send(Ok(std::mem::take(&mut batch))).await.is_err() {
                return Ok(());
            }
        }
    }
    if !batch.is_empty() {
        // If the reader is gone, nobody wants them.
        let _ = sender.send(Ok(batch)).await;
    }
    Ok(())
}

/// A tag as headers want it. Some servers leave the quotes out of their listings.
fn quoted(tag: &str) -> String {
    if tag.starts_with('"') {
        tag.to_owned()
    } else {
        format!("\"{tag}\"")
    }
}

impl Wanted {
    /// Fails unless the answer is about the object that was listed.
    fn check(&self, objects: &Objects, answer: &GetResult) -> Result<(), OriginError> {
        let meta = &answer.meta;
        let same = match (&self.identity, &meta.e_tag) {
            (ObjectIdentity::Etag(listed), Some(now)) => {
                listed.trim_matches('"') == now.trim_matches('"')
            }
            (ObjectIdentity::Etag(_), None) => false,
            // An answer's header has whole seconds only.
            (ObjectIdentity::Modified(listed), _) => {
                listed.seconds == meta.last_modified.timestamp()
            }
        };
        if same && meta.size == self.size {
            return Ok(());
        }
        let now = match (&self.identity, &meta.e_tag) {
            (ObjectIdentity::Modified(_), _) => {
                format!("modified {}", meta.last_modified.timestamp())
            }
            (_, Some(tag)) => tag.escape_debug().to_string(),
            (_, None) => "without ETag".to_owned(),
        };
        Err(self.changed(objects, format!("{} bytes, {now}", meta.size)))
    }

    fn changed(&self, objects: &Objects, found: String) -> OriginError {
        OriginError::Changed {
            origin: objects.url.clone(),
            object: self.object.clone(),
            listed: format!("{} bytes, {}", self.size, self.identity),
            found,
        }
    }

    fn failed(&self, objects: &Objects, error: &Error) -> OriginError {
        match error {
            Error::Precondition { .. } => {
                self.changed(objects, "another one, the service says".into())
            }
            // Some servers look at the range first: it lay within the object that was listed.
            _ if failure::is_invalid_range(error) => {
                self.changed(objects, "fewer bytes, the service says".into())
            }
            Error::NotSupported { .. } => failure::no_ranges(&objects.url, &self.object),
            _ => failure::reading(&objects.url, &self.object, self.offset, self.length, error),
        }
    }

    /// The service gave another range than the one that was asked for.
    fn short(&self, objects: &Objects) -> OriginError {
        OriginError::Read {
            origin: objects.url.clone(),
            object: self.object.clone(),
            offset: self.offset,
            length: self.length,
            source: io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the service did not give the range that was asked for",
            ),
            transient: true,
        }
    }
}
