//! Memory of every kind, and rights of peers in it.

use std::thread;

use super::*;

/// Sends one message from and into memory of this kind.
fn carries_a_message(device: &str, memory: Arc<dyn Pinned>, mut pieces: Vec<Piece>) {
    let (mut left, mut a, mut right, mut b) = connected(device);
    for (pd, pair) in [(&left.pd, &mut a), (&right.pd, &mut b)] {
        let region = MemoryRegion::register(pd, Arc::clone(&memory), Access::LocalWrite);
        pair.attach(&region.expect("registered"))
            .expect("the same domain");
    }
    b.post_receive(pieces.pop().expect("two"), &whole())
        .expect("posted");
    let mut payload = pieces.pop().expect("two");
    payload.fill(5);
    send(&mut a, payload, PIECE as u32);
    let done = left.next();
    sent(a.settle(done)).0.expect("sent");
    let got = received(b.settle(right.next()));
    assert_eq!(got.outcome.expect("received").bytes, PIECE as u32);
    assert!(got.payload.iter().all(|byte| *byte == 5));
}

#[test]
fn huge_pages_on_a_node_and_files_in_memory_carry_messages() {
    let Some(device) = device() else { return };
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    std::fs::write(pool, "0").expect("root in the guest");
    let huge = MappingOptions {
        pages: Pages::Huge(HugePages {
            size: HugePageSize::TwoMebibytes,
            or_transparent: false,
        }),
        node: None,
    };
    let error = Mapping::split_with(PIECE, 2, &huge).expect_err("none are reserved");
    assert!(
        error.to_string().contains(&format!("write 1 into {pool}")),
        "{error}"
    );
    std::fs::write(pool, "4").expect("root in the guest");
    let (memory, pieces) = Mapping::split_with(PIECE, 2, &huge).expect("four are reserved");
    assert_eq!(memory.backing(), Backing::Huge(HugePageSize::TwoMebibytes));
    carries_a_message(&device, memory, pieces);

    let on_node = MappingOptions {
        node: Some(0),
        ..MappingOptions::default()
    };
    if let Ok((memory, pieces)) = Mapping::split_with(PIECE, 2, &on_node) {
        carries_a_message(&device, memory, pieces);
    }
    let size = Some(HugePageSize::TwoMebibytes);
    for size in [None, size] {
        let (memory, pieces) = FileMapping::in_memory("guest", PIECE, 2, size).expect("a file");
        carries_a_message(&device, memory, pieces);
    }
    let (memory, pieces) = FileMapping::unlinked_in("/tmp".as_ref(), PIECE, 2).expect("tmpfs");
    carries_a_message(&device, memory, pieces);
    std::fs::write(pool, "0").expect("root in the guest");
}

#[test]
fn peers_read_what_may_be_read_and_count_where_they_may_count() {
    let Some(device) = device() else { return };
    let (mut left, mut a, right, _b) = connected(&device);
    let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
    pieces[0].fill(6);
    let region = MemoryRegion::register_remote_readable(&right.pd, mapping).expect("a region");
    let at = region.remote().expect("for peers").at(0, PIECE as u64);
    let at = at.expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_read(target, at, &whole()).expect("room");
    batch.commit().expect("posted");
    let (outcome, payloads) = sent(a.settle(left.next()));
    assert_eq!(outcome.expect("read").operation, Operation::Read);
    assert_eq!(payloads[0][..], pieces[0][..]);

    let access = RemoteAccess {
        read: true,
        atomic: true,
        write: false,
    };
    let mut window = RemoteWindow::new_with(&right.pd, 64, access).expect("a window");
    assert!(window.set_word(8, 40));
    let counter = window.remote().at(8, 8).expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_fetch_add(target, 0, counter, 2).expect("room");
    batch.commit().expect("posted");
    let (outcome, payloads) = sent(a.settle(left.next()));
    outcome.expect("counted");
    assert_eq!(payloads[0][..8], 40u64.to_ne_bytes());
    assert_eq!(window.word(8), Some(42));

    let payload = left.filled(9);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let refused = sent(a.settle(left.next())).0.expect_err("not writable");
    assert_eq!(refused.status, Status::RemoteAccess);
    assert_eq!(pieces[0][0], 6);
}

/// Takes this thread's leave to pin without limit, which root has.
fn forgo_unlimited_pinning() {
    const CAPABILITY: u32 = 1 << 14; // CAP_IPC_LOCK
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let mut sets = [[0u32; 3]; 2];
    // SAFETY: the header and the two sets are as capget(2) takes them, and ours.
    let code = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    assert_eq!(code, 0);
    for set in &mut sets[0] {
        *set &= !CAPABILITY;
    }
    // SAFETY: as above; it only takes rights from this thread.
    let code = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(code, 0);
}

#[test]
fn exhausted_memlock_names_the_limit_and_the_remedy() {
    let Some(device) = device() else { return };
    let limited = thread::spawn(move || {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let side = Side::new(&device);
        let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).expect("a limit");
        forgo_unlimited_pinning();
        setrlimit(Resource::RLIMIT_MEMLOCK, 1 << 20, hard).expect("a lower limit");
        let (mapping, _pieces) = Mapping::split(1 << 20, 2).expect("memory");
        let refused = MemoryRegion::register(&side.pd, mapping, Access::LocalWrite);
        setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).expect("the limit as it was");
        refused.expect_err("2 MiB can't be pinned with a limit of 1 MiB")
    });
    let error = limited.join().expect("it ended");
    assert!(
        matches!(&error, VerbsError::CannotPin { bytes: 2097152, lock, .. } if lock.limit == Some(1 << 20)),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("RLIMIT_MEMLOCK is 1048576 bytes"),
        "{error}"
    );
}
