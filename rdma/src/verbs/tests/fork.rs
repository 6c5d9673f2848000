//! A child process that inherits everything: it can't use it, and can't harm the parent by dropping it.

use super::*;

/// Runs `work` in a child of this process; whether it returned true there.
fn in_a_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `work`, which calls nothing that another thread may have had a lock of but the
    // allocator, which glibc makes usable after a fork; then it ends without running anything else.
    match unsafe { libc::fork() } {
        0 => {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!held.unwrap_or(false))) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a child of ours and a status of ours.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(waited, child);
            status == 0
        }
    }
}

fn is_forked<T>(outcome: Result<T, VerbsError>) -> bool {
    matches!(outcome, Err(VerbsError::Forked { owner, .. }) if owner != std::process::id())
}

#[test]
fn a_child_can_not_use_what_it_inherited_and_dropping_it_leaves_the_parents_alone() {
    let (left, a, mut right, mut b) = connected(&config(4));
    let receives = SharedReceiveQueue::<Piece>::new(&left.pd, 4, 1).expect("a shared queue");
    let window = MemoryWindow::new(&left.pd).expect("a window");
    let (mapping, _pieces) = Mapping::split(PIECE, 1).expect("memory");
    let mut inherited = Some((left, a, receives, window, mapping));
    let held = in_a_child(|| {
        let Some((left, mut a, receives, window, mapping)) = inherited.take() else {
            return false;
        };
        let refused = is_forked(a.state())
            && is_forked(a.fail())
            && is_forked(MemoryRegion::register(
                &left.pd,
                mapping,
                Access::LocalWrite,
            ))
            && is_forked(ProtectionDomain::new(&left.context))
            && is_forked(CompletionQueue::new(&left.context, 1))
            && is_forked(MemoryWindow::new(&left.pd))
            && is_forked(receives.arm_limit(1))
            && is_forked(SharedReceiveQueue::<Piece>::new(&left.pd, 1, 1));
        drop((a, receives, window, left));
        refused
    });
    assert!(held, "each was refused, and the child ended well");
    let (mut left, mut a, receives, window, _mapping) =
        inherited.expect("the parent has all of it");
    b.post_receive(right.filled(0), &whole()).expect("posted");
    let payload = left.filled(4);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::send(&whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    assert!(sent(a.settle(left.next())).outcome().is_ok());
    assert_eq!(received(b.settle(right.next())).payload[0], 4);
    receives.arm_limit(1).expect("the parent's own");
    drop(window);
}
