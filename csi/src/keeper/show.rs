//! Showing versions by a keeper: what it is lent, and the mounts that it makes of that.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::KeeperError;
use super::bits::encode;
use super::client::{KeptMounts, Shared, View};
use super::message::{Answer, Ask, MountState};
use super::mount::KeptMount;
use crate::expose::fuse::InProcess;
use crate::expose::mountinfo::MountTable;
use crate::expose::{Expose, ExposeError, Exposed, KeptView, VersionView};

/// How long a keeper that is busy is waited for before it passes for alive.
const CHECK_WITHIN: Duration = Duration::from_secs(1);

impl Shared {
    /// Lets the keeper ask for this version; the chunks it has, as they go with the request.
    fn lend(&self, view: &Arc<dyn KeptView>) -> Vec<u8> {
        let told = view.held();
        let encoded = encode(&told);
        let mut views = self.views.lock();
        let version = view.manifest().digest().to_string();
        let known = views.entry(version).or_insert_with(|| View {
            view: Arc::clone(view),
            told: Vec::new(),
            mounts: 0,
        });
        known.view = Arc::clone(view);
        known.told = told;
        known.mounts += 1;
        encoded
    }

    /// A mount of this version is no more, or was not made. The keeper says when nobody has a file
    /// of it open any more.
    pub(super) fn unlend(&self, version: &str) {
        if let Some(known) = self.views.lock().get_mut(version) {
            known.mounts = known.mounts.saturating_sub(1);
        }
    }

    fn taken(self: &Arc<Shared>, state: MountState) -> Box<dyn Exposed> {
        let mount = KeptMount {
            shared: Arc::clone(self),
            version: state.version.clone(),
            number: state.mount,
            mount_point: state.target.clone(),
            device: state.device,
            way: state.way.clone(),
            over: false,
        };
        let mut states = self.states.lock();
        states.insert(state.mount, (state, Instant::now()));
        Box::new(mount)
    }
}

impl Expose for KeptMounts {
    fn adopt(&self, view: &Arc<dyn VersionView>, mount_point: &Path) -> Option<Box<dyn Exposed>> {
        let view = Arc::clone(view).kept()?;
        let link = self.0.link(true).ok()?;
        let (Answer::Mounts { mounts }, _) = link.call(&Ask::List, &[]).ok()? else {
            return None;
        };
        let seen = MountTable::read().ok()?.top(mount_point)?.device;
        let version = view.manifest().digest().to_string();
        let left = mounts
            .into_iter()
            .find(|mount| mount.alive && mount.device == seen && mount.version == version)?;
        let held = self.0.lend(&view);
        let adopt = Ask::Adopt { mount: left.mount };
        match link.call(&adopt, &held) {
            Ok((Answer::Mounted(mut state), _)) => {
                // The path as this process sees it.
                state.target = mount_point.to_owned();
                Some(self.0.taken(state))
            }
            _ => {
                self.0.unlend(&version);
                None
            }
        }
    }

    fn show(
        &self,
        view: &Arc<dyn VersionView>,
        dataset: &str,
        mount_point: &Path,
    ) -> Result<Box<dyn Exposed>, ExposeError> {
        let Some(kept) = Arc::clone(view).kept() else {
            // A version without files lies on no disk, and has no reads that could fail.
            return InProcess.show(view, dataset, mount_point);
        };
        let view = kept;
        let link = self.0.link(true)?;
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|source| ExposeError::Mount {
                action: "find the way to a version's directory, to mount it",
                target: mount_point.to_owned(),
                source,
            })
        };
        let version = view.manifest().digest().to_string();
        let mount = Ask::Mount {
            version: version.clone(),
            directory: absolute(&view.directory())?,
            target: absolute(mount_point)?,
            dataset: dataset.to_owned(),
            passthrough: self.0.config.passthrough,
        };
        let held = self.0.lend(&view);
        match link.call(&mount, &held) {
            Ok((Answer::Mounted(state), _)) => Ok(self.0.taken(state)),
            Ok(_) => {
                self.0.unlend(&version);
                Err(KeeperError::Nonsense.into())
            }
            Err(error) => {
                self.0.unlend(&version);
                Err(error.into())
            }
        }
    }

    fn check(&self) {
        if let Some(link) = self.0.connected() {
            // What it answers does not matter. One that is about to be gone does not answer: a process that
            // was killed lets go of its mounts before its socket is closed, and that it is closed is noticed
            // before this returns.
            let _ = link.call_within(CHECK_WITHIN, &Ask::List, &[]);
        }
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::super::link::{Heard, Link};
    use super::super::{KeptMountsConfig, OLDEST, PROTOCOL};
    use super::*;

    fn mounted() -> MountState {
        MountState {
            mount: 1,
            version: "a version".to_owned(),
            target: "/nowhere".into(),
            device: (0, 1),
            alive: true,
            way: "FUSE".to_owned(),
            failure: None,
        }
    }

    #[test]
    fn a_keeper_that_is_dying_does_not_pass_for_alive() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("keeper.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let dying = Arc::new(AtomicBool::new(false));
        let dies = Arc::clone(&dying);
        // Answers until it is dying. Then its mounts are gone already, and its socket a moment later.
        let keeper = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("an agent");
            let (link, reader) = Link::new(stream).expect("of this user");
            let (answering, closing) = (Arc::clone(&link), Arc::clone(&link));
            answering.listen(reader, |heard| match heard {
                Heard::Ask(number, Ask::Hello { .. }, _) => {
                    let welcome = Answer::Welcome {
                        protocol: PROTOCOL,
                        oldest: OLDEST,
                        build: "test".to_owned(),
                    };
                    link.answer(number, &welcome, &[]);
                }
                Heard::Ask(..) if dies.load(Ordering::SeqCst) => {
                    let closing = Arc::clone(&closing);
                    thread::spawn(move || {
                        thread::sleep(Duration::from_millis(20));
                        closing.close();
                    });
                }
                Heard::Ask(number, ..) => {
                    link.answer(number, &Answer::Mounts { mounts: Vec::new() }, &[]);
                }
                Heard::Tell(..) => {}
            });
        });
        let mounts = KeptMounts::new(KeptMountsConfig {
            socket,
            build: "test".to_owned(),
            passthrough: false,
            start: None,
        });
        let mounts = mounts.expect("connected");
        let mount = mounts.0.taken(mounted());
        mounts.check();
        assert!(mount.is_alive());
        dying.store(true, Ordering::SeqCst);
        assert!(mount.is_alive(), "nobody can know yet");
        mounts.check();
        assert!(!mount.is_alive());
        keeper.join().expect("it ended");
    }
}
