//! What agent and keeper say to each other. See the parent module for who asks what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A question. Which side asks it is said with each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// Agent, first of all: who it is. Answered by [`Answer::Welcome`].
    Hello {
        /// The protocol it speaks.
        protocol: u32,
        /// Its build, for people.
        build: String,
    },
    /// Agent: mount a version; the frame's bytes are the chunks held, a bit each. From now on the
    /// agent is asked for what is not there. Answered by [`Answer::Mounted`].
    Mount {
        /// The version's digest.
        version: String,
        /// Where it lies on the disk.
        directory: PathBuf,
        /// The directory to mount it on.
        target: PathBuf,
        /// The mount's source.
        dataset: String,
        /// Whether the kernel may read whole files by itself.
        passthrough: bool,
    },
    /// Agent: take over a mount of an earlier agent; with the chunks held, as for `Mount`. Answered
    /// by [`Answer::Mounted`].
    Adopt {
        /// The mount's number.
        mount: u64,
    },
    /// Agent: take a mount away. Answered by [`Answer::Done`].
    Unmount {
        /// The mount's number.
        mount: u64,
    },
    /// Agent: what is mounted. Answered by [`Answer::Mounts`].
    List,
    /// Agent: take all mounts away and end. Answered by [`Answer::Done`].
    End,
    /// Keeper: bytes of a file. Answered by [`Answer::Brought`], with the bytes if it says so.
    Bring {
        /// The version's digest.
        version: String,
        /// The file's place in the manifest.
        entry: u32,
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// They are on the disk and do not match their seal there.
        suspect: bool,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// To [`Ask::Hello`].
    Welcome {
        /// The protocol the keeper speaks.
        protocol: u32,
        /// The oldest protocol of an agent that it works with.
        oldest: u32,
        /// Its build, for people.
        build: String,
    },
    /// To [`Ask::Mount`] and [`Ask::Adopt`].
    Mounted(MountState),
    /// To [`Ask::List`].
    Mounts {
        /// All mounts that are alive.
        mounts: Vec<MountState>,
    },
    /// To [`Ask::Bring`].
    Brought {
        /// They are on the disk.
        on_disk: bool,
        /// The frame's bytes are those asked for.
        bytes: bool,
    },
    /// Done, and there is nothing to say about it.
    Done,
    /// Not done, and why.
    Failed {
        /// A sentence.
        why: String,
    },
}

/// What is told without being asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tell {
    /// Agent: which chunks of a version are held now, in the frame's bytes. What was held and is
    /// not any more was found damaged, or was evicted.
    Held {
        /// The version's digest.
        version: String,
    },
    /// Keeper: how a mount is.
    State(MountState),
    /// Keeper: nobody reads the version any more.
    Released {
        /// The version's digest.
        version: String,
    },
}

/// A mount of the keeper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MountState {
    /// Its number: unique for as long as the keeper lives.
    pub(super) mount: u64,
    /// The version's digest.
    pub(super) version: String,
    /// Where it is mounted.
    pub(super) target: PathBuf,
    /// Its device number.
    pub(super) device: (u32, u32),
    /// Whether requests are answered.
    pub(super) alive: bool,
    /// How it is shown, for people.
    pub(super) way: String,
    /// The last read that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<FailureState>,
}

/// A read that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailureState {
    /// How long ago, in milliseconds.
    pub(super) age_ms: u64,
    /// Which file and why.
    pub(super) what: String,
}
