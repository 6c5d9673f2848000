//! Where a dataset's bytes come from: a directory, a bucket of an object store, a folder of a web
//! server.
//!
//! An [`Origin`] lists what is there once, which makes a dataset version, and then reads ranges of
//! exactly the objects that were listed. An object that changed since is an error that names it,
//! never other bytes.
//!
//! The futures of an origin are polled on any thread, the data path's included: an origin whose
//! library needs a runtime or blocks brings its own runtime or threads.

mod answers;
mod bucket;
mod budget;
mod directory;
mod failure;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod keys;
mod listed;
mod objects;
mod open;
mod range;
mod runtime;
mod secrets;
mod url;
mod web;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use futures::future::BoxFuture;

pub use bucket::BucketOrigin;
pub use budget::RequestBudget;
pub use directory::DirectoryOrigin;
pub use listed::Listing;
pub(crate) use listed::{Listed, ListedAs, with_slashes};
pub use open::Origins;
pub use runtime::RequestRuntime;
pub use secrets::{SecretValues, Secrets};
pub use url::{BucketLocation, CredentialsRef, OriginUrl, Service, WebLocation};
pub use web::WebOrigin;

/// The most entries a listing may have before it is given up: a guard against a listing that never
/// ends (a loop of mounts, a bucket that grows while it is read).
pub const MAX_LISTED_ENTRIES: u64 = 64_000_000;

/// The longest object identity kept, in bytes. ETags are 34 to 70 bytes in practice.
pub const MAX_IDENTITY_BYTES: usize = 255;

/// A source of datasets.
pub trait Origin: Send + Sync {
    /// Everything below the origin's root, in any order, the root itself left out. Directories
    /// that only exist as a part of an object's path may be left out too.
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>>;

    /// Fills all of `into` with the object's bytes from `offset` on. Fails with
    /// [`OriginError::Changed`] if the object is not the one that was listed, and never leaves
    /// bytes of another one in `into` when it returns `Ok`.
    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>>;
}

/// Opens origins by their URL. What the agent is given, so that it knows no library by name.
pub trait OpenOrigin: Send + Sync {
    /// Opens `url`, having looked up the credentials it refers to.
    fn open<'a>(
        &'a self,
        url: &'a OriginUrl,
    ) -> BoxFuture<'a, Result<Arc<dyn Origin>, OriginError>>;
}

/// One thing found by listing an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEntry {
    /// Path below the origin's root, as bytes, components joined by single slashes.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: ListedKind,
    /// Permission bits (the lower twelve of a mode).
    pub mode: u16,
    /// When it was last modified.
    pub mtime: Timestamp,
}

/// What a listed entry is. There is no way to say "device", "socket" or "pipe": an origin leaves
/// such things out and says so in its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListedKind {
    /// A directory, empty ones included.
    Directory,
    /// An object with bytes.
    File {
        /// Length in bytes.
        size: u64,
        /// What tells this content from a later one under the same path.
        identity: ObjectIdentity,
    },
    /// A symbolic link. It is handed to readers as it is and never followed by us.
    Symlink {
        /// What the link says, as bytes.
        target: Vec<u8>,
    },
}

/// A moment since 1970-01-01 UTC; negative seconds lie before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// What tells one content of an object from another: compared for equality, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectIdentity {
    /// The entity tag an object store gave, verbatim, quotes included; at most
    /// [`MAX_IDENTITY_BYTES`].
    Etag(Box<str>),
    /// The modification time, where that is all there is (a directory). The size is always
    /// compared too.
    Modified(Timestamp),
}

impl fmt::Display for ObjectIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectIdentity::Etag(etag) => write!(f, "ETag {etag}"),
            ObjectIdentity::Modified(at) => write!(f, "modified {}.{:09}", at.seconds, at.nanos),
        }
    }
}

/// The object to read, as it was when it was listed.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRef<'a> {
    /// Path below the origin's root.
    pub path: &'a [u8],
    /// Its length when listed.
    pub size: u64,
    /// Its identity when listed.
    pub identity: &'a ObjectIdentity,
}

/// Counts what a listing has found so far, read by whoever shows progress, and stops it.
#[derive(Debug, Default)]
pub struct ListProgress {
    entries: AtomicU64,
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl ListProgress {
    /// Adds what was found. The listing ends with the error this returns: too many entries, or
    /// cancelled.
    pub fn found(&self, entries: u64, bytes: u64) -> Result<(), OriginError> {
        self.bytes.fetch_add(bytes, Relaxed);
        let entries = self.entries.fetch_add(entries, Relaxed) + entries;
        if self.cancelled.load(Relaxed) {
            return Err(OriginError::Cancelled);
        }
        if entries > MAX_LISTED_ENTRIES {
            return Err(OriginError::TooManyEntries {
                limit: MAX_LISTED_ENTRIES,
            });
        }
        Ok(())
    }

    /// Entries found so far.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Bytes of the files found so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Makes the listing end at its next entry.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }
}

/// Why an origin could not give what was asked. Says which object and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// The URL itself is no good.
    #[error("origin URL {url}: {why}: {remedy}")]
    Url {
        /// The URL, any secret in it left out.
        url: String,
        /// What is wrong.
        why: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// The origin cannot be reached, opened or listed.
    #[error("cannot open or list {origin}: {why}: {remedy}")]
    Unavailable {
        /// The origin's URL.
        origin: String,
        /// What happened.
        why: String,
        /// What to do.
        remedy: &'static str,
        /// Whether asking again later may help.
        transient: bool,
    },
    /// Credentials are missing or refused.
    #[error("{object} of {origin}: access denied ({why}): {remedy}")]
    Denied {
        /// The origin's URL.
        origin: String,
        /// The object, or `/` for the listing itself.
        object: String,
        /// What the origin said, without secrets.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The object was deleted since the listing.
    #[error(
        "object {object} is gone from {origin}: restore it, or register the dataset again to make a new version"
    )]
    Missing {
        /// The origin's URL.
        origin: String,
        /// The object.
        object: String,
    },
    /// The object's content is not the one that was listed.
    #[error(
        "object {object} of {origin} changed since it was listed ({listed}, now {found}): restore it, or register the dataset again to make a new version"
    )]
    Changed {
        /// The origin's URL.
        origin: String,
        /// The object.
        object: String,
        /// Size and identity in the manifest.
        listed: String,
        /// Size and identity now.
        found: String,
    },
    /// A read failed.
    #[error("reading {length} bytes at {offset} of object {object} of {origin}: {source}")]
    Read {
        /// The origin's URL.
        origin: String,
        /// The object.
        object: String,
        /// Where the read began.
        offset: u64,
        /// How much was asked for, in bytes.
        length: u64,
        /// Why it failed.
        source: io::Error,
        /// Whether asking again may help.
        transient: bool,
    },
    /// A listing gave more entries than any dataset may have.
    #[error(
        "the listing has more than {limit} entries: name a smaller directory or prefix, and check for mounts that loop"
    )]
    TooManyEntries {
        /// The bound.
        limit: u64,
    },
    /// The listing was stopped by whoever started it.
    #[error("the listing was cancelled")]
    Cancelled,
}

impl OriginError {
    /// Whether the same request may succeed when made again soon.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            OriginError::Unavailable {
                transient: true,
                ..
            } | OriginError::Read {
                transient: true,
                ..
            }
        )
    }
}
