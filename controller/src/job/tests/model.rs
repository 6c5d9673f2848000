//! Whatever happens in whichever order, some things hold.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::world::World;
use crate::api::caffe2job::JobPhase;
use crate::job::*;

#[derive(Clone, Debug)]
enum Happening {
    /// The controller looks, and dies after so many actions.
    Look(usize),
    /// It looks with a planner that has nodes.
    Place(usize),
    Preempt,
    Bind(usize),
    Becomes(usize, PodPhase),
    Disrupted(usize),
    /// Somebody deletes a pod.
    Delete(usize),
    /// Kubelets end what is deleted.
    End,
    Pass(i64),
    Jump(i64),
    Suspend(bool),
    Change,
    DeleteJob,
}

fn happening() -> impl Strategy<Value = Happening> {
    let phase = prop_oneof![
        4 => Just(PodPhase::Running),
        1 => Just(PodPhase::Failed),
        1 => Just(PodPhase::Succeeded),
    ];
    prop_oneof![
        8 => (0..8usize).prop_map(Happening::Look),
        8 => (0..12usize).prop_map(Happening::Place),
        1 => Just(Happening::Preempt),
        8 => (0..6usize).prop_map(Happening::Bind),
        6 => (0..6usize, phase).prop_map(|(at, phase)| Happening::Becomes(at, phase)),
        1 => (0..6usize).prop_map(Happening::Disrupted),
        1 => (0..6usize).prop_map(Happening::Delete),
        4 => Just(Happening::End),
        4 => (1..40i64).prop_map(Happening::Pass),
        1 => (-100_000..100_000i64).prop_map(Happening::Jump),
        1 => any::<bool>().prop_map(Happening::Suspend),
        1 => Just(Happening::Change),
        1 => Just(Happening::DeleteJob),
    ]
}

fn happens(world: &mut World, happening: &Happening) {
    match *happening {
        Happening::Look(actions) => world.step_until(&Decision::Wait(Vec::new()), actions),
        Happening::Place(actions) => world.step_until(&Decision::Place(world.nodes()), actions),
        Happening::Preempt => world.step(&Decision::Preempt("others".to_owned())),
        Happening::Bind(at) => world.bind(at),
        Happening::Becomes(at, phase) => world.becomes(at, phase),
        Happening::Disrupted(at) => {
            world.becomes(at, PodPhase::Failed);
            let count = world.seen.pods.len().max(1);
            let failure = world.seen.pods.get_mut(at % count);
            if let Some(failure) = failure.and_then(|pod| pod.failure.as_mut()) {
                failure.disrupted = true;
            }
        }
        Happening::Delete(at) => {
            let count = world.seen.pods.len().max(1);
            if let Some(uid) = world.seen.pods.get(at % count).map(|pod| pod.uid.clone()) {
                world.delete(&uid);
            }
        }
        Happening::End => world.end_deleted(),
        Happening::Pass(seconds) => world.now += seconds,
        Happening::Jump(seconds) => world.now = (world.now + seconds).max(0),
        Happening::Suspend(suspend) => {
            world.job.spec.run_policy.suspend = suspend;
            world.job.generation += 1;
        }
        // The API server refuses it where the job has nodes.
        Happening::Change if world.job.status.placement.is_empty() => {
            world.job.spec.roles[0].replicas = 1 + world.job.spec.roles[0].replicas % 3;
            world.job.generation += 1;
        }
        Happening::Change => {}
        Happening::DeleteJob => world.job.deleting = true,
    }
}

/// What holds at any time. That no pod is made beside an earlier attempt's, and that pods are let go only
/// to where the status says, is looked at by the world itself.
fn check(world: &World) {
    let active = world.seen.pods.iter().filter(|pod| pod.is_active());
    let attempts: BTreeSet<_> = active.map(|pod| pod.attempt).collect();
    assert!(
        attempts.len() <= 1,
        "attempts {attempts:?} are active at a time"
    );
    let limit = world.job.spec.run_policy.backoff_limit;
    assert!(world.job.status.restarts <= limit);
    // A status comes to rest: nothing but what happens or time changes it.
    let mut rested = world.clone();
    for _ in 0..4 {
        rested.job.status = rested.look(&Decision::Wait(Vec::new())).status;
    }
    let again = rested.look(&Decision::Wait(Vec::new()));
    assert_eq!(again.status, rested.job.status);
}

/// After a look that was carried out, at this time: a gang of which some pods are on their nodes and some
/// are not is within its timer, or is being taken down.
fn no_partial_gang_is_past_its_timer(world: &World) {
    let status = &world.job.status;
    let held: Vec<_> = world
        .seen
        .pods
        .iter()
        .filter(|pod| pod.node.is_some() && !pod.is_over() && !pod.deleting && !pod.rendezvous)
        .collect();
    let whole = held.len() >= members(&world.job).count();
    if held.is_empty() || whole || status.bound || status.phase.is_some_and(JobPhase::is_final) {
        return;
    }
    let placed = status
        .placed_at
        .clone()
        .expect("pods on nodes have a placement");
    let spent = world.now - placed.0.as_second();
    let limit = world.settings.bind_most_seconds;
    assert!(
        (0..limit).contains(&spent),
        "a partial gang is {spent} s old: {held:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_gang_is_whole_or_nothing_whatever_happens(
        redis in any::<bool>(),
        clean in prop_oneof![Just("Running"), Just("All"), Just("None")],
        happenings in prop::collection::vec(happening(), 1..120),
    ) {
        let mut spec = json!({ "runPolicy": { "backoffLimit": 2, "cleanPodPolicy": clean } });
        if redis {
            spec["rendezvous"] = json!({ "type": "Redis" });
        }
        let mut world = World::new(spec);
        let mut run_ids = BTreeSet::new();
        let mut attempt = 0;
        for happening in &happenings {
            happens(&mut world, happening);
            check(&world);
            let status = &world.job.status;
            assert!(status.attempt >= attempt, "attempts only rise");
            if status.attempt > attempt {
                attempt = status.attempt;
                assert!(run_ids.insert(status.run_id.clone()), "a RUN_ID is used twice");
            }
            let mut looked = world.clone();
            looked.step(&Decision::Wait(Vec::new()));
            no_partial_gang_is_past_its_timer(&looked);
        }
        // However it was left, it can be deleted, and leaves nothing.
        world.job.deleting = true;
        for _ in 0..5 {
            world.step(&Decision::Wait(Vec::new()));
            world.end_deleted();
        }
        let held = world.job.has_finalizer;
        assert!(world.gone || !held, "the finalizer stays");
        assert!(world.seen.pods.is_empty(), "{:?} stay", world.seen.pods);
        assert!(!world.seen.service, "the Service stays");
    }

    #[test]
    fn a_job_comes_to_its_end_where_the_cluster_does_its_part(
        happenings in prop::collection::vec(happening(), 0..60),
    ) {
        let mut world = World::new(json!({ "rendezvous": { "type": "Redis" } }));
        for happening in &happenings {
            if !matches!(happening, Happening::DeleteJob) {
                happens(&mut world, happening);
            }
        }
        world.job.spec.run_policy.suspend = false;
        world.job.generation += 1;
        for _ in 0..20 {
            world.now += 400;
            world.end_deleted();
            world.step(&Decision::Place(world.nodes()));
            world.now += 1;
            for _ in 0..4 {
                for at in 0..world.seen.pods.len() {
                    world.bind(at);
                    world.becomes(at, PodPhase::Running);
                }
                world.step(&Decision::Place(world.nodes()));
            }
            if world.job.status.phase == Some(JobPhase::Running) {
                break;
            }
        }
        let over = world.job.status.phase.is_some_and(JobPhase::is_final);
        assert!(over || world.job.status.phase == Some(JobPhase::Running), "{:#?}", world.job.status);
    }
}
