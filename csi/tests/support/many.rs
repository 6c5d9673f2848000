//! An origin of very many small files, which lie on no disk.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use trackbed_cache::OriginUrl;
use trackbed_cache::origin::{
    ListProgress, ListedEntry, ListedKind, Listing, ObjectIdentity, ObjectRef, OpenOrigin, Origin,
    OriginError, Timestamp,
};

/// This many files, a thousand a folder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many(pub(crate) usize);

impl Many {
    pub(crate) fn path(number: usize) -> String {
        format!("many/{}/{number}", number / 1000)
    }

    pub(crate) fn content(number: usize) -> String {
        format!("{number}\n").repeat(1 + number % 40)
    }
}

impl Origin for Many {
    fn list<'a>(
        &'a self,
        progress: &'a ListProgress,
    ) -> BoxFuture<'a, Result<Listing, OriginError>> {
        async move {
            let mut listed = Listing::new();
            for number in 0..self.0 {
                let size = Many::content(number).len() as u64;
                progress.found(1, size)?;
                let identity = ObjectIdentity::Etag(number.to_string().into());
                listed.push(&ListedEntry {
                    path: Many::path(number).into(),
                    kind: ListedKind::File { size, identity },
                    mode: 0o644,
                    mtime: Timestamp::default(),
                });
            }
            Ok(listed)
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        object: ObjectRef<'a>,
        offset: u64,
        into: &'a mut [u8],
    ) -> BoxFuture<'a, Result<(), OriginError>> {
        async move {
            let name = object.path.rsplit(|&byte| byte == b'/').next();
            let name = std::str::from_utf8(name.expect("one")).expect("a number");
            let content = Many::content(name.parse().expect("a number"));
            let begin = offset as usize;
            into.copy_from_slice(&content.as_bytes()[begin..begin + into.len()]);
            Ok(())
        }
        .boxed()
    }
}

impl OpenOrigin for Many {
    fn open<'a>(
        &'a self,
        _url: &'a OriginUrl,
    ) -> BoxFuture<'a, Result<Arc<dyn Origin>, OriginError>> {
        let origin: Arc<dyn Origin> = Arc::new(*self);
        async move { Ok(origin) }.boxed()
    }
}
