//! What goes wrong with posted work, and what is said of it.

use super::*;

#[test]
fn a_completion_that_comes_twice_counts_once() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::complete_twice(a.qp_number());
        post(
            &mut a,
            left.filled(1),
            &[Work::write(at, &whole()).signaled()],
        );
        let done = left.next();
        assert_eq!(sent(a.settle(done)).count(), 1);
        post(
            &mut a,
            left.filled(2),
            &[Work::write(at, &whole()).signaled()],
        );
        let again = left.next();
        assert!(matches!(a.settle(again), Settled::Stale));
        let done = left.next();
        let back: Vec<u8> = sent(a.settle(done)).map(|piece| piece[0]).collect();
        assert_eq!(back, [2]);
    }
}

#[test]
fn a_slot_used_again_is_not_freed_by_its_earlier_request() {
    let (mut left, mut a, right, _b) = pair(&config(2));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = start_of(&window);
    let mut old = Vec::new();
    for byte in 0..100 {
        mock::complete_twice(a.qp_number());
        post(
            &mut a,
            left.filled(byte),
            &[Work::write(at, &whole()).signaled()],
        );
        let done = left.next();
        left.pieces.extend(sent(a.settle(done)));
        old.push(left.next());
    }
    mock::hold(a.qp_number());
    post(
        &mut a,
        left.filled(1),
        &[Work::write(at, &whole()).signaled()],
    );
    for late in old {
        assert!(matches!(a.settle(late), Settled::Stale));
    }
    assert_eq!(a.outstanding().0, 1);
}

#[test]
fn an_overrun_queue_says_what_to_do() {
    let (mut left, mut a, right, _b) = pair(&config(4));
    let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
    let at = start_of(&window);
    post(
        &mut a,
        left.filled(1),
        &[Work::write(at, &whole()).signaled()],
    );
    mock::overrun(a.qp_number());
    let error = left
        .queue
        .poll()
        .expect_err("completions are lost")
        .to_string();
    assert!(error.contains("ibv_poll_cq on mock0"), "{error}");
    assert!(
        error.contains("overran") && error.contains("connect anew"),
        "{error}"
    );
}

#[test]
fn a_failed_request_names_verb_object_status_vendor_code_and_meaning() {
    for (status, expected, means) in [
        (sys::IBV_WC_REM_ACCESS_ERR, Status::RemoteAccess, "rkey"),
        (
            sys::IBV_WC_RNR_RETRY_EXC_ERR,
            Status::ReceiverNotReady,
            "no receive posted",
        ),
        (
            sys::IBV_WC_RETRY_EXC_ERR,
            Status::RetryExceeded,
            "doesn't answer",
        ),
        (
            sys::IBV_WC_LOC_PROT_ERR,
            Status::LocalProtection,
            "registered region",
        ),
        (
            sys::IBV_WC_REM_INV_REQ_ERR,
            Status::RemoteInvalidRequest,
            "refused",
        ),
        (sys::IBV_WC_GENERAL_ERR, Status::General, "driver"),
        (sys::IBV_WC_MW_BIND_ERR, Status::WindowBind, "memory window"),
    ] {
        let (mut left, mut a, right, _b) = pair(&config(4));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::fail_next(a.qp_number(), status);
        post(&mut a, left.filled(1), &[Work::write(at, &whole())]);
        let error = ending(&mut left, &mut a).expect_err("made to fail");
        assert_eq!(error.status, expected);
        let text = error.to_string();
        let object = format!("queue pair {}", a.qp_number());
        for part in [object.as_str(), "ibv_poll_cq", "vendor code 0x", means] {
            assert!(text.contains(part), "{part:?} is missing in: {text}");
        }
    }
}

#[test]
fn what_is_posted_after_a_failure_comes_back_flushed_and_in_order() {
    for interface in BOTH {
        let (mut left, mut a, right, _b) = pair(&through(interface, 8));
        let window = RemoteWindow::new(&right.pd, PIECE).expect("a window");
        let at = start_of(&window);
        mock::fail_next(a.qp_number(), sys::IBV_WC_RETRY_EXC_ERR);
        post(&mut a, left.filled(0), &[Work::write(at, &whole())]);
        for byte in 1..=3 {
            post(&mut a, left.filled(byte), &[Work::write(at, &whole())]);
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            let done = left.next();
            let sent = sent(a.settle(done));
            let status = sent.outcome().expect_err("failed").status;
            order.extend(sent.map(|piece| (piece[0], status)));
        }
        let (first, rest) = (Status::RetryExceeded, Status::Flushed);
        assert_eq!(order, [(0, first), (1, rest), (2, rest), (3, rest)]);
        assert_eq!(window.byte(0), Some(0));
        a.fail().expect("to the error state");
        let mut batch = a.batch();
        let rejected = batch
            .push(left.filled(4), &[Work::write(at, &whole())])
            .expect_err("shut");
        assert_eq!(rejected.reason, Rejection::QueueFull { room: 0, wanted: 1 });
    }
}

#[test]
fn an_address_outside_the_peers_memory_changes_nothing_whatever_the_verb() {
    let all = RemoteAccess {
        write: true,
        read: true,
        atomic: true,
    };
    for interface in BOTH {
        for verb in 0..3 {
            for offset in [PIECE as u64, PIECE as u64 * 1000, 8u64.wrapping_neg()] {
                let (mut left, mut a, right, _b) = pair(&QueuePairConfig {
                    remote_reads: true,
                    remote_atomics: true,
                    ..through(interface, 4)
                });
                let kept = window(&right, all);
                let at = start_of(&kept).offset(offset);
                let payload = left.filled(9);
                let segments = [Segment::new(0, 8)];
                let mut batch = a.batch();
                match verb {
                    0 => batch.push(payload, &[Work::write(at, &segments).signaled()]),
                    1 => batch.push_read(payload, at, &segments),
                    _ => batch.push_fetch_add(payload, 0, at, 1),
                }
                .expect("nobody here knows the peer's bounds");
                batch.commit().expect("posted");
                let done = left.next();
                let mut sent = sent(a.settle(done));
                let (payload, outcome) = sent.next_outcome().expect("the payload");
                let status = outcome.expect_err("refused").status;
                assert_eq!(status, Status::RemoteAccess);
                assert_eq!(payload[..8], [9; 8], "nothing was brought");
                assert_eq!(kept.word(0), Some(0));
            }
        }
    }
}
