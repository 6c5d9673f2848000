//! A manifest from what an origin listed.

use crate::origin::{Listed, ListedAs, Listing, ObjectIdentity, Timestamp, with_slashes};

use super::assemble::{Assembler, NewBody};
use super::place::{NOWHERE, Place};
use super::{EntryIndex, Manifest, ManifestError, encode, shown};

/// Given to directories that no origin listed but some path goes through.
const IMPLIED_MODE: u16 = 0o755;

impl Manifest {
    /// The manifest of a version that is not of any dataset: a directory without entries. A
    /// listing or an encoded manifest never is one.
    pub fn empty() -> Result<Manifest, ManifestError> {
        Assembler::with_capacity(0, 0).finish_even_empty(NOWHERE)
    }

    /// The version of `place` that holds these entries, in whatever order they were listed. Directories that
    /// paths go through are added where the listing left them out.
    pub fn build(place: Place, listed: impl Into<Listing>) -> Result<Manifest, ManifestError> {
        let mut listed = listed.into();
        let place = place.of_version(&listed);
        listed.sort();
        let text = listed.iter().map(|entry| text_len(&entry)).sum();
        let mut assembler = Assembler::with_capacity(listed.len(), text);
        let mut open: Vec<(u32, Vec<u8>)> = Vec::new();
        let mut identity = Vec::new();
        for entry in listed.iter() {
            let refuse = |why| ManifestError::Path {
                path: shown(&with_slashes(entry.path)).into_owned(),
                why,
            };
            let (directories, name) = split(entry.path);
            let kept = open
                .iter()
                .zip(directories.clone())
                .take_while(|(a, b)| a.1 == *b)
                .count();
            open.truncate(kept);
            for directory in directories.skip(kept) {
                let parent = open.last().map_or(EntryIndex::ROOT.0, |(index, _)| *index);
                let index = assembler
                    .push(
                        parent,
                        directory,
                        IMPLIED_MODE,
                        Timestamp::default(),
                        NewBody::Directory,
                    )
                    .map_err(|e| match e {
                        ManifestError::Path {
                            why: "the same path occurs more than once",
                            ..
                        } => refuse("a part of its path is also listed as a file or symlink"),
                        other => named(other, entry.path),
                    })?;
                open.push((index, directory.to_vec()));
            }
            let parent = open.last().map_or(EntryIndex::ROOT.0, |(index, _)| *index);
            let body = match entry.kind {
                ListedAs::Directory => NewBody::Directory,
                ListedAs::File {
                    size,
                    identity: found,
                } => {
                    identity.clear();
                    encode::write_identity(&found, entry.mtime, &mut identity).map_err(refuse)?;
                    NewBody::File {
                        size,
                        identity: &identity,
                    }
                }
                ListedAs::Symlink { target } => NewBody::Symlink { target },
                ListedAs::Unusable { path } => {
                    return Err(ManifestError::Path {
                        path: shown(path).into_owned(),
                        why: "its path has a zero byte",
                    });
                }
            };
            let is_directory = matches!(body, NewBody::Directory);
            let index = assembler
                .push(parent, name, entry.mode & 0o7777, entry.mtime, body)
                .map_err(|e| named(e, entry.path))?;
            if is_directory {
                open.push((index, name.to_vec()));
            }
        }
        assembler.finish(place)
    }
}

/// What an entry adds to the manifest's text.
fn text_len(entry: &Listed<'_>) -> usize {
    let name = split(entry.path).1.len();
    name + match &entry.kind {
        ListedAs::Directory | ListedAs::Unusable { .. } => 0,
        ListedAs::File {
            identity: ObjectIdentity::Etag(etag),
            ..
        } => 2 + etag.len(),
        ListedAs::File { .. } => 1,
        ListedAs::Symlink { target } => target.len(),
    }
}

/// The directories a path goes through, and its last name.
fn split(path: &[u8]) -> (impl Iterator<Item = &[u8]> + Clone, &[u8]) {
    let (directories, name) = match path.iter().rposition(|&byte| byte == 0) {
        Some(at) => (Some(&path[..at]), &path[at + 1..]),
        None => (None, path),
    };
    (
        directories
            .into_iter()
            .flat_map(|part| part.split(|&byte| byte == 0)),
        name,
    )
}

/// The assembler knows an entry's name only: put its path in the error.
fn named(error: ManifestError, path: &[u8]) -> ManifestError {
    match error {
        ManifestError::Path { why, .. } => ManifestError::Path {
            path: shown(&with_slashes(path)).into_owned(),
            why,
        },
        other => other,
    }
}
