//! An index: a file of the server's that names the others, a path a line.

use async_channel::Sender;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::{Error, ObjectStoreExt};

use super::super::answers::MAX_ANSWER_BYTES;
use super::super::objects::Objects;
use super::super::{ListedEntry, OriginError, failure, keys};
use super::listing::{self, IN_FLIGHT, Message, Page};

/// Asks about each file that the index names, and sends what it hears.
pub(super) async fn walk(
    objects: &Objects,
    index: &str,
    sender: &Sender<Message>,
) -> Result<(), OriginError> {
    let text = fetch(objects, index).await?;
    let paths = paths(&text).map_err(|(line, why)| {
        let shown: String = line.chars().take(300).collect();
        let why = format!("the index {index:?} names {shown:?}, which cannot be a file: {why}");
        failure::bad_key(&objects.url, &why)
    })?;
    let mut paths = paths.into_iter();
    let mut asking = FuturesUnordered::new();
    loop {
        while asking.len() < IN_FLIGHT
            && let Some(path) = paths.next()
        {
            asking.push(ask(objects, path));
        }
        let Some(file) = asking.next().await else {
            return Ok(());
        };
        let page = Page {
            files: vec![file?],
            folders: 0,
        };
        if sender.send(Ok(Some(page))).await.is_err() {
            return Ok(());
        }
    }
}

/// The index, which may not be larger than what is read to memory of any answer.
async fn fetch(objects: &Objects, index: &str) -> Result<String, OriginError> {
    let unfit = |why: &str| OriginError::Unavailable {
        origin: objects.url.clone(),
        why: format!("the index {index:?} {why}"),
        remedy: "write the paths of the files below the folder into it, a path a line, as UTF-8, up to 128 MiB",
        transient: false,
    };
    let key = keys::key_of(&objects.prefix, index.as_bytes())
        .ok_or_else(|| unfit("is no path of a file"))?;
    let failed = |error: Error| failed(objects, index, &error, unfit("is not there"));
    let answer = objects.store.get(&key).await.map_err(failed)?;
    if answer.meta.size > MAX_ANSWER_BYTES as u64 {
        return Err(unfit("is too large"));
    }
    let text = answer.bytes().await.map_err(failed)?;
    String::from_utf8(text.into()).map_err(|_| unfit("is not UTF-8"))
}

/// The paths in an index, or the first line that is none and why. Empty lines are none's.
pub(in super::super) fn paths(text: &str) -> Result<Vec<&str>, (&str, &'static str)> {
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| match keys::why_no_url(line) {
            None => Ok(line),
            Some(why) => Err((line, why)),
        })
        .collect()
}

async fn ask(objects: &Objects, path: &str) -> Result<(ListedEntry, u64), OriginError> {
    let missing = || OriginError::Unavailable {
        origin: objects.url.clone(),
        why: format!("the index names {path:?}, which the server does not have"),
        remedy: "take it out of the index, or put the file there",
        transient: false,
    };
    let key = keys::key_of(&objects.prefix, path.as_bytes()).ok_or_else(missing)?;
    let meta = objects.store.head(&key).await;
    let meta = meta.map_err(|error| failed(objects, path, &error, missing()))?;
    listing::entry(&objects.url, path, meta)
}

/// Why a file could not be asked for; `missing` if it is not there.
fn failed(objects: &Objects, path: &str, error: &Error, missing: OriginError) -> OriginError {
    if matches!(error, Error::NotFound { .. }) {
        return missing;
    }
    match failure::listing(&objects.url, path, error) {
        OriginError::Unavailable {
            origin,
            why,
            remedy,
            transient,
        } => OriginError::Unavailable {
            origin,
            why: format!("asking for {path:?}: {why}"),
            remedy,
            transient,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_a_path_a_line_and_nothing_that_cannot_be_a_file() {
        let named = paths("a.bin\r\n\nsub dir/b#c?d%2F\n").expect("paths");
        assert_eq!(named, ["a.bin", "sub dir/b#c?d%2F"]);
        for bad in ["../a", "/etc/passwd", "a//b", "a/", ".", "a\tb", "a\0b"] {
            let text = format!("good\n{bad}\n");
            assert_eq!(paths(&text).expect_err(bad).0, bad);
        }
    }
}
