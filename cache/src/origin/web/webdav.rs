//! Lists a web server's folder by WebDAV (RFC 4918, section 9.1), folder by folder, many at once: servers
//! refuse to list all that is below one in an answer.

use async_channel::Sender;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{Error, ObjectStore};

use super::super::objects::Objects;
use super::super::{OriginError, failure, keys};
use super::listing::{self, IN_FLIGHT, Message, Page};

/// Lists the folders that turn up, some at a time, and sends what is in them.
pub(super) async fn walk(objects: &Objects, sender: &Sender<Message>) -> Result<(), OriginError> {
    let mut waiting = vec![String::new()];
    let mut listing = FuturesUnordered::new();
    loop {
        while listing.len() < IN_FLIGHT
            && let Some(folder) = waiting.pop()
        {
            listing.push(list_folder(objects, folder));
        }
        let Some(listed) = listing.next().await else {
            return Ok(());
        };
        let (page, folders) = listed?;
        waiting.extend(folders);
        if sender.send(Ok(Some(page))).await.is_err() {
            return Ok(());
        }
    }
}

/// The files in `folder` (its path below the origin's), and the paths of the folders in it.
async fn list_folder(
    objects: &Objects,
    folder: String,
) -> Result<(Page, Vec<String>), OriginError> {
    let key = match folder.as_str() {
        "" if objects.prefix.is_empty() => Path::default(),
        "" => Path::parse(&objects.prefix).map_err(|_| nothing_there(objects))?,
        folder => keys::key_of(&objects.prefix, folder.as_bytes())
            .ok_or_else(|| nothing_there(objects))?,
    };
    let prefix = Some(&key).filter(|key| !key.as_ref().is_empty());
    let listed = objects.store.list_with_delimiter(prefix).await;
    let listed = listed.map_err(|error| failed(objects, &folder, &error))?;
    let mut page = Page {
        files: Vec::with_capacity(listed.objects.len()),
        folders: listed.common_prefixes.len() as u64,
    };
    for meta in listed.objects {
        let path = child(objects, &key, &folder, meta.location.as_ref())?;
        page.files.push(listing::entry(&objects.url, &path, meta)?);
    }
    let mut folders = Vec::with_capacity(listed.common_prefixes.len());
    for inner in listed.common_prefixes {
        folders.push(child(objects, &key, &folder, inner.as_ref())?);
    }
    // The library takes "no such folder" for one without anything in it.
    if folder.is_empty() && page.files.is_empty() && folders.is_empty() {
        return Err(nothing_there(objects));
    }
    Ok((page, folders))
}

/// The path below the origin's folder of what is at `location` on the server, which must lie directly in
/// `folder`, whose own place there is `key`.
fn child(
    objects: &Objects,
    key: &Path,
    folder: &str,
    location: &str,
) -> Result<String, OriginError> {
    let name = keys::below(key.as_ref(), location).filter(|name| !name.contains('/'));
    let path = match (name, folder) {
        (Some(name), "") => name.to_owned(),
        (Some(name), folder) => format!("{folder}/{name}"),
        (None, _) => {
            let why = format!("the server lists {location:?} as in /{key}, where it does not lie");
            return Err(failure::bad_key(&objects.url, &why));
        }
    };
    match keys::why_no_url(&path) {
        None => Ok(path),
        Some(why) => {
            let why = format!("{path:?} cannot be a file's path: {why}");
            Err(failure::bad_key(&objects.url, &why))
        }
    }
}

fn nothing_there(objects: &Objects) -> OriginError {
    OriginError::Unavailable {
        origin: objects.url.clone(),
        why: "the server lists nothing there".into(),
        remedy: "check the folder's path, and that it has files in it; of a server without WebDAV, name an \
                 index: a file of the server's with a path a line (?index=files.txt)",
        transient: false,
    }
}

fn failed(objects: &Objects, folder: &str, error: &Error) -> OriginError {
    match failure::listing(&objects.url, &format!("/{folder}"), error) {
        OriginError::Unavailable { origin, why, .. } => OriginError::Unavailable {
            origin,
            why: format!("listing /{folder} by WebDAV: {why}"),
            remedy: "check that the server runs and answers PROPFIND (WebDAV), or name an index: a file of \
                     the server's with a path a line (?index=files.txt)",
            transient: failure::status(error).is_none_or(|status| status >= 500 && status != 501),
        },
        other => other,
    }
}
