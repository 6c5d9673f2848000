//! What the simulated meshes of [`crate::mesh::session`] can't show.

use std::collections::HashSet;
use std::time::Duration;

use super::*;

#[test]
fn reports_about_tests_of_others_or_of_the_past_change_nothing() {
    let mut coordinator = Coordinator::new(MeshPlan::default(), vec![1; 4], HashSet::new());
    coordinator.start(Duration::ZERO);
    let before = coordinator.tests.iter().count();
    let nonsense = [
        Event::Measured {
            node: 3,
            test: 999,
            figure: 1.0,
        },
        Event::Served { node: 77, test: 0 },
        Event::Listening {
            node: 77,
            test: 0,
            port: 1,
        },
        Event::Gone {
            node: 77,
            reason: String::new(),
        },
    ];
    for event in nonsense {
        assert_eq!(coordinator.handle(event, Duration::from_secs(1)), []);
    }
    assert_eq!(coordinator.tests.iter().count(), before);
}
