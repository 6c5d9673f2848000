//! What tells versions of different origins apart that were listed alike.

use crate::digest::Digest;
use crate::origin::{ListedAs, Listing, ObjectIdentity, OriginUrl};

/// Where a version was listed, as far as that says what its bytes are.
///
/// Sizes and times of modification tell a file from what it was before, not from a file elsewhere: two
/// datasets unpacked from archives whose files all have the same time can be listed alike and differ in
/// every byte. So can two folders of a web server, whose ETags are often made of size and time. Their
/// versions are therefore of one origin. The ETags of object stores name contents or single writes: such
/// a version is the same wherever it lies, and stays so when its bucket moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    digest: Digest,
    etags_suffice: bool,
}

impl Place {
    /// No place in particular: for versions whose identities are known to suffice.
    pub const ANY: Place = Place {
        digest: NOWHERE,
        etags_suffice: true,
    };

    /// What `origin` is, whichever credentials it is read with.
    pub fn of(origin: &OriginUrl) -> Place {
        Place {
            digest: Digest::of(origin.without_credentials().to_string().as_bytes()),
            etags_suffice: matches!(origin, OriginUrl::Bucket(_)),
        }
    }

    /// What a version with these entries is to be told apart by.
    pub(super) fn of_version(self, listed: &Listing) -> Digest {
        let named = |kind: ListedAs<'_>| match kind {
            ListedAs::File { identity, .. } => matches!(identity, ObjectIdentity::Etag(_)),
            _ => true,
        };
        if self.etags_suffice && listed.iter().all(|entry| named(entry.kind)) {
            return NOWHERE;
        }
        self.digest
    }
}

/// Of a version that is the same wherever it lies.
pub(super) const NOWHERE: Digest = Digest::from_bytes([0; 32]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use crate::origin::{ListedEntry, ListedKind, Timestamp};

    fn version(origin: &str, identity: ObjectIdentity) -> Digest {
        let entry = ListedEntry {
            path: b"x".to_vec(),
            kind: ListedKind::File { size: 9, identity },
            mode: 0o644,
            mtime: Timestamp::default(),
        };
        let origin = origin.parse().expect("a URL");
        let manifest = Manifest::build(Place::of(&origin), vec![entry]).expect("valid");
        assert_eq!(
            Manifest::decode(&manifest.encode()).map(|it| it.digest()),
            Ok(manifest.digest())
        );
        manifest.digest()
    }

    #[test]
    fn what_does_not_name_contents_is_of_one_origin() {
        let etag = || ObjectIdentity::Etag("\"9-5f1c\"".into());
        let time = || ObjectIdentity::Modified(Timestamp::default());
        let same = |one, other, identity: &dyn Fn() -> ObjectIdentity| {
            version(one, identity()) == version(other, identity())
        };
        assert!(!same("/data/train", "/data/val", &time));
        assert!(!same("https://host/a", "https://host/b", &etag));
        assert!(!same("s3://one/a", "s3://two/a", &time));
        assert!(same("s3://one/a", "s3://two/a", &etag));
        let read_by = "s3://one/a?credentials=none";
        assert!(same("s3://one/a", read_by, &time));
    }
}
