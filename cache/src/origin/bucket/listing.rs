//! Lists a bucket directory by directory, many at once.
//!
//! With a delimiter, not in one flat sequence: requests for different directories run side by
//! side, and an empty directory's marker (`dir/`) can be told from an object, which the library's
//! paths alone do not show. A directory costs at least one request; within one directory pages
//! follow each other, a thousand objects each.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use async_channel::Sender;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::ObjectMeta;
use object_store::list::{PaginatedListOptions, PaginatedListStore};

use super::super::failure;
use super::super::keys::{below, why_no_path};
use super::super::objects::Objects;
use super::super::runtime::RequestRuntime;
use super::super::{
    ListProgress, Listed, ListedAs, ListedEntry, ListedKind, Listing, MAX_IDENTITY_BYTES,
    ObjectIdentity, OriginError, Timestamp, with_slashes,
};

/// Directories listed at once.
const IN_FLIGHT: usize = 32;
/// Pages of a directory without anything on them that may follow each other. Services give some, for
/// what was deleted; one that gives no others never comes to an end.
const EMPTY_PAGES: usize = 1000;
/// Objects do not have modes: everyone may read, as of a read-only file system.
const FILE_MODE: u16 = 0o644;
const DIRECTORY_MODE: u16 = 0o755;

/// What one page of a directory's listing holds.
#[derive(Default)]
struct Page {
    entries: Vec<ListedEntry>,
    /// Paths of the directories in it, below the origin's prefix.
    directories: Vec<String>,
}

/// Everything below the origin's prefix, in path order.
pub(super) async fn list(
    client: &Arc<Objects>,
    lists: &Arc<dyn PaginatedListStore>,
    runtime: &RequestRuntime,
    progress: &ListProgress,
) -> Result<Listing, OriginError> {
    let (sender, pages) = async_channel::bounded(IN_FLIGHT);
    let _walk = runtime.spawn(walk(client.clone(), lists.clone(), sender));
    let mut all = Listing::new();
    let mut directories = HashSet::new();
    let mut complete = false;
    while let Ok(message) = pages.recv().await {
        match message? {
            Some(page) => {
                let files = page.entries.iter().map(size_of_file);
                let found = files.clone().flatten().count() + page.directories.len();
                progress.found(found as u64, files.flatten().sum())?;
                page.entries.iter().for_each(|entry| all.push(entry));
                directories.extend(page.directories);
            }
            None => complete = true,
        }
    }
    if !complete {
        return Err(OriginError::Unavailable {
            origin: client.url.clone(),
            why: "the listing ended early: the agent is shutting down".into(),
            remedy: "ask again once the agent runs",
            transient: true,
        });
    }
    all.sort();
    check_distinct(&client.url, &all, &directories)?;
    Ok(all)
}

fn size_of_file(entry: &ListedEntry) -> Option<u64> {
    match entry.kind {
        ListedKind::File { size, .. } => Some(size),
        ListedKind::Directory | ListedKind::Symlink { .. } => None,
    }
}

/// A key may be the prefix of another, and a leading slash is lost in the library: neither can be
/// shown as files without one hiding the other.
fn check_distinct(
    url: &str,
    sorted: &Listing,
    directories: &HashSet<String>,
) -> Result<(), OriginError> {
    if let Some(entry) = sorted.same_path() {
        let why = format!("two objects have the path {:?}", text(&entry));
        return Err(failure::bad_key(url, &why));
    }
    let hidden = |entry: &Listed<'_>| {
        matches!(entry.kind, ListedAs::File { .. }) && directories.contains(&text(entry))
    };
    if let Some(entry) = sorted.iter().find(hidden) {
        let path = text(&entry);
        let why = format!("{path:?} is an object, and {path:?}/ has objects in it");
        return Err(failure::bad_key(url, &why));
    }
    Ok(())
}

fn text(entry: &Listed<'_>) -> String {
    String::from_utf8_lossy(&with_slashes(entry.path)).into_owned()
}

type Message = Result<Option<Page>, OriginError>;

/// Lists the directories that turn up, some at a time; ends with `None` when all are listed.
async fn walk(client: Arc<Objects>, lists: Arc<dyn PaginatedListStore>, sender: Sender<Message>) {
    let mut waiting = vec![String::new()];
    let mut listing = FuturesUnordered::new();
    loop {
        while listing.len() < IN_FLIGHT
            && let Some(directory) = waiting.pop()
        {
            listing.push(list_directory(&client, lists.as_ref(), directory, &sender));
        }
        match listing.next().await {
            Some(Ok(directories)) => waiting.extend(directories),
            Some(Err(Ended::Failed(error))) => {
                // If nobody listens any more, nobody wants to know.
                let _ = sender.send(Err(error)).await;
                return;
            }
            Some(Err(Ended::Unwanted)) => return,
            None => break,
        }
    }
    let _ = sender.send(Ok(None)).await;
}

/// Why a directory's listing ended before its end.
enum Ended {
    Failed(OriginError),
    /// The listing was dropped.
    Unwanted,
}

/// Sends the pages of `directory` (its path below the origin's prefix) and returns the
/// directories in it.
async fn list_directory(
    client: &Objects,
    lists: &dyn PaginatedListStore,
    directory: String,
    sender: &Sender<Message>,
) -> Result<Vec<String>, Ended> {
    let prefix = match (client.prefix.as_str(), directory.as_str()) {
        ("", "") => String::new(),
        ("", path) | (path, "") => format!("{path}/"),
        (prefix, path) => format!("{prefix}/{path}/"),
    };
    let mut directories = Vec::new();
    let mut token = None;
    let mut seen = HashSet::new();
    let mut empty_pages = 0;
    let never_ends = |why: &str, remedy| {
        Ended::Failed(OriginError::Unavailable {
            origin: client.url.clone(),
            why: format!("the listing of /{directory} never ends: {why}"),
            remedy,
            transient: false,
        })
    };
    loop {
        let options = PaginatedListOptions {
            delimiter: Some(Cow::Borrowed("/")),
            page_token: token.take(),
            ..PaginatedListOptions::default()
        };
        let prefix_if_any = Some(prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let answer = lists
            .list_paginated(prefix_if_any, options)
            .await
            .map_err(|e| {
                Ended::Failed(failure::listing(&client.url, &format!("/{directory}"), &e))
            })?;
        let mut page = Page::default();
        for object in answer.result.objects {
            page.entries.extend(
                client
                    .entry(&prefix, &directory, object)
                    .map_err(Ended::Failed)?,
            );
        }
        for inner in answer.result.common_prefixes {
            let path = client
                .child(&prefix, &directory, inner.as_ref())
                .map_err(Ended::Failed)?;
            page.directories.push(path);
        }
        directories.extend(page.directories.iter().cloned());
        empty_pages = match page.entries.is_empty() && page.directories.is_empty() {
            true => empty_pages + 1,
            false => 0,
        };
        if sender.send(Ok(Some(page))).await.is_err() {
            return Err(Ended::Unwanted);
        }
        match answer.page_token {
            None => return Ok(directories),
            // Pages that lead in a circle, empty ones included, would never end.
            Some(next) if !seen.insert(next.clone()) => {
                return Err(never_ends(
                    "its pages repeat",
                    "report it to whoever runs the service: its continuation tokens repeat",
                ));
            }
            Some(_) if empty_pages >= EMPTY_PAGES => {
                return Err(never_ends(
                    "its pages have nothing on them",
                    "report it to whoever runs the service: it gives empty pages and no end",
                ));
            }
            Some(next) => token = Some(next),
        }
    }
}

impl Objects {
    /// The entry for an object found in `directory`; none for the marker of the origin's own
    /// root.
    fn entry(
        &self,
        prefix: &str,
        directory: &str,
        object: ObjectMeta,
    ) -> Result<Option<ListedEntry>, OriginError> {
        let key = object.location.as_ref();
        let mtime = Timestamp {
            seconds: object.last_modified.timestamp(),
            // A leap second is shown as more than a second's nanoseconds.
            nanos: object
                .last_modified
                .timestamp_subsec_nanos()
                .min(999_999_999),
        };
        if prefix.strip_suffix('/') == Some(key) {
            if object.size != 0 {
                let why = format!(
                    "the key {prefix:?} ends in '/' and has {} bytes",
                    object.size
                );
                return Err(failure::bad_key(&self.url, &why));
            }
            let marker = ListedEntry {
                path: directory.into(),
                kind: ListedKind::Directory,
                mode: DIRECTORY_MODE,
                mtime,
            };
            return Ok(Some(marker).filter(|marker| !marker.path.is_empty()));
        }
        let path = self.child(prefix, directory, key)?;
        let identity = match object.e_tag {
            Some(tag) if tag.len() > MAX_IDENTITY_BYTES => {
                let why = format!("the ETag of {key:?} has {} bytes", tag.len());
                return Err(failure::bad_key(&self.url, &why));
            }
            Some(tag) => ObjectIdentity::Etag(tag.into()),
            None => ObjectIdentity::Modified(mtime),
        };
        Ok(Some(ListedEntry {
            path: path.into_bytes(),
            kind: ListedKind::File {
                size: object.size,
                identity,
            },
            mode: FILE_MODE,
            mtime,
        }))
    }

    /// The path below the origin's prefix of what has the key `key`, which must lie directly in
    /// `directory`, whose keys begin with `prefix`.
    fn child(&self, prefix: &str, directory: &str, key: &str) -> Result<String, OriginError> {
        let name = below(prefix.trim_end_matches('/'), key).unwrap_or("");
        let refused = why_no_path(name).or_else(|| {
            name.contains('/')
                .then_some("the service listed it although it lies further down")
        });
        let path = match directory {
            "" => name.to_owned(),
            directory => format!("{directory}/{name}"),
        };
        match refused.or_else(|| why_no_path(&path)) {
            None => Ok(path),
            Some(why) => {
                let why = match key {
                    "" => "a key in the bucket begins with '/'".to_owned(),
                    key => format!("the key {key:?} cannot be a file's path: {why}"),
                };
                Err(failure::bad_key(&self.url, &why))
            }
        }
    }
}
