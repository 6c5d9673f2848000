//! Whole meshes of simulated nodes, by what their nodes do.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use proptest::prelude::*;

use super::simulation::{Mood, SECOND, World};
use super::*;
use crate::bench::Measure;
use crate::mesh::noise::Noise;
use crate::mesh::schedule::rounds;
use crate::mesh::{MeshPlan, Pair, Tolerance, outliers};

/// More pairs than there are.
const NEVER: usize = usize::MAX;

/// A mesh of healthy nodes: 100 Gb/s and 2 us, with 2% of noise.
fn healthy(from: usize, to: usize, rail: usize, measure: Measure) -> f64 {
    let seed = (from as u64) << 40 | (to as u64) << 20 | (rail as u64) << 4 | measure as u64;
    let usual = match measure {
        Measure::Bandwidth => 100.0,
        Measure::Latency => 2.0,
    };
    usual * (0.02 * Noise(seed.wrapping_mul(0x2545_f491_4f6c_dd1d)).normal()).exp()
}

fn all(nodes: usize, rails: usize) -> usize {
    nodes * (nodes - 1) / 2 * rails
}

/// All of them measured by a coordinator without a file.
fn whole(world: &mut World) -> Mesh {
    let journal = Journal::in_memory(MeshPlan::default());
    let mesh = world.run(journal, NEVER).expect("no error");
    mesh.expect("to the end")
}

fn well(nodes: usize, rails: usize) -> World {
    World::new(vec![rails; nodes], vec![Mood::Well; nodes], healthy)
}

/// Which pairs have an outcome: each exactly once, or this fails.
fn once<'a>(pairs: impl Iterator<Item = &'a Pair>) -> HashSet<(usize, usize, usize)> {
    let mut seen = HashSet::new();
    for pair in pairs {
        assert!(
            seen.insert((pair.a, pair.b, pair.rail)),
            "{pair:?} is done twice"
        );
    }
    seen
}

/// What is named, as `kind subject`.
fn named(mesh: &Mesh) -> Vec<String> {
    assert_eq!(mesh.check(), Ok(()));
    let judgement = outliers(mesh, &Tolerance::default());
    let outliers = judgement.outliers.iter();
    outliers
        .map(|outlier| format!("{} {}", outlier.kind, outlier.subject))
        .collect()
}

#[test]
fn every_pair_of_a_healthy_mesh_is_measured_once_in_all_three_ways() {
    for (nodes, rails) in [(2, 1), (3, 2), (8, 8), (17, 3), (60, 1)] {
        let mut world = well(nodes, rails);
        let mesh = whole(&mut world);
        assert_eq!(once(world.done.iter()).len(), all(nodes, rails));
        assert_eq!(world.rounds, rounds(nodes));
        assert_eq!(mesh.pairs.len(), mesh.expected_pairs());
        for pair in &mesh.pairs {
            let figure = |from, to, measure| Some(healthy(from, to, pair.rail, measure));
            assert_eq!(pair.there_gbps, figure(pair.a, pair.b, Measure::Bandwidth));
            assert_eq!(pair.back_gbps, figure(pair.b, pair.a, Measure::Bandwidth));
            assert_eq!(pair.latency_us, figure(pair.a, pair.b, Measure::Latency));
            assert_eq!(pair.failure, None);
        }
    }
}

/// One port at half speed, and one that sends slowly.
fn two_slow_ports(from: usize, to: usize, rail: usize, measure: Measure) -> f64 {
    let share = match measure {
        Measure::Bandwidth if from == 123 || to == 123 => 0.5,
        Measure::Bandwidth if from == 777 => 0.6,
        _ => 1.0,
    };
    share * healthy(from, to, rail, measure)
}

#[test]
fn a_thousand_nodes_are_measured_pair_by_pair_and_the_bad_ones_are_named() {
    let nodes = 1000;
    let mut moods = vec![Mood::Well; nodes];
    moods[500] = Mood::Fails(0);
    let mut world = World::new(vec![1; nodes], moods, two_slow_ports);
    let mesh = whole(&mut world);
    assert_eq!(once(world.done.iter()).len(), all(nodes, 1));
    assert_eq!(world.rounds, 999);
    assert_eq!(
        named(&mesh),
        [
            "failed node-0500 mlx5_0/1",
            "NIC node-0123 mlx5_0/1",
            "sender node-0777 mlx5_0/1",
        ]
    );
}

#[test]
fn rails_that_take_turns_are_never_measured_together() {
    let plan = MeshPlan {
        rails_apart: true,
        ..MeshPlan::default()
    };
    let mut world = well(6, 4);
    world
        .run(Journal::in_memory(plan), NEVER)
        .expect("no error");
    assert_eq!(once(world.done.iter()).len(), all(6, 4));
    assert_eq!(world.rounds, 5 * 4);
}

#[test]
fn nodes_with_fewer_ports_take_part_on_the_rails_they_have() {
    let mut world = World::new(vec![2, 1, 2, 1], vec![Mood::Well; 4], healthy);
    whole(&mut world);
    assert_eq!(once(world.done.iter()).len(), 6 + 1);
}

#[test]
fn nodes_that_leave_rave_or_fall_silent_are_named_and_the_rest_is_measured() {
    let nodes = 40;
    let mut moods = vec![Mood::Well; nodes];
    moods[7] = Mood::Leaves(SECOND * 25);
    moods[20] = Mood::Silent(SECOND * 40);
    moods[33] = Mood::Raves(SECOND * 31);
    moods[39] = Mood::Raves(Duration::ZERO);
    let mut world = World::new(vec![2; nodes], moods, healthy);
    let mesh = whole(&mut world);
    assert_eq!(once(world.done.iter()).len(), all(nodes, 2));
    let mut left = world.left.clone();
    left.sort();
    assert_eq!(left, ["node-0007", "node-0020", "node-0033", "node-0039"]);
    assert!(
        world.refused.iter().any(|why| why.contains("next run")),
        "{:?}",
        world.refused
    );
    let gone = |node: usize| [7, 20, 33, 39].contains(&node);
    for pair in &mesh.pairs {
        let may_fail = gone(pair.a) || gone(pair.b);
        assert!(pair.failure.is_none() || may_fail, "{pair:?}");
    }
    let left: Vec<String> = left.iter().map(|name| format!("failed {name}")).collect();
    let mut named = named(&mesh);
    named.sort();
    assert_eq!(named, left, "those, and nothing else");
}

#[test]
fn late_nodes_and_gossips_cost_nothing_but_time() {
    let mut moods = vec![Mood::Well; 12];
    moods[3] = Mood::Late(SECOND * 15);
    moods[5] = Mood::Gossips;
    moods[6] = Mood::Gossips;
    // Leaves while others are waited for, and comes back.
    moods[9] = Mood::Leaves(SECOND * 2);
    let mut world = World::new(vec![2; 12], moods, healthy);
    let mesh = whole(&mut world);
    assert_eq!(once(world.done.iter()).len(), all(12, 2));
    assert!(mesh.pairs.iter().all(|pair| pair.failure.is_none()));
    assert!(
        mesh.pairs
            .iter()
            .all(|pair| pair.there_gbps < Some(1000.0) && pair.back_gbps < Some(1000.0)),
        "nobody's gossip was believed"
    );
    assert_eq!(named(&mesh), Vec::<String>::new());
    assert_eq!(world.left, ["node-0009"]);
}

#[test]
fn a_broken_rail_of_one_node_costs_only_its_own_pairs() {
    let mut moods = vec![Mood::Well; 9];
    moods[4] = Mood::Fails(1);
    let mut world = World::new(vec![2; 9], moods, healthy);
    let mesh = whole(&mut world);
    assert_eq!(world.left, Vec::<String>::new());
    let failed = mesh.pairs.iter().filter(|pair| pair.failure.is_some());
    assert_eq!(failed.count(), 8);
    assert_eq!(named(&mesh), ["failed node-0004 mlx5_1/1"]);
}

#[test]
fn a_mesh_all_of_whose_nodes_leave_still_ends() {
    let mut world = World::new(vec![1; 5], vec![Mood::Leaves(SECOND / 2); 5], healthy);
    let mesh = whole(&mut world);
    // With all but one gone, nothing is left to wait for.
    assert!(mesh.left.len() >= 4, "{:?}", mesh.left);
    assert!(mesh.pairs.iter().all(|pair| pair.failure.is_some()));
}

#[test]
fn who_comes_too_late_is_missed_by_name() {
    let mut moods = vec![Mood::Well; 3];
    moods[1] = Mood::Late(SECOND * 1000);
    let mut world = World::new(vec![1; 3], moods, healthy);
    let outcome = world.run(Journal::in_memory(MeshPlan::default()), NEVER);
    let error = outcome.expect_err("one is missing").to_string();
    assert!(error.contains("2 of 3 nodes came"), "{error}");
    assert!(error.contains("node-0000, node-0002"), "{error}");
}

/// A slow rail, a slow node and a slow adapter.
fn three_faults(from: usize, to: usize, rail: usize, measure: Measure) -> f64 {
    let is = |node: usize| from == node || to == node;
    let share = match measure {
        Measure::Latency => 1.0,
        Measure::Bandwidth if rail == 2 => 0.7,
        Measure::Bandwidth if is(11) => 0.6,
        Measure::Bandwidth if is(30) && rail == 1 => 0.5,
        Measure::Bandwidth => 1.0,
    };
    share * healthy(from, to, rail, measure)
}

/// Runs to the end, or until so many pairs have an outcome, with what an earlier run left in the file.
fn go_on(world: &mut World, path: &Path, stop_after: usize) -> Option<Mesh> {
    let journal = Journal::open(path, MeshPlan::default()).expect("a journal");
    world.run(journal, stop_after).expect("no error")
}

#[test]
fn a_mesh_with_every_trouble_that_is_stopped_and_resumed_is_measured_once_and_judged_rightly() {
    let (nodes, rails) = (40, 4);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mesh.jsonl");
    let mut moods = vec![Mood::Well; nodes];
    moods[1] = Mood::Late(SECOND * 3);
    moods[2] = Mood::Gossips;
    moods[8] = Mood::Leaves(SECOND * 30);
    moods[17] = Mood::Silent(SECOND * 20);
    moods[25] = Mood::Raves(SECOND * 12);
    moods[36] = Mood::Fails(3);
    let mut first = World::new(vec![rails; nodes], moods, three_faults);
    let half = all(nodes, rails) / 2;
    assert!(go_on(&mut first, &path, half).is_none(), "stopped");
    // The crash cut the last line.
    let text = std::fs::read_to_string(&path).expect("the journal");
    std::fs::write(&path, &text[..text.len() - 9]).expect("cut");
    let kept = Journal::load(&path).expect("readable");
    let complete = |pairs: &[Pair]| {
        let complete = pairs.iter().filter(|pair| pair.failure.is_none());
        once(complete)
    };
    let known = complete(&kept.pairs);
    assert!(known.len() > all(nodes, rails) / 4, "{}", known.len());
    assert!(known.len() < first.done.len());
    // All are well again, and nobody comes in the order of before.
    let mut second = World::new(vec![rails; nodes], vec![Mood::Well; nodes], three_faults);
    let mesh = go_on(&mut second, &path, NEVER).expect("to the end");
    let again = once(second.done.iter());
    assert!(again.is_disjoint(&known), "nothing is measured twice");
    assert_eq!(again.len() + known.len(), all(nodes, rails));
    assert_eq!(complete(&mesh.pairs).len(), all(nodes, rails));
    assert_eq!(
        named(&mesh),
        ["rail rail 2", "node node-0011", "NIC node-0030 mlx5_1/1",],
        "what was planted, and nothing else"
    );
    assert_eq!(Journal::load(&path).expect("readable"), mesh);
}

#[test]
fn a_thousand_nodes_go_on_where_an_interrupted_run_stopped() {
    let nodes = 1000;
    let mut journal = Journal::in_memory(MeshPlan::default());
    for node in simulation::descriptions(nodes, 1) {
        journal.node(&node).expect("a place");
    }
    let last = rounds(nodes) - 20;
    for number in 0..last {
        for (a, b) in crate::mesh::round(nodes, number) {
            let figure = |from, to, measure| Some(healthy(from, to, 0, measure));
            let pair = Pair {
                a,
                b,
                rail: 0,
                there_gbps: figure(a, b, Measure::Bandwidth),
                back_gbps: figure(b, a, Measure::Bandwidth),
                latency_us: figure(a, b, Measure::Latency),
                failure: None,
            };
            journal.pair(pair).expect("taken down");
        }
    }
    let known = journal.complete();
    let mut world = well(nodes, 1);
    let mesh = world.run(journal, NEVER).expect("no error");
    let done = once(world.done.iter());
    assert_eq!(world.rounds, 20);
    assert!(done.is_disjoint(&known));
    assert_eq!(done.len() + known.len(), all(nodes, 1));
    assert_eq!(mesh.expect("to the end").pairs.len(), all(nodes, 1));
}

fn moods() -> impl Strategy<Value = Mood> {
    let time = (0u64..60_000).prop_map(Duration::from_millis);
    prop_oneof![
        6 => Just(Mood::Well),
        1 => Just(Mood::Gossips),
        1 => (0usize..3).prop_map(Mood::Fails),
        1 => (0u64..30).prop_map(|late| Mood::Late(SECOND * late as u32)),
        1 => time.clone().prop_map(Mood::Silent),
        1 => time.clone().prop_map(Mood::Leaves),
        1 => time.prop_map(Mood::Raves),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_nodes_do_and_whenever_it_stops_the_next_run_completes_the_mesh(
        nodes in proptest::collection::vec((1usize..4, moods()), 2..12),
        stop in 0.0f64..1.2,
    ) {
        let (ports, moods): (Vec<usize>, Vec<Mood>) = nodes.into_iter().unzip();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mesh.jsonl");
        let mut first = World::new(ports.clone(), moods.clone(), healthy);
        let stop = (stop * all(ports.len(), 3) as f64) as usize;
        let ended = go_on(&mut first, &path, stop);
        once(first.done.iter());
        if let Some(mesh) = ended {
            prop_assert_eq!(first.done.len(), mesh.expected_pairs());
            let troubled = |node: usize| {
                !matches!(moods[node], Mood::Well | Mood::Gossips | Mood::Late(_))
            };
            for pair in &mesh.pairs {
                let may_fail = troubled(pair.a) || troubled(pair.b);
                prop_assert!(pair.failure.is_none() || may_fail, "{:?}", pair);
            }
        }
        let known: HashMap<_, Pair> = match Journal::load(&path) {
            Ok(mesh) => mesh.pairs.into_iter().map(|pair| ((pair.a, pair.b, pair.rail), pair)).collect(),
            Err(_) => HashMap::new(),
        };
        let mut second = World::new(ports.clone(), vec![Mood::Well; ports.len()], healthy);
        let mesh = go_on(&mut second, &path, NEVER).expect("to the end");
        prop_assert_eq!(mesh.pairs.len(), mesh.expected_pairs());
        for pair in once(second.done.iter()) {
            prop_assert!(known.get(&pair).is_none_or(|known| known.failure.is_some()));
        }
        prop_assert!(mesh.pairs.iter().all(|pair| pair.failure.is_none()));
    }
}
