use serde_json::json;

use super::world::World;
use crate::api::caffe2job::JobPhase;
use crate::job::*;

fn phase(world: &World) -> JobPhase {
    world.job.status.phase.expect("it has one")
}

#[test]
fn a_job_queues_gets_its_nodes_runs_and_succeeds_with_its_chief() {
    let mut world = World::new(json!({}));
    world.settle();
    assert_eq!(phase(&world), JobPhase::Queued);
    assert_eq!(world.seen.pods.len(), 3);
    assert!(world.seen.pods.iter().all(|pod| pod.gated));
    assert!(wants_nodes(&world.job, &world.seen));
    world.place();
    assert_eq!(phase(&world), JobPhase::Admitted);
    assert!(!wants_nodes(&world.job, &world.seen));
    world.everybody(PodPhase::Running);
    assert_eq!(phase(&world), JobPhase::Running);
    let status = &world.job.status;
    assert_eq!((status.attempt, status.replica_statuses.active), (1, 3));
    assert_eq!(status.run_id.as_deref(), Some("resnet-0f0e0d0c-1"));
    let began = status.start_time.clone();
    world.now += 60;
    world.becomes(0, PodPhase::Succeeded);
    world.settle();
    assert_eq!(phase(&world), JobPhase::Succeeded);
    assert_eq!(world.holds("Succeeded"), Some(true));
    assert_eq!(world.holds("Running"), Some(false));
    assert_eq!(world.holds("Failed"), None);
    let status = &world.job.status;
    assert_eq!(status.start_time, began, "it began when it began");
    assert_eq!(
        status.completion_time.as_ref().map(|it| it.0.as_second()),
        Some(1060)
    );
    world.end_deleted();
    world.settle();
    let left: Vec<_> = world
        .seen
        .pods
        .iter()
        .map(|pod| pod.name.as_str())
        .collect();
    assert_eq!(left, ["resnet-1-worker-0"], "what has ended keeps its log");
    assert!(!world.seen.service);
}

#[test]
fn one_that_fails_has_all_start_anew_with_another_run_id_until_the_limit() {
    let mut world = World::new(json!({ "runPolicy": { "backoffLimit": 1 } }));
    world.run();
    let first = world.job.status.run_id.clone();
    world.becomes(1, PodPhase::Failed);
    world.settle();
    assert_eq!(phase(&world), JobPhase::Restarting);
    assert_eq!(
        world.job.status.attempt, 1,
        "the first one's pods still end"
    );
    world.end_deleted();
    world.settle();
    assert_eq!(world.job.status.attempt, 1, "it waits a little");
    world.now += world.settings.retry_seconds;
    world.run();
    assert_eq!(phase(&world), JobPhase::Running);
    assert_eq!(
        (world.job.status.attempt, world.job.status.restarts),
        (2, 1)
    );
    assert_ne!(world.job.status.run_id, first);
    world.becomes(2, PodPhase::Failed);
    world.settle();
    assert_eq!(phase(&world), JobPhase::Failed);
    let message = world.job.status.message.clone().expect("it says why");
    assert!(
        message.contains("resnet-2-worker-2") && message.contains("backoffLimit"),
        "{message}"
    );
    assert_eq!(world.told("BackoffLimitExceeded"), 1);
}

#[test]
fn a_lost_pod_restarts_all_and_does_not_count() {
    let mut world = World::new(json!({ "runPolicy": { "backoffLimit": 0 } }));
    world.run();
    world.seen.pods.remove(0);
    world.settle();
    world.end_deleted();
    world.now += world.settings.retry_seconds;
    world.run();
    assert_eq!(phase(&world), JobPhase::Running);
    assert_eq!(
        (world.job.status.attempt, world.job.status.restarts),
        (2, 0)
    );
}

#[test]
fn a_node_that_takes_no_pod_is_mistrusted_and_the_job_keeps_its_place() {
    let mut world = World::new(json!({}));
    world.place();
    let queued = world.job.status.queued_at.clone();
    world.bind(0);
    world.bind(1);
    world.now += 29;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Admitted);
    world.now += 1;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Queued);
    let status = &world.job.status;
    let mistrusted: Vec<_> = status
        .mistrusted
        .iter()
        .map(|it| it.node.as_str())
        .collect();
    assert_eq!(mistrusted, ["node-2"]);
    assert_eq!(status.queued_at, queued);
    world.end_deleted();
    world.place();
    assert_eq!(world.job.status.attempt, 2);
    // The next timer is longer.
    world.now += 59;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Admitted);
    world.now += 1;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Queued);
    assert_eq!(world.job.status.restarts, 0);
}

#[test]
fn clocks_that_jump_do_no_harm() {
    let mut world = World::new(json!({ "runPolicy": { "activeDeadlineSeconds": 100 } }));
    world.place();
    world.now -= 100_000;
    world.settle();
    // The timer began anew, and has its length again: no partial gang lives for the jump's.
    world.now += 30;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Queued);
    world.run();
    world.now -= 100_000;
    world.settle();
    world.now += 99;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Running);
    world.now += 1;
    world.settle();
    assert_eq!(phase(&world), JobPhase::Failed);
    assert_eq!(world.told("DeadlineExceeded"), 1);
}

#[test]
fn a_suspended_job_has_no_pods_and_queues_anew_when_it_is_resumed() {
    let mut world = World::new(json!({}));
    world.run();
    world.job.spec.run_policy.suspend = true;
    world.job.generation = 2;
    world.settle();
    world.end_deleted();
    world.settle();
    assert_eq!(phase(&world), JobPhase::Suspended);
    assert!(world.seen.pods.is_empty());
    assert_eq!(world.holds("Suspended"), Some(true));
    assert_eq!(world.job.status.start_time, None);
    world.job.spec.run_policy.suspend = false;
    world.job.generation = 3;
    world.run();
    assert_eq!(phase(&world), JobPhase::Running);
    assert_eq!(world.holds("Suspended"), Some(false));
    assert_eq!(world.job.status.attempt, 2);
}

#[test]
fn a_job_is_deleted_when_its_time_after_the_end_is_over_and_nothing_stays() {
    let mut world = World::new(
        json!({ "runPolicy": { "ttlSecondsAfterFinished": 60, "cleanPodPolicy": "None" } }),
    );
    world.run();
    world.becomes(0, PodPhase::Succeeded);
    world.settle();
    assert_eq!(world.seen.pods.len(), 3, "none is cleaned up");
    world.now += 59;
    world.settle();
    assert!(!world.job.deleting);
    world.now += 1;
    world.settle();
    assert!(world.job.deleting && !world.gone, "pods still end");
    world.end_deleted();
    world.settle();
    assert!(world.gone && world.seen.pods.is_empty() && !world.seen.service);
}

#[test]
fn a_job_waits_for_its_data_which_is_warmed_meanwhile() {
    let dataset = json!({ "name": "cats", "mountPath": "/data", "warmShare": 80 });
    let mut world = World::new(json!({ "dataset": dataset }));
    world.settle();
    let message = |world: &World| world.job.status.message.clone().unwrap_or_default();
    assert!(
        message(&world).contains("a/cats is not there"),
        "{}",
        message(&world)
    );
    world.seen.dataset = Some(DatasetView {
        ready: true,
        cached_percent: 10,
        warms: false,
    });
    world.now += 30;
    world.place();
    assert!(
        message(&world).contains("10% of the 80%"),
        "{}",
        message(&world)
    );
    assert!(!wants_nodes(&world.job, &world.seen));
    assert!(world.seen.dataset.expect("there").warms);
    world.seen.dataset = Some(DatasetView {
        ready: true,
        cached_percent: 80,
        warms: true,
    });
    world.place();
    assert_eq!(phase(&world), JobPhase::Admitted);
}

#[test]
fn pods_are_let_go_when_the_redis_they_meet_by_is_ready() {
    let mut world = World::new(json!({ "rendezvous": { "type": "Redis" } }));
    world.place();
    world.settle();
    let redis = world
        .seen
        .pods
        .iter()
        .position(|pod| pod.rendezvous)
        .expect("a redis");
    assert!(!world.seen.pods[redis].gated, "it holds no hardware");
    assert_eq!(world.seen.pods.iter().filter(|pod| pod.gated).count(), 3);
    world.bind(redis);
    world.becomes(redis, PodPhase::Running);
    world.settle();
    assert_eq!(world.seen.pods.iter().filter(|pod| pod.gated).count(), 0);
    world.everybody(PodPhase::Running);
    assert_eq!(phase(&world), JobPhase::Running);
    // Once they have met, they need it no more.
    world.becomes(redis, PodPhase::Failed);
    world.settle();
    assert_eq!(phase(&world), JobPhase::Running);
}

#[test]
fn names_that_are_taken_and_templates_that_are_none_are_said() {
    let mut world = World::new(json!({}));
    world.seen.taken = vec!["pod resnet-1-worker-0".to_owned()];
    world.settle();
    let message = world.job.status.message.clone().expect("said");
    assert!(message.contains("taken") && message.contains("resnet-1-worker-0"));
    let wrong = json!({ "spec": { "containers": "caffe2" } });
    let mut world = World::new(json!({ "roles": [{ "name": "worker", "template": wrong }] }));
    world.settle();
    let message = world.job.status.message.clone().expect("said");
    assert!(message.contains("role worker"), "{message}");
    assert!(!wants_nodes(&world.job, &world.seen));
}

#[test]
fn a_changed_spec_makes_new_pods_of_a_job_that_queues() {
    let mut world = World::new(json!({}));
    world.settle();
    world.job.spec.roles[0].replicas = 2;
    world.job.generation = 2;
    world.settle();
    let names: Vec<_> = world
        .seen
        .pods
        .iter()
        .map(|pod| pod.name.as_str())
        .collect();
    assert_eq!(names, ["resnet-2-worker-0", "resnet-2-worker-1"]);
}

#[test]
fn a_preempted_job_gives_its_nodes_back_and_queues() {
    let mut world = World::new(json!({}));
    world.run();
    world.step(&Decision::Preempt("team b wants its quota back".to_owned()));
    assert_eq!(phase(&world), JobPhase::Queued);
    world.settle();
    world.end_deleted();
    world.settle();
    assert_eq!(
        (world.job.status.attempt, world.job.status.restarts),
        (2, 0)
    );
    assert!(wants_nodes(&world.job, &world.seen));
}
