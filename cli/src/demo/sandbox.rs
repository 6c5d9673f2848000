//! The demo's sandbox: fresh anonymous namespaces, so that nothing it makes can outlive it.
//!
//! Three processes stand in each other: the supervisor, which a person started and which removes
//! the work folder; the init, PID 1 of a PID namespace with a mount namespace of its own; and the
//! conductor, which starts nodes and does the work. However one of them ends, SIGKILL included,
//! the kernel ends everything inside: mounts, processes and network go with their namespaces.

use super::supervise::{Patience, block_signals, watch_over};
use crate::exit::Failure;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getegid, geteuid};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the supervisor tells the processes inside, as one hidden argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Inside {
    /// Which of the two inner processes this is.
    pub(crate) role: InnerRole,
    /// The demo's folder.
    pub(crate) work: PathBuf,
    /// The sandbox has a network namespace of its own.
    pub(crate) own_network: bool,
    /// The sandbox has a user namespace: the person is root in it and nowhere else.
    pub(crate) own_users: bool,
}

/// The processes inside the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InnerRole {
    /// PID 1: makes the mount namespace, reaps, passes signals on.
    Init,
    /// Does the work.
    Conductor,
}

/// The hidden option that carries [`Inside`].
pub(crate) const INSIDE_OPTION: &str = "--inside";

/// The file in the work folder that holds init's process id as seen from outside.
pub(crate) const INIT_PID_FILE: &str = "init.pid";

/// From here on a signal that asks for the end waits until it is listened to: in between there would be
/// nobody to clear up.
pub(crate) fn hold_signals() -> Result<(), Failure> {
    block_signals().map_err(|errno| failed("block signals", errno))
}

/// The supervisor, after [`hold_signals`]: makes the namespaces, starts init in them and waits. Returns the conductor's
/// exit code.
pub(crate) fn supervise(work: &Path, own_network: bool) -> Result<u8, Failure> {
    let own_users = make_namespaces(own_network)?;
    let inside = Inside {
        role: InnerRole::Init,
        work: work.to_owned(),
        own_network,
        own_users,
    };
    // Init's standard input is how it learns that the supervisor is gone already.
    let init = spawn(&inside, Stdio::piped())?;
    std::fs::write(work.join(INIT_PID_FILE), init.id().to_string())
        .map_err(|error| Failure::failed(format!("cannot write to {}: {error}", work.display())))?;
    watch_over(pid_of(&init), Patience::Person)
        .map_err(|errno| failed("wait for the demo's init", errno))
}

/// PID 1 of the sandbox: readies the mount namespace, starts the conductor, waits. When it
/// returns the kernel ends all that is left inside.
pub(crate) fn init(mut inside: Inside) -> Result<u8, Failure> {
    set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| failed("tie the sandbox's life to its supervisor", errno))?;
    if supervisor_is_gone() {
        return Ok(1);
    }
    hold_signals()?;
    make_mounts(&inside.work)?;
    inside.role = InnerRole::Conductor;
    let conductor = spawn(&inside, Stdio::null())?;
    watch_over(pid_of(&conductor), Patience::Relay)
        .map_err(|errno| failed("wait for the demo's conductor", errno))
}

fn spawn(inside: &Inside, stdin: Stdio) -> Result<Child, Failure> {
    let refuse = |error: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "cannot start the demo's {:?} process: {error}",
            inside.role
        ))
    };
    let program = std::env::current_exe().map_err(|error| refuse(&error))?;
    let told = serde_json::to_string(inside).map_err(|error| refuse(&error))?;
    Command::new(program)
        .args(
            std::env::args_os()
                .skip(1)
                .take_while(|arg| arg != INSIDE_OPTION),
        )
        .arg(INSIDE_OPTION)
        .arg(told)
        .stdin(stdin)
        .spawn()
        .map_err(|error| refuse(&error))
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Enters fresh namespaces; true when that took a user namespace. The calling process stays in
/// its PID namespace; its children are born into the new one.
fn make_namespaces(own_network: bool) -> Result<bool, Failure> {
    let mut wanted = CloneFlags::CLONE_NEWPID;
    if own_network {
        wanted |= CloneFlags::CLONE_NEWNET;
    }
    // Looked up first: inside the namespace, before the mapping, we are nobody.
    let (uid, gid) = (geteuid(), getegid());
    match unshare(wanted) {
        Ok(()) => return Ok(false),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(no_namespaces(errno)),
    }
    unshare(wanted | CloneFlags::CLONE_NEWUSER).map_err(no_namespaces)?;
    let write = |file: &str, text: String| {
        std::fs::write(file, text).map_err(|error| {
            Failure::unable(format!(
                "cannot become root of the demo's user namespace ({file}: {error}): run it as root"
            ))
        })
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(true)
}

fn no_namespaces(errno: Errno) -> Failure {
    Failure::unable(format!(
        "this machine does not let the demo make namespaces to mount and clean up in \
         ({}): run it as root; in a container, give it CAP_SYS_ADMIN (docker run --privileged); \
         on Ubuntu as a user, `sysctl kernel.apparmor_restrict_unprivileged_userns=0` allows it",
        errno.desc()
    ))
}

fn supervisor_is_gone() -> bool {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// A mount namespace of our own in which nothing propagates outwards, the work folder propagates
/// among the nodes (as kubelet's folder does, so that what a node mounts is seen by whoever reads
/// it), and /proc shows the sandbox's processes.
fn make_mounts(work: &Path) -> Result<(), Failure> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).map_err(no_namespaces)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| failed("make the sandbox's mounts private", errno))?;
    mount(Some(work), work, none, MsFlags::MS_BIND, none)
        .and_then(|()| mount(none, work, none, MsFlags::MS_SHARED, none))
        .map_err(|errno| failed("share the work folder's mounts among the nodes", errno))?;
    let hidden = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(errno) = mount(Some("proc"), "/proc", Some("proc"), hidden, none) {
        // A container whose own /proc is masked may not mount another; ours is only tidier.
        tracing::debug!(%errno, "/proc stays the one of the outside");
    }
    Ok(())
}

fn failed(what: &str, errno: Errno) -> Failure {
    Failure::failed(format!("cannot {what}: {}", errno.desc()))
}
