//! Which files are open in which way: read by the kernel itself (passthrough), or through us.
//!
//! The kernel refuses to have one file open in both ways, with an error for whoever opens it. So the
//! first open of a file decides for all that come while it lasts. A file that the kernel reads by
//! itself needs nobody: its reads are those of the file in the cache.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;
use trackbed_cache::manifest::{EntryIndex, Manifest};

/// File systems that may be below the one whose files the kernel reads: the cache's own.
const STACK_DEPTH: u32 = 1;

/// The least bytes a version's files have on average for passthrough to be worth it: each open then
/// asks us, which takes as long as reading some ten KiB.
pub(super) const LEAST_MEAN_BYTES: u64 = 1 << 20;

const THROUGH_US: FileHandle = FileHandle(0);
const BY_THE_KERNEL: FileHandle = FileHandle(1);
const UNCACHED: FileHandle = FileHandle(2);

/// Whether the kernel reads files of a mount by itself, and why not.
#[derive(Debug)]
pub(super) struct Passthrough(Mutex<Result<(), String>>);

impl Passthrough {
    pub(super) fn off(why: &str) -> Passthrough {
        Passthrough(Mutex::new(Err(why.to_owned())))
    }

    /// On if this version gains by it and the kernel can, which [`Passthrough::settle`] finds out.
    pub(super) fn wanted_for(manifest: &Manifest) -> Passthrough {
        let totals = manifest.totals();
        if totals.bytes / totals.files.max(1) < LEAST_MEAN_BYTES {
            return Passthrough::off("its files are small");
        }
        Passthrough(Mutex::new(Ok(())))
    }

    /// Asks the kernel for it, if it is wanted; whether it is on.
    pub(super) fn settle(&self, config: &mut KernelConfig) -> bool {
        let mut state = self.0.lock();
        if state.is_ok() {
            let asked = config
                .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
                .is_ok_and(|()| config.set_max_stack_depth(STACK_DEPTH).is_ok());
            if !asked {
                *state = Err("the kernel has none (Linux 6.9)".to_owned());
            }
        }
        state.is_ok()
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.lock().is_ok()
    }

    /// For people.
    pub(super) fn state(&self) -> String {
        match &*self.0.lock() {
            Ok(()) => "passthrough for whole files".to_owned(),
            Err(why) => format!("no passthrough: {why}"),
        }
    }

    fn failed(&self, error: &std::io::Error) {
        tracing::warn!(%error, "the kernel takes no file of the cache for passthrough: files are read through FUSE");
        *self.0.lock() = Err(format!("the kernel takes no file of the cache: {error}"));
    }
}

/// The files that are open, and how.
#[derive(Default)]
pub(super) struct Opens(Mutex<HashMap<u32, Open>>);

/// How a file is open, and how often.
struct Open {
    through_us: usize,
    by_the_kernel: usize,
    /// The kernel's name for the file in the cache, to be the same for all that have it open.
    backing: Option<Arc<BackingId>>,
}

impl Opens {
    /// Answers an open. `backing` gives the file that the kernel may read by itself.
    pub(super) fn open(
        &self,
        entry: EntryIndex,
        reply: ReplyOpen,
        passthrough: &Passthrough,
        backing: impl FnOnce() -> Option<File>,
    ) {
        let mut opens = self.0.lock();
        let open = opens.entry(entry.0).or_insert(Open {
            through_us: 0,
            by_the_kernel: 0,
            backing: None,
        });
        if open.through_us == 0 {
            let file = backing();
            if open.by_the_kernel > 0 && file.is_none() {
                // Not to be trusted any more, and not to be had in the other way yet.
                return reply.opened(UNCACHED, FopenFlags::FOPEN_DIRECT_IO);
            }
            if open.backing.is_none()
                && let Some(file) = file
            {
                match reply.open_backing(file) {
                    Ok(backing) => open.backing = Some(Arc::new(backing)),
                    Err(error) => passthrough.failed(&error),
                }
            }
            if let Some(backing) = &open.backing {
                open.by_the_kernel += 1;
                // With any flag that has to do with FUSE's own cache the kernel refuses the open.
                let flags = FopenFlags::FOPEN_NOFLUSH;
                return reply.opened_passthrough(BY_THE_KERNEL, flags, backing);
            }
        }
        open.through_us += 1;
        reply.opened(
            THROUGH_US,
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    /// Notes a close.
    pub(super) fn release(&self, entry: EntryIndex, handle: FileHandle) {
        let mut opens = self.0.lock();
        let Some(open) = opens.get_mut(&entry.0) else {
            return;
        };
        let count = match handle {
            BY_THE_KERNEL => &mut open.by_the_kernel,
            THROUGH_US => &mut open.through_us,
            _ => return,
        };
        *count = count.saturating_sub(1);
        if open.through_us == 0 && open.by_the_kernel == 0 {
            opens.remove(&entry.0);
        }
    }
}
