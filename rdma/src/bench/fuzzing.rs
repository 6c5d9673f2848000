//! What the two ends of a measurement tell each other. See [`crate::fuzzing`].

use super::message::{Address, Message, Name, Until};
use super::{Length, Measure, Plan, Verb};
use crate::fuzzing::{Target, endpoints, window};
use crate::verbs::GidKind;

/// A message, without the length before it.
pub(crate) const MESSAGE: Target = Target {
    name: "bench-message",
    seeds: message_seeds,
    check: message,
};

fn message(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else {
        return;
    };
    let again = Message::decode(&message.encode());
    assert_eq!(again.as_ref(), Ok(&message));
    match &message {
        Message::Hello {
            plan, end, address, ..
        } => {
            meet(end, address);
            if plan.check().is_ok() {
                assert!(!plan.sizes.is_empty() && plan.queue_pairs > 0 && plan.depth > 0);
                plan.options();
            }
        }
        Message::Welcome { end, address } => meet(end, address),
        _ => {}
    }
}

fn meet(end: &Name, address: &Address) {
    let bounded = end.bounded();
    assert!(bounded.host.chars().count() <= 64 && bounded.device.chars().count() <= 64);
    if let Ok((endpoints, window)) = address.decode() {
        let again = Address::new(&endpoints, window.as_ref()).decode();
        assert_eq!(again, Ok((endpoints, window)));
    }
}

fn message_seeds() -> Vec<Vec<u8>> {
    let address = || Address::new(&endpoints(), Some(&window()));
    let end = || Name {
        host: "node-1".to_owned(),
        device: "mlx5_0".to_owned(),
    };
    let hello = |verb, measure| {
        let plan = Plan::new(verb, measure);
        Message::hello(&plan, GidKind::RoceV2Ipv4, end(), address())
    };
    let messages = [
        hello(Verb::Write, Measure::Bandwidth),
        hello(Verb::Atomic, Measure::Latency),
        Message::Welcome {
            end: end(),
            address: address(),
        },
        Message::Refuse {
            reason: "no device".to_owned(),
        },
        Message::Ready,
        Message::Begin {
            bytes: 65_536,
            seed: 7,
        },
        Message::Transfer {
            until: Until::Length(Length::Iterations(1000)),
        },
        Message::Transfer {
            until: Until::Settled {
                messages: 256,
                milliseconds: 1000,
            },
        },
        Message::Check {
            messages: vec![1, u64::MAX],
        },
        Message::Checked {
            intact: true,
            messages: vec![0],
        },
        Message::Finished { rows: Vec::new() },
    ];
    messages.iter().map(Message::encode).collect()
}
