//! Posting, polling and settling allocate nothing, counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use trackbed_rdma::mock::null;
use trackbed_rdma::verbs::{
    Access, CompletionQueue, ConnectOptions, GidChoice, Mapping, MemoryRegion, Piece,
    ProtectionDomain, QueuePair, QueuePairConfig, RemoteAddress, Segment, Settled,
    UnconnectedQueuePair, Work,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

/// Posts all pieces in batches of eight, one request each, then takes them all back.
fn round(
    queue_pair: &mut QueuePair<Piece, ()>,
    queue: &mut CompletionQueue,
    free: &mut Vec<Piece>,
    segments: &[Segment],
) {
    let remote = RemoteAddress {
        address: 0,
        rkey: 1,
    };
    while free.len() >= 8 {
        let mut batch = queue_pair.batch();
        for _ in 0..8 {
            let piece = free.pop().expect("eight are left");
            let work = Work::write(remote, segments).signaled();
            batch.push(piece, &[work]).expect("room");
        }
        assert_eq!(batch.commit().expect("posted"), 8);
    }
    while let Some(done) = queue.poll().expect("a sound queue") {
        match queue_pair.settle(done) {
            Settled::Sent(sent) => free.extend(sent),
            Settled::Received(_) | Settled::Stale => panic!("only sends were posted"),
        }
    }
}

#[test]
fn a_request_costs_no_allocation_from_its_posting_to_its_settling() {
    let context = null::open().expect("the null device");
    let pd = ProtectionDomain::new(&context).expect("a protection domain");
    let mut queue = CompletionQueue::new(&context, 512).expect("a queue");
    let (mapping, mut free) = Mapping::split(4096, 64).expect("memory");
    let region = MemoryRegion::register(&pd, mapping, Access::LocalRead).expect("a region");
    let port = context.local_port(None, &GidChoice::Automatic);
    let config = QueuePairConfig {
        inline_bytes: 64,
        ..QueuePairConfig::default()
    };
    let mut made: UnconnectedQueuePair<Piece, ()> =
        UnconnectedQueuePair::new(&pd, &queue, port.expect("a port"), &config)
            .expect("a queue pair");
    made.attach(&region).expect("the same domain");
    let to_itself = made.endpoint();
    let mut queue_pair = made
        .connect(&to_itself, &ConnectOptions::default())
        .expect("connected");
    let one = [Segment::new(0, 4096)];
    let two = [Segment::new(0, 100), Segment::new(2000, 100)];
    let short = [Segment::new(0, 16)];
    for segments in [&one[..], &two[..], &short[..]] {
        let counted = allocations_of(|| {
            for _ in 0..10 {
                round(&mut queue_pair, &mut queue, &mut free, segments);
            }
        });
        assert_eq!(counted, 0, "{segments:?}");
        assert_eq!(free.len(), 64, "all of them came back");
    }
    let control = allocations_of(|| drop(std::hint::black_box(Box::new(1u8))));
    assert_eq!(control, 1, "the count does count");
}
