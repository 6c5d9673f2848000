//! Whether this node shows versions of many small files as EROFS images, and how it mounts them.

use std::path::Path;

use trackbed_csi::expose::erofs::{self, Way};
use trackbed_csi::expose::native::Choice;

use super::ExposeChoice;

/// What was found out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Images {
    /// From how many small files on a version is an image.
    pub(crate) from: Option<u32>,
    /// How images are mounted.
    pub(crate) way: Option<Way>,
}

impl Images {
    /// Finds out how images in the cache's folder can be mounted, if `expose` wants them.
    pub(crate) async fn find(expose: ExposeChoice, cache: &Path) -> Images {
        let choice = Choice::from(expose);
        let Some(from) = choice.image_from() else {
            return Images::default();
        };
        let cache = cache.to_owned();
        let finding = tokio::task::spawn_blocking(move || erofs::find_way(&cache));
        match finding
            .await
            .unwrap_or_else(|panicked| Err(panicked.to_string()))
        {
            Ok(way) => {
                tracing::info!(?way, from, "versions of many small files are EROFS images");
                Images {
                    from: Some(from),
                    way: Some(way),
                }
            }
            Err(why) => {
                match choice {
                    Choice::Erofs => tracing::warn!(why, "versions are shown without EROFS images"),
                    _ => tracing::info!(why, "versions are shown without EROFS images"),
                }
                Images::default()
            }
        }
    }
}
