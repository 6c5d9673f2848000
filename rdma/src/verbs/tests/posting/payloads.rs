//! A payload comes back exactly once, whatever is posted and whatever fails.

use std::collections::HashMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

#[test]
fn a_region_stays_registered_while_it_is_posted_from() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        mock::hold(a.qp_number());
        let payload = left.filled(5);
        let at = start_of(&window);
        post(&mut a, payload, &[Work::write(at, &whole()).signaled()]);
        let Side {
            region,
            pieces,
            mut queue,
            ..
        } = left;
        let watched = Arc::downgrade(&region);
        drop((region, pieces));
        mock::release(a.qp_number());
        let done = queue.poll().expect("sound").expect("a completion");
        sent(a.settle(done)).outcome().expect("written");
        assert_eq!(window.byte(PIECE - 1), Some(5));
        drop(a);
        assert!(
            watched.upgrade().is_none(),
            "and is let go with the queue pair"
        );
    }
}

/// A payload that tells when it is dropped.
struct Told {
    piece: Piece,
    id: usize,
    dropped: Arc<Mutex<HashMap<usize, u32>>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let mut dropped = self.dropped.lock().expect("one thread");
        *dropped.entry(self.id).or_default() += 1;
    }
}

// SAFETY: the piece's own promises.
unsafe impl Source for Told {
    fn as_ptr(&self) -> *const u8 {
        Source::as_ptr(&self.piece)
    }
    fn len(&self) -> usize {
        Source::len(&self.piece)
    }
}
// SAFETY: as above.
unsafe impl Sink for Told {}

/// What is done with a batch of payloads, each with so many writes, some signalled.
#[derive(Debug, Clone)]
struct Step {
    payloads: Vec<(usize, bool)>,
    ending: Ending,
    settle: usize,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    Commit,
    Drop,
    Forget,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Hold,
    Release,
    RefuseAfter(u32),
    Twice,
    Fail,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        8 => Just(Ending::Commit),
        1 => Just(Ending::Drop),
        1 => Just(Ending::Forget),
    ];
    let fault = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Fault::Hold)),
        2 => Just(Some(Fault::Release)),
        1 => (0u32..6).prop_map(|taken| Some(Fault::RefuseAfter(taken))),
        1 => Just(Some(Fault::Twice)),
        1 => Just(Some(Fault::Fail)),
    ];
    let payloads = proptest::collection::vec((1usize..4, any::<bool>()), 0..4);
    let step =
        (payloads, ending, 0usize..6, fault).prop_map(|(payloads, ending, settle, fault)| Step {
            payloads,
            ending,
            settle,
            fault,
        });
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever is posted, dropped, forgotten, refused, doubled or failed, on either interface.
    #[test]
    fn every_payload_comes_back_exactly_once(steps in steps(), classic in any::<bool>(), depth in 1u32..10) {
        let interface = BOTH[usize::from(classic)];
        let (mut left, right) = (side("mock0", 64), side("mock0", 64));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        let port = left.context.local_port(None, &GidChoice::Automatic).expect("a port");
        let made: UnconnectedQueuePair<Told, Piece> =
            UnconnectedQueuePair::new(&left.pd, &left.queue, port, &through(interface, depth))
                .expect("a queue pair");
        let b = right.unconnected(&config(depth));
        let (at_a, at_b) = (made.endpoint(), b.endpoint());
        let mut a = made.connect(&at_b, &ConnectOptions::default()).expect("connected");
        let _b = b.connect(&at_a, &ConnectOptions::default()).expect("connected");
        a.attach(&left.region).expect("the same domain");
        let dropped = Arc::new(Mutex::new(HashMap::new()));
        let mut free: Vec<Told> = std::mem::take(&mut left.pieces)
            .into_iter()
            .enumerate()
            .map(|(id, piece)| Told { piece, id, dropped: Arc::clone(&dropped) })
            .collect();
        let all = free.len();
        for step in steps {
            match step.fault {
                Some(Fault::Hold) => mock::hold(a.qp_number()),
                Some(Fault::Release) => mock::release(a.qp_number()),
                Some(Fault::RefuseAfter(taken)) => {
                    mock::refuse_sends_after(a.qp_number(), taken, libc::EIO);
                }
                Some(Fault::Twice) => mock::complete_twice(a.qp_number()),
                Some(Fault::Fail) => mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR),
                None => {}
            }
            let mut batch = a.batch();
            for (writes, signaled) in step.payloads {
                let Some(payload) = free.pop() else { break };
                let segments = whole();
                let work = Work::write(at, &segments);
                let work = if signaled { work.signaled() } else { work };
                if let Err(rejected) = batch.push(payload, &vec![work; writes]) {
                    free.push(rejected.payload);
                }
            }
            match step.ending {
                Ending::Commit => {
                    if let Err(error) = batch.commit() {
                        free.extend(error.payloads);
                    }
                }
                Ending::Drop => drop(batch),
                Ending::Forget => std::mem::forget(batch),
            }
            for _ in 0..step.settle {
                let Some(done) = left.queue.poll().expect("sound") else { break };
                if let Settled::Sent(sent) = a.settle(done) {
                    free.extend(sent);
                }
            }
        }
        mock::release(a.qp_number());
        // Nothing refuses the marker.
        mock::refuse_sends_after(a.qp_number(), u32::MAX, 0);
        a.fail().expect("to the error state");
        while let Some(done) = left.queue.poll().expect("sound") {
            if let Settled::Sent(sent) = a.settle(done) {
                free.extend(sent);
            }
        }
        prop_assert!(a.is_drained());
        let before: u32 = dropped.lock().expect("one thread").values().sum();
        prop_assert_eq!(free.len() + before as usize, all);
        drop(free);
        drop(a);
        let dropped = dropped.lock().expect("one thread");
        prop_assert_eq!(dropped.len(), all);
        prop_assert!(dropped.values().all(|times| *times == 1), "{dropped:?}");
    }
}
