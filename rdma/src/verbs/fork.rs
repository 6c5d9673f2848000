//! What fork(2) means for a process that has devices open.
//!
//! **The parent** goes on as if nothing had happened where the kernel copies pinned pages for the child at
//! the time of the fork (Linux 5.12 and later; [`fork_support`] says `Unneeded`). On an older kernel the
//! parent could be the one who gets the copy, and the adapter would write into pages that nobody reads:
//! call [`prepare_fork`] before anything is registered. libibverbs then keeps registered pages out of
//! children, in whole pages, so a child must not touch anything that shares a page with them. Starting
//! programs with [`std::process::Command`] needs none of this.
//!
//! **The child** shares the open device with its parent but can't use what was made before: its calls
//! would change the parent's objects. Making and changing objects of a context that another process
//! opened is an error ([`VerbsError::Forked`]), and dropping them there leaves the parent's alone. A child
//! opens the device anew. Posting and polling have no such check, which would cost each request: what
//! runs in the child after a bare `fork`, an `unsafe` function, must not post or poll on what it inherited.

use super::error::VerbsError;
use crate::sys::{self, Library};

/// How registered memory fares when this process forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkSupport {
    /// The kernel copies pinned pages for the child: nothing to do.
    Unneeded,
    /// libibverbs keeps registered pages out of children.
    Enabled,
    /// Neither: after a fork, what the adapter writes may be lost.
    Disabled,
    /// This libibverbs, before rdma-core 36, doesn't tell.
    Unknown,
}

/// How registered memory fares when this process forks now.
pub fn fork_support() -> Result<ForkSupport, VerbsError> {
    Ok(support(Library::system()?))
}

/// Makes forking safe for registered memory (ibv_fork_init(3)), where the kernel doesn't. It must come
/// before the first registration, and makes each of those slower; where it is not needed it does nothing.
pub fn prepare_fork() -> Result<ForkSupport, VerbsError> {
    prepare(Library::system()?)
}

fn support(library: &Library) -> ForkSupport {
    let Some(ask) = library.is_fork_initialized else {
        return ForkSupport::Unknown;
    };
    // SAFETY: it takes nothing and reads the library's own state.
    match unsafe { ask() } {
        sys::IBV_FORK_UNNEEDED => ForkSupport::Unneeded,
        sys::IBV_FORK_ENABLED => ForkSupport::Enabled,
        _ => ForkSupport::Disabled,
    }
}

fn prepare(library: &Library) -> Result<ForkSupport, VerbsError> {
    if support(library) == ForkSupport::Unneeded {
        return Ok(ForkSupport::Unneeded);
    }
    // SAFETY: it takes nothing; called too late it refuses.
    match unsafe { (library.fork_init)() } {
        0 => Ok(match support(library) {
            ForkSupport::Unknown => ForkSupport::Enabled,
            known => known,
        }),
        code => Err(VerbsError::code("ibv_fork_init", "this process", code)),
    }
}
