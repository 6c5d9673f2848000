//! Forking with a device open.

use super::*;

/// Forks; the child runs `work` and ends with 0 if that is true, once `go` is closed.
fn child(go: [i32; 2], done: [i32; 2], work: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: the child runs `work`, which needs no lock of another thread's but the allocator's, which
    // glibc makes usable after a fork, and then ends without running anything else.
    match unsafe { libc::fork() } {
        0 => {
            let held = work();
            let mut byte = [0u8];
            // SAFETY: descriptors of this process and one byte of ours; then the end of the child.
            unsafe {
                libc::write(done[1], byte.as_ptr().cast(), 1);
                libc::close(go[1]);
                libc::read(go[0], byte.as_mut_ptr().cast(), 1);
                libc::_exit(i32::from(!held))
            }
        }
        child => child,
    }
}

fn pipe() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends
}

#[test]
fn after_a_fork_the_parent_sees_its_data_and_the_child_can_do_no_harm() {
    let Some(device) = device() else { return };
    let support = fork_support().expect("the library");
    assert_eq!(
        support,
        ForkSupport::Unneeded,
        "this kernel copies pinned pages"
    );
    assert_eq!(prepare_fork().expect("nothing to do"), support);
    let (mut left, mut a, mut right, mut b) = connected(&device);
    let target = right.filled(0);
    b.post_receive(target, &whole())
        .expect("posted before the fork");
    let mut payload = left.filled(1);
    let (go, done) = (pipe(), pipe());
    let mut inherited = Some((left, a));
    let pid = child(go, done, || {
        let Some((left, a)) = inherited.take() else {
            return false;
        };
        let refused = matches!(a.state(), Err(VerbsError::Forked { .. }))
            && matches!(
                ProtectionDomain::new(&left.context),
                Err(VerbsError::Forked { .. })
            );
        drop((a, left));
        refused
    });
    let mut byte = [0u8];
    // SAFETY: a descriptor and a byte of ours: waits until the child has dropped everything.
    let said = unsafe { libc::read(done[0], byte.as_mut_ptr().cast(), 1) };
    assert_eq!(said, 1);
    (left, a) = inherited.expect("the parent has it");
    // Written while the child lives and shares the page: the adapter must see the parent's.
    payload.fill(9);
    send(&mut a, payload, PIECE as u32);
    let completion = left.next();
    sent(a.settle(completion)).0.expect("sent");
    let got = received(b.settle(right.next()));
    got.outcome.expect("received");
    assert!(
        got.payload.iter().all(|byte| *byte == 9),
        "what was written after the fork"
    );
    // SAFETY: lets the child end, and waits for it.
    let status = unsafe {
        let mut status = 0;
        libc::close(go[1]);
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    };
    assert_eq!(status, 0, "the child was refused everything");
    // Also with the child gone.
    b.post_receive(got.payload, &whole()).expect("posted");
    let payload = left.filled(5);
    send(&mut a, payload, 8);
    let got = received(b.settle(right.next()));
    assert!(got.outcome.is_ok() && got.payload[0] == 5);
}
