//! Regions of every kind of memory and right, and what a device or the kernel refuses.

use super::*;

#[test]
fn pinning_that_the_kernel_refuses_names_the_limit_and_the_remedy() {
    let left = side("mock0", 16);
    let (mapping, _pieces) = Mapping::split(PIECE, 2).expect("memory");
    for errno in [libc::ENOMEM, libc::EPERM] {
        mock::refuse_registration(&left.context, errno);
        let memory: Arc<dyn Pinned> = Arc::clone(&mapping) as Arc<dyn Pinned>;
        let error =
            MemoryRegion::register(&left.pd, memory, Access::LocalWrite).expect_err("refused");
        let text = error.to_string();
        assert!(
            matches!(error, VerbsError::CannotPin { bytes: 8192, .. }),
            "{text}"
        );
        assert!(text.contains("RLIMIT_MEMLOCK is"), "{text}");
        assert!(
            text.contains("LimitMEMLOCK=infinity") || text.contains("unlimited, so"),
            "{text}"
        );
    }
    mock::refuse_registration(&left.context, libc::EINVAL);
    let error = MemoryRegion::register(&left.pd, mapping, Access::LocalWrite).expect_err("refused");
    assert!(
        matches!(
            error,
            VerbsError::Call {
                verb: "ibv_reg_mr",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn quiet_reads_come_back_filled_with_the_next_signalled_one() {
    let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
        remote_reads: true,
        inline_bytes: 64,
        ..config(8)
    });
    let (mapping, mut pieces) = Mapping::split(PIECE, 1).expect("memory");
    pieces[0].fill(6);
    let region = MemoryRegion::register_remote_readable(&right.pd, mapping).expect("a region");
    let at = region
        .remote()
        .expect("for peers")
        .at(0, 8)
        .expect("inside");
    let segments = [Segment::new(0, 8)];
    let quiet = Fetch::read(at, &segments);
    for read in [quiet, quiet, quiet.signaled()] {
        let target = left.filled(0);
        let mut batch = a.batch();
        batch.push_fetch(target, &[read]).expect("room");
        batch.commit().expect("posted");
    }
    let done = left.next();
    assert!(left.queue.poll().expect("sound").is_none());
    let read: Vec<[u8; 2]> = sent(a.settle(done))
        .map(|piece| [piece[7], piece[8]])
        .collect();
    assert_eq!(read, [[6, 0]; 3], "eight bytes each, however short");
}

#[test]
fn a_remotely_readable_region_takes_no_receives_and_serves_no_writes() {
    let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
        remote_reads: true,
        ..config(4)
    });
    let (mapping, mut pieces) = Mapping::split(PIECE, 2).expect("memory");
    pieces[1].fill(6);
    let region = MemoryRegion::register_remote_readable(&right.pd, mapping).expect("a region");
    assert_eq!(
        region.remote_access(),
        RemoteAccess {
            read: true,
            ..RemoteAccess::default()
        }
    );
    let mut other = right.unconnected(&config(2));
    other.attach(&region).expect("the same domain");
    let rejected = other
        .post_receive(pieces.pop().expect("a piece"), &whole())
        .expect_err("read only");
    assert_eq!(rejected.reason, Rejection::ReadOnly);
    let shared = Arc::new(rejected.payload);

    let at = region
        .remote()
        .expect("for peers")
        .at(PIECE as u64, PIECE as u64);
    let at = at.expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_read(target, at, &whole()).expect("room");
    batch.commit().expect("posted");
    let mut read = sent(a.settle(left.next()));
    assert_eq!(
        read.outcome().map(|done| done.operation),
        Ok(Operation::Read)
    );
    assert_eq!(read.next().expect("the payload")[..], shared[..]);
    drop(read);

    let payload = left.filled(9);
    let mut batch = a.batch();
    batch
        .push(payload, &[Work::write(at, &whole()).signaled()])
        .expect("room");
    batch.commit().expect("posted");
    let refused = (*sent(a.settle(left.next())).outcome()).expect_err("not writable");
    assert_eq!(refused.status, Status::RemoteAccess);
    assert_eq!(shared[0], 6);
}

#[test]
fn a_window_serves_what_its_rights_say() {
    let (mut left, mut a, right, _b) = connected(&QueuePairConfig {
        remote_reads: true,
        remote_atomics: true,
        ..config(4)
    });
    let access = RemoteAccess {
        read: true,
        atomic: true,
        write: false,
    };
    let mut window = RemoteWindow::new_with(&right.pd, 100, access).expect("a window");
    assert_eq!(
        (window.len(), window.remote().len),
        (100, 100),
        "not rounded to pages"
    );
    assert!(window.set_word(8, 40) && !window.set_word(9, 0) && !window.set_word(96, 0));
    assert!(window.copy_in(16, b"told") && !window.copy_in(97, b"told"));
    assert_eq!(
        (window.word(8), window.word(4), window.word(96)),
        (Some(40), None, None)
    );

    let counter = window.remote().at(8, 8).expect("inside");
    let target = left.filled(0);
    let mut batch = a.batch();
    batch.push_fetch_add(target, 0, counter, 2).expect("room");
    batch.commit().expect("posted");
    let before = sent(a.settle(left.next())).next().expect("the payload");
    assert_eq!(before[..8], 40u64.to_ne_bytes());
    assert_eq!(window.word(8), Some(42));

    let text = window.remote().at(16, 4).expect("inside");
    let mut batch = a.batch();
    batch
        .push_read(before, text, &[Segment::new(0, 4)])
        .expect("room");
    batch.commit().expect("posted");
    assert_eq!(
        sent(a.settle(left.next())).next().expect("the payload")[..4],
        *b"told"
    );

    let payload = left.filled(9);
    let mut batch = a.batch();
    batch
        .push(
            payload,
            &[Work::write(text, &[Segment::new(0, 4)]).signaled()],
        )
        .expect("room");
    batch.commit().expect("posted");
    let refused = (*sent(a.settle(left.next())).outcome()).expect_err("not writable");
    assert_eq!(refused.status, Status::RemoteAccess);
}

#[test]
fn memory_of_every_kind_carries_messages() {
    let (mut left, mut a, mut right, mut b) = connected(&config(4));
    let (in_memory, files) = FileMapping::in_memory("test", PIECE, 2, None).expect("a file");
    let transparent = MappingOptions {
        pages: Pages::Transparent,
        node: None,
    };
    let (large, larges) = Mapping::split_with(PIECE, 2, &transparent).expect("memory");
    let kinds: [(Arc<dyn Pinned>, Vec<Piece>); 2] = [(in_memory, files), (large, larges)];
    for (memory, mut pieces) in kinds {
        for (pd, queue_pair) in [(&left.pd, &mut a), (&right.pd, &mut b)] {
            let shared = Arc::clone(&memory);
            let region =
                MemoryRegion::register(pd, shared, Access::LocalWrite).expect("registered");
            queue_pair.attach(&region).expect("the same domain");
        }
        b.post_receive(pieces.pop().expect("two"), &whole())
            .expect("posted");
        let mut payload = pieces.pop().expect("two");
        payload.fill(5);
        let mut batch = a.batch();
        batch
            .push(payload, &[Work::send(&whole()).signaled()])
            .expect("room");
        batch.commit().expect("posted");
        assert!(sent(a.settle(left.next())).outcome().is_ok());
        let got = received(b.settle(right.next()));
        assert!(got.outcome.is_ok() && got.payload.iter().all(|byte| *byte == 5));
    }
}

#[test]
fn limits_come_from_the_extended_query_where_there_is_one() {
    let extended = mock::open("mock0").expect("the mock device");
    let limits = extended.limits();
    assert_eq!(limits.atomics, Atomics::WithinDevice);
    assert_eq!(limits.completion_timestamp_mask, (1 << 48) - 1);
    assert_eq!(
        (limits.device_memory_bytes, limits.clock_kilohertz),
        (128 << 10, 156_250)
    );
    let paging = limits.on_demand_paging;
    assert!(paging.supported && !paging.implicit);
    assert!(paging.reliable.send && paging.reliable.write && !paging.reliable.read);
    assert_eq!(paging.datagram, PagedOperations::default());
    let classic = mock::open("mock1").expect("the mock device");
    assert_eq!(classic.limits().queue_depth, limits.queue_depth);
    assert_eq!(classic.limits().device_memory_bytes, 0);
}

#[test]
fn queue_pairs_beyond_the_limits_are_refused_with_the_limit() {
    let left = side("mock0", 64);
    let port = left
        .context
        .local_port(None, &GidChoice::Automatic)
        .expect("a port");
    let make = |config: QueuePairConfig| {
        UnconnectedQueuePair::<Piece, Piece>::new(&left.pd, &left.queue, port, &config)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let deep = make(config(16385));
    assert!(
        deep.contains("16384 sends at a time on a queue pair, not 16386"),
        "{deep}"
    );
    let wide = make(QueuePairConfig {
        segments: 17,
        ..config(4)
    });
    assert!(wide.contains("16 segments"), "{wide}");
}
