//! Synthetic meshes with a fault put in, and healthy ones with nothing but noise.

use proptest::prelude::*;

use super::*;
use crate::mesh::noise::Noise;
use crate::mesh::{Left, MeshPlan, Node, NodePort, Pair};

/// What a path has: Gb/s from a to b on a rail, before noise.
fn mesh(
    nodes: usize,
    rails: usize,
    sigma: f64,
    seed: u64,
    speed: impl Fn(usize, usize, usize) -> f64,
) -> Mesh {
    let mut noise = Noise(seed);
    let mut pairs = Vec::new();
    for rail in 0..rails {
        for a in 0..nodes {
            for b in a + 1..nodes {
                let mut noisy = |value: f64| value * (sigma * noise.normal()).exp();
                pairs.push(Pair {
                    a,
                    b,
                    rail,
                    there_gbps: Some(noisy(speed(a, b, rail))),
                    back_gbps: Some(noisy(speed(b, a, rail))),
                    latency_us: Some(noisy(2.0)),
                    failure: None,
                });
            }
        }
    }
    Mesh {
        plan: MeshPlan::default(),
        nodes: (0..nodes)
            .map(|node| Node {
                name: format!("node-{node}"),
                ports: (0..rails)
                    .map(|rail| NodePort {
                        device: format!("mlx5_{rail}"),
                        port: 1,
                    })
                    .collect(),
            })
            .collect(),
        pairs,
        left: Vec::new(),
    }
}

/// What is named, as `kind subject`.
fn named(mesh: &Mesh) -> Vec<String> {
    assert_eq!(mesh.check(), Ok(()));
    outliers(mesh, &Tolerance::default())
        .outliers
        .iter()
        .map(|outlier| format!("{} {}", outlier.kind, outlier.subject))
        .collect()
}

#[test]
fn a_slow_nic_is_named_and_nothing_else() {
    for nodes in [5, 8, 16, 48] {
        let mesh = mesh(nodes, 2, 0.02, 1, |a, b, rail| {
            if rail == 1 && (a == 3 || b == 3) {
                50.0
            } else {
                100.0
            }
        });
        assert_eq!(named(&mesh), ["NIC node-3 mlx5_1/1"], "{nodes} nodes");
        let judged = outliers(&mesh, &Tolerance::default());
        let ratio = judged.outliers[0].ratio.expect("a ratio");
        assert!((0.45..0.55).contains(&ratio), "{ratio}");
    }
}

#[test]
fn two_slow_nics_do_not_hide_each_other() {
    let mesh = mesh(12, 1, 0.02, 2, |a, b, _| {
        if [a, b].iter().any(|node| [2, 9].contains(node)) {
            60.0
        } else {
            100.0
        }
    });
    assert_eq!(named(&mesh), ["NIC node-2 mlx5_0/1", "NIC node-9 mlx5_0/1"]);
}

#[test]
fn a_cable_that_is_slow_in_one_direction_is_named_with_it() {
    let sends = mesh(8, 2, 0.02, 3, |a, _, rail| {
        if (a, rail) == (5, 0) { 40.0 } else { 100.0 }
    });
    assert_eq!(named(&sends), ["sender node-5 mlx5_0/1"]);
    let receives = mesh(8, 2, 0.02, 4, |_, b, rail| {
        if (b, rail) == (5, 0) { 40.0 } else { 100.0 }
    });
    assert_eq!(named(&receives), ["receiver node-5 mlx5_0/1"]);
}

#[test]
fn a_slow_path_between_two_nodes_that_are_well_with_others_is_named() {
    let mesh = mesh(10, 1, 0.02, 5, |a, b, _| {
        if (a.min(b), a.max(b)) == (2, 7) {
            30.0
        } else {
            100.0
        }
    });
    assert_eq!(named(&mesh), ["path node-2 mlx5_0/1 <-> node-7 mlx5_0/1"]);
}

#[test]
fn a_slow_rail_is_named_once_and_not_by_its_ports() {
    for rails in [2, 4, 8] {
        let mesh = mesh(
            8,
            rails,
            0.02,
            6,
            |_, _, rail| if rail == 1 { 60.0 } else { 100.0 },
        );
        assert_eq!(named(&mesh), ["rail rail 1"], "{rails} rails");
    }
}

#[test]
fn a_node_all_of_whose_ports_are_slow_is_named_as_a_node() {
    let mesh = mesh(
        8,
        4,
        0.02,
        7,
        |a, b, _| if a == 6 || b == 6 { 70.0 } else { 100.0 },
    );
    assert_eq!(named(&mesh), ["node node-6"]);
}

#[test]
fn a_slow_answer_is_seen_in_latency_alone() {
    let mut mesh = mesh(8, 1, 0.03, 8, |_, _, _| 100.0);
    for pair in mesh
        .pairs
        .iter_mut()
        .filter(|pair| pair.a == 4 || pair.b == 4)
    {
        pair.latency_us = pair.latency_us.map(|latency| latency * 3.0);
    }
    assert_eq!(named(&mesh), ["NIC node-4 mlx5_0/1"]);
    let judged = outliers(&mesh, &Tolerance::default());
    assert_eq!(judged.outliers[0].figure, Some(Figure::Latency));
    assert!(judged.outliers[0].ratio.is_some_and(|ratio| ratio > 2.5));
}

#[test]
fn failures_are_named_by_what_they_have_in_common() {
    let mut mesh = mesh(6, 1, 0.02, 9, |_, _, _| 100.0);
    let break_pairs = |mesh: &mut Mesh, broken: &dyn Fn(&Pair) -> bool| {
        for pair in mesh.pairs.iter_mut().filter(|pair| broken(pair)) {
            (pair.there_gbps, pair.back_gbps, pair.latency_us) = (None, None, None);
            pair.failure = Some("retry exceeded".to_owned());
        }
    };
    break_pairs(&mut mesh, &|pair| (pair.a, pair.b) == (0, 1));
    assert_eq!(named(&mesh), ["failed node-0 mlx5_0/1 <-> node-1 mlx5_0/1"]);
    break_pairs(&mut mesh, &|pair| pair.a == 3 || pair.b == 3);
    mesh.left.push(Left {
        node: 5,
        reason: "its power went".to_owned(),
    });
    break_pairs(&mut mesh, &|pair| pair.b == 5);
    assert_eq!(
        named(&mesh),
        [
            "failed node-5",
            "failed node-3 mlx5_0/1",
            "failed node-0 mlx5_0/1 <-> node-1 mlx5_0/1"
        ]
    );
    let judged = outliers(&mesh, &Tolerance::default());
    assert!(!judged.is_whole());
    assert_eq!((judged.measured, judged.expected), (15 - 1 - 5 - 4, 15));
}

#[test]
fn too_few_nodes_to_tell_are_not_judged() {
    for nodes in [2, 3] {
        let mesh = mesh(
            nodes,
            1,
            0.01,
            10,
            |a, _, _| if a == 0 { 10.0 } else { 100.0 },
        );
        let judged = outliers(&mesh, &Tolerance::default());
        assert_eq!(judged.outliers, []);
        assert!(!judged.is_whole());
    }
}

#[test]
fn a_mesh_without_any_noise_is_judged_all_the_same() {
    let healthy = mesh(6, 2, 0.0, 11, |_, _, _| 100.0);
    assert_eq!(named(&healthy), Vec::<String>::new());
    let slow = mesh(6, 2, 0.0, 11, |a, b, rail| {
        if rail == 0 && (a == 1 || b == 1) {
            50.0
        } else {
            100.0
        }
    });
    assert_eq!(named(&slow), ["NIC node-1 mlx5_0/1"]);
}

/// How many of some healthy meshes have anything named.
fn named_by_mistake(meshes: u64, nodes: usize, rails: usize, sigma: f64) -> usize {
    (0..meshes)
        .filter(|seed| {
            let seed = seed.wrapping_mul(7919) + 17;
            !named(&mesh(nodes, rails, sigma, seed, |_, _, _| 100.0)).is_empty()
        })
        .count()
}

#[test]
fn healthy_meshes_are_left_alone_however_noisy_they_are() {
    for (nodes, rails) in [(4, 1), (5, 2), (8, 1), (8, 8), (24, 2)] {
        for sigma in [0.01, 0.05, 0.15] {
            let mistakes = named_by_mistake(40, nodes, rails, sigma);
            assert!(
                mistakes <= 1,
                "{mistakes} of 40: {nodes} nodes, {rails} rails, {sigma}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_healthy_mesh_with_little_noise_never_has_anything_named(
        nodes in 4usize..20, rails in 1usize..4, sigma in 0.0f64..0.02, seed: u64
    ) {
        prop_assert_eq!(named(&mesh(nodes, rails, sigma, seed, |_, _, _| 200.0)), Vec::<String>::new());
    }

    #[test]
    fn a_nic_at_half_speed_is_always_named(
        nodes in 6usize..20, rails in 1usize..4, sigma in 0.0f64..0.04, seed: u64, which: usize
    ) {
        let (node, slow) = (which % nodes, (which / nodes) % rails);
        let mesh = mesh(nodes, rails, sigma, seed, |a, b, rail| {
            if rail == slow && (a == node || b == node) { 100.0 } else { 200.0 }
        });
        let name = format!("NIC node-{node} mlx5_{slow}/1");
        let found = named(&mesh);
        prop_assert!(found.contains(&name), "{found:?}");
    }
}
