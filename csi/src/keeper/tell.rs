//! Keeps the keeper told of what is on the disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::bits::encode;
use super::client::Shared;
use super::message::Tell;

/// How often the keeper is told what is on the disk, if that has changed.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Tells the keeper which chunks came and went, until nobody shows anything any more.
pub(super) fn tell_changes(shared: &Weak<Shared>) {
    loop {
        thread::sleep(TELL_EVERY);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let Some(link) = shared.connected() else {
            // A keeper that was restarted in the meantime; one is started only to mount.
            if !shared.ended.load(Ordering::Acquire) {
                // Why not is in `trouble`.
                let _ = shared.link(false);
            }
            continue;
        };
        let views: Vec<_> = {
            let views = shared.views.lock();
            let views = views.iter();
            views
                .map(|(version, known)| (version.clone(), Arc::clone(&known.view)))
                .collect()
        };
        for (version, view) in views {
            let now = view.held();
            let changed = match shared.views.lock().get_mut(&version) {
                Some(known) if known.told != now => {
                    known.told = now;
                    true
                }
                _ => false,
            };
            if changed {
                // Looked at anew while nothing else is being said: what the keeper was told before
                // this is in it.
                link.tell_with(&Tell::Held { version }, || encode(&view.held()));
            }
        }
    }
}
