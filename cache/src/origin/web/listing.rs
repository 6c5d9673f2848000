//! What a folder of a web server holds, and whether the server can be an origin at all.

use std::sync::Arc;

use async_channel::Sender;
use object_store::ObjectMeta;

use super::super::objects::{self, Objects};
use super::super::runtime::RequestRuntime;
use super::super::{
    ListProgress, ListedAs, ListedEntry, ListedKind, Listing, MAX_IDENTITY_BYTES, ObjectIdentity,
    ObjectRef, OriginError, Timestamp, failure, keys, with_slashes,
};
use super::{index, webdav};

/// Requests under way at once.
pub(super) const IN_FLIGHT: usize = 32;
/// Web servers do not tell modes: everyone may read, as of a read-only file system.
const FILE_MODE: u16 = 0o644;

/// Some of what is there.
#[derive(Default)]
pub(super) struct Page {
    pub(super) files: Vec<(ListedEntry, u64)>,
    /// How many folders were found: they are in the listing by what is in them.
    pub(super) folders: u64,
}

/// A page, `None` after the last, or why there is no more.
pub(super) type Message = Result<Option<Page>, OriginError>;

/// Everything below the folder, in path order.
pub(super) async fn list(
    objects: &Arc<Objects>,
    index: Option<&str>,
    runtime: &RequestRuntime,
    progress: &ListProgress,
) -> Result<Listing, OriginError> {
    let (sender, pages) = async_channel::bounded(IN_FLIGHT);
    let _walk = runtime.spawn(walk(objects.clone(), index.map(str::to_owned), sender));
    let mut all = Listing::new();
    let mut complete = false;
    while let Ok(message) = pages.recv().await {
        match message? {
            Some(page) => {
                let bytes = page.files.iter().map(|(_, size)| size).sum();
                progress.found(page.files.len() as u64 + page.folders, bytes)?;
                page.files.iter().for_each(|(entry, _)| all.push(entry));
            }
            None => complete = true,
        }
    }
    if !complete {
        return Err(OriginError::Unavailable {
            origin: objects.url.clone(),
            why: "the listing ended early: the agent is shutting down".into(),
            remedy: "ask again once the agent runs",
            transient: true,
        });
    }
    all.sort();
    check_distinct(&objects.url, &all)?;
    check_parts(objects, runtime, &all).await?;
    Ok(all)
}

async fn walk(objects: Arc<Objects>, index: Option<String>, sender: Sender<Message>) {
    let walked = match &index {
        Some(index) => index::walk(&objects, index, &sender).await,
        None => webdav::walk(&objects, &sender).await,
    };
    // If nobody listens any more, nobody wants to know.
    let _ = sender.send(walked.map(|()| None)).await;
}

/// No path is there twice, and no file is where another's folder is.
fn check_distinct(url: &str, sorted: &Listing) -> Result<(), OriginError> {
    let text = |path: &[u8]| String::from_utf8_lossy(&with_slashes(path)).into_owned();
    if let Some(twice) = sorted.same_path() {
        let why = format!("{:?} is listed twice", text(twice.path));
        return Err(failure::bad_key(url, &why));
    }
    // In path order what is in a folder follows it at once.
    let mut before: Option<&[u8]> = None;
    for entry in sorted.iter() {
        let inside = |folder: &[u8]| {
            let rest = entry.path.strip_prefix(folder);
            rest.is_some_and(|rest| rest.first() == Some(&0))
        };
        if let Some(file) = before.filter(|file| inside(file)) {
            let why = format!(
                "{:?} is a file, and {:?} lies in it",
                text(file),
                text(entry.path)
            );
            return Err(failure::bad_key(url, &why));
        }
        before = Some(entry.path);
    }
    Ok(())
}

/// Reads the last byte of a file: a server that cannot give it is found out now, not in training.
async fn check_parts(
    objects: &Arc<Objects>,
    runtime: &RequestRuntime,
    all: &Listing,
) -> Result<(), OriginError> {
    let found = all.iter().find_map(|entry| match entry.kind {
        ListedAs::File { size, identity } if size > 0 => Some((entry.path, size, identity)),
        _ => None,
    });
    let Some((path, size, identity)) = found else {
        return Ok(());
    };
    let object = ObjectRef {
        path: &with_slashes(path),
        size,
        identity: &identity,
    };
    objects::read(objects, runtime, object, size - 1, &mut [0]).await
}

/// The entry of a file at `path` below the folder, and its size.
pub(super) fn entry(
    url: &str,
    path: &str,
    meta: ObjectMeta,
) -> Result<(ListedEntry, u64), OriginError> {
    let bad = |why: &str| failure::bad_key(url, &format!("{path:?}: {why}"));
    if let Some(why) = keys::why_no_url(path) {
        return Err(bad(why));
    }
    let mtime = Timestamp {
        seconds: meta.last_modified.timestamp(),
        nanos: meta.last_modified.timestamp_subsec_nanos().min(999_999_999),
    };
    // A tag without anything in it is the same for every content.
    let says_something = |tag: &String| !tag.trim_start_matches("W/").trim_matches('"').is_empty();
    let identity = match meta.e_tag.filter(says_something) {
        Some(tag) if tag.len() > MAX_IDENTITY_BYTES => return Err(bad("its ETag is too long")),
        Some(tag) => ObjectIdentity::Etag(tag.into()),
        // The library's way to say that there was no such header.
        None if mtime.seconds == 0 => {
            return Err(OriginError::Unavailable {
                origin: url.to_owned(),
                why: format!(
                    "the server gives neither an ETag nor a Last-Modified for {path:?}, so that a change \
                     would go unnoticed"
                ),
                remedy: "have the server send one of them, or copy the files to a bucket",
                transient: false,
            });
        }
        None => ObjectIdentity::Modified(mtime),
    };
    let entry = ListedEntry {
        path: path.as_bytes().to_vec(),
        kind: ListedKind::File {
            size: meta.size,
            identity,
        },
        mode: FILE_MODE,
        mtime,
    };
    Ok((entry, meta.size))
}
