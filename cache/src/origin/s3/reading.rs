//! Reads ranges of the objects that were listed, and of no others.

use std::io;
use std::sync::Arc;

use async_channel::Sender;
use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, ObjectStore};

use super::super::{ObjectIdentity, ObjectRef, OriginError};
use super::{Client, S3Runtime, failure, keys};

/// Bytes of an answer that are handed over at a time: each time wakes another thread.
const BATCH_BYTES: usize = 512 << 10;
/// Batches of an answer that may wait to be copied.
const BATCHES: usize = 4;

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
    client: &Arc<Client>,
    runtime: &S3Runtime,
    object: ObjectRef<'_>,
    offset: u64,
    into: &mut [u8],
) -> Result<(), OriginError> {
    object.check_range(&client.url, offset, into.len())?;
    if into.is_empty() {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(object.path)
        .escape_debug()
        .to_string();
    let Some(key) = keys::key_of(&client.location.prefix, object.path) else {
        // No listing of ours gave this path, so no object has it.
        return Err(OriginError::Missing {
            origin: client.url.clone(),
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
    let client = client.clone();
    let short = wanted.short(&client);
    let _task = runtime.spawn(async move {
        if let Err(error) = fetch(&client, &wanted, &sender).await {
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
    client: &Client,
    wanted: &Wanted,
    sender: &Sender<Result<Vec<Bytes>, OriginError>>,
) -> Result<(), OriginError> {
    let range = wanted.offset..wanted.offset + wanted.length;
    let condition = match &wanted.identity {
        // A weak tag never matches in `If-Match`; the answer's own is compared anyway.
        ObjectIdentity::Etag(tag) if !tag.starts_with("W/") => Some(quoted(tag)),
        ObjectIdentity::Etag(_) | ObjectIdentity::Modified(_) => None,
    };
    let options = GetOptions::new()
        .with_range(Some(range.clone()))
        .with_if_match(condition);
    let answer = client
        .store
        .get_opts(&wanted.key, options)
        .await
        .map_err(|error| wanted.failed(client, &error))?;
    wanted.check(client, &answer)?;
    if answer.range != range {
        return Err(wanted.short(client));
    }
    let mut body = answer.into_stream();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| wanted.failed(client, &error))?;
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
    fn check(&self, client: &Client, answer: &GetResult) -> Result<(), OriginError> {
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
        let tag = meta.e_tag.as_deref().unwrap_or("without ETag");
        Err(self.changed(
            client,
            format!("{} bytes, {}", meta.size, tag.escape_debug()),
        ))
    }

    fn changed(&self, client: &Client, found: String) -> OriginError {
        OriginError::Changed {
            origin: client.url.clone(),
            object: self.object.clone(),
            listed: format!("{} bytes, {}", self.size, self.identity),
            found,
        }
    }

    fn failed(&self, client: &Client, error: &Error) -> OriginError {
        match error {
            Error::Precondition { .. } => {
                self.changed(client, "another ETag, the service says".into())
            }
            // Some servers look at the range first: it lay within the object that was listed.
            _ if failure::is_invalid_range(error) => {
                self.changed(client, "fewer bytes, the service says".into())
            }
            _ => failure::reading(&client.url, &self.object, self.offset, self.length, error),
        }
    }

    /// The service gave another range than the one that was asked for.
    fn short(&self, client: &Client) -> OriginError {
        OriginError::Read {
            origin: client.url.clone(),
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
