//! A large cluster at work, and a queue of mixed gangs.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use trackbed_controller::plan::{
    Amounts, CachedDataset, Constraint, DatasetNeed, Effect, Gang, HardwareId, Millis, Node,
    NodeId, Operator, Quota, Requirement, Role, Running, Snapshot, Taint, TeamId, Term, Toleration,
    Topology, Zone,
};

/// The time at which plans are made.
pub(super) const NOW: Millis = 1_000_000_000;

const HOUR: Millis = 3_600_000;
const NODES_OF_A_RACK: usize = 16;
const RACKS_OF_A_RAIL_GROUP: usize = 8;
const KINDS: [(&str, f64); 4] = [("h100", 3.0), ("a100", 1.6), ("l40s", 1.2), ("v100", 0.8)];
const TEAMS: u32 = 20;
const DATASETS: usize = 100;

/// Nodes of four kinds with eight accelerators and eight virtual functions in two NUMA nodes each, three
/// quarters of them busy; twenty teams with quotas, one kind of node tainted, a hundred datasets cached.
pub(super) fn cluster(nodes: usize, seed: u64) -> Snapshot {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut snapshot = Snapshot::default();
    let kinds = KINDS.map(|(name, speed)| snapshot.hardware(name, speed));
    for index in 0..nodes {
        let kind = kinds[index * KINDS.len() / nodes];
        let room = Amounts {
            gpus: 8,
            vfs: 8,
            pods: 110,
            cpu_milli: 128_000,
            memory: 1 << 40,
            others: Vec::new(),
        };
        let mut node = Node::new(&format!("node-{index:05}"), kind, room);
        node.zones = vec![Zone { gpus: 4, vfs: 4 }; 2];
        node.rack = Some(snapshot.domain(&format!("rack-{}", index / NODES_OF_A_RACK)));
        let group = index / NODES_OF_A_RACK / RACKS_OF_A_RAIL_GROUP;
        node.rail_group = Some(snapshot.domain(&format!("rails-{group}")));
        node.labels
            .insert("pool".into(), format!("pool-{}", index % 3));
        node.cache_free = 1 << 40;
        if kind == kinds[3] {
            node.taints.push(Taint {
                key: "old".into(),
                value: String::new(),
                effect: Effect::NoSchedule,
            });
        }
        snapshot.nodes.push(node);
    }
    for team in 0..TEAMS {
        let id = snapshot.team(&format!("team-{team}"));
        let share = (nodes * 8 / TEAMS as usize / KINDS.len()) as u32;
        let quotas = kinds.map(|kind| {
            (
                kind,
                Quota {
                    nominal: share,
                    borrow: Some(share),
                },
            )
        });
        snapshot.teams[id.0 as usize].quotas.extend(quotas);
    }
    for index in 0..nodes {
        if random.random_range(0..4) == 0 {
            continue;
        }
        let gpus = [1, 2, 4, 8, 8, 8][random.random_range(0..6)];
        run(&mut snapshot, NodeId(index as u32), gpus, &mut random);
    }
    for dataset in 0..DATASETS {
        let on = (0..20).map(|_| (NodeId(random.random_range(0..nodes as u32)), 100 << 30));
        snapshot.datasets.push(CachedDataset {
            name: format!("dataset-{dataset}"),
            bytes: 200 << 30,
            on: on.collect(),
            cached_share: 1.0,
            origin: None,
            warming: false,
        });
    }
    snapshot
}

fn run(snapshot: &mut Snapshot, id: NodeId, gpus: u32, random: &mut ChaCha8Rng) {
    let node = &mut snapshot.nodes[id.0 as usize];
    let held = Amounts {
        gpus,
        vfs: gpus.min(4),
        pods: 1,
        cpu_milli: 4000,
        ..Amounts::default()
    };
    node.free.take(&held, 1);
    let mut left = gpus;
    for zone in &mut node.zones {
        let here = left.min(zone.gpus);
        zone.gpus -= here;
        zone.vfs -= here.min(zone.vfs);
        left -= here;
    }
    let hardware = node.hardware;
    snapshot.running.push(Running {
        name: format!("running-{}", id.0),
        team: TeamId(random.random_range(0..TEAMS)),
        priority: 0,
        hardware,
        started: NOW - random.random_range(0..100) * HOUR,
        ends: Some(NOW + random.random_range(-5..100) * HOUR),
        holds: vec![(id, held)],
        reclaimable: true,
    });
}

/// Gangs of one pod to thirty-two nodes, no two hundred of which ask for just the same: some with a place
/// they must be in, some with a label, some that bear the taint, a third with a dataset.
pub(super) fn queue(snapshot: &Snapshot, gangs: usize, seed: u64) -> Vec<Gang> {
    let mut random = ChaCha8Rng::seed_from_u64(seed + 1000);
    let random = &mut random;
    (0..gangs)
        .map(|index| {
            let gpus = [1, 1, 1, 2, 4, 8, 8, 8][random.random_range(0..8)];
            let count = if gpus == 8 {
                [1, 1, 2, 4, 8, 16, 32][random.random_range(0..7)]
            } else {
                1
            };
            let request = Amounts {
                gpus,
                vfs: if gpus == 8 { 0 } else { gpus.min(2) },
                pods: 1,
                cpu_milli: 1000 * random.random_range(1..=4u64) * u64::from(gpus),
                memory: u64::from(gpus) << 34,
                others: Vec::new(),
            };
            let mut worker = Role::new("worker", count, request);
            worker.constraint = constraint(random);
            let team = TeamId(random.random_range(0..TEAMS));
            let submitted = NOW - random.random_range(0..200) * HOUR;
            let mut gang = Gang::new(&format!("gang-{index:05}"), team, submitted, vec![worker]);
            gang.priority = [0, 0, 0, 10][random.random_range(0..4)];
            gang.run_time = Some(random.random_range(1..200) * HOUR / 4);
            gang.topology = [
                Topology::Prefer,
                Topology::Prefer,
                Topology::OneRack,
                Topology::OneRailGroup,
            ][random.random_range(0..4)];
            if random.random_range(0..2) == 0 {
                gang.hardware = vec![HardwareId(random.random_range(0..KINDS.len() as u16))];
            }
            if random.random_range(0..3) == 0 {
                let dataset = random.random_range(0..snapshot.datasets.len());
                gang.dataset = Some(DatasetNeed {
                    dataset,
                    warm_share: 0.5,
                });
            }
            gang
        })
        .collect()
}

fn constraint(random: &mut ChaCha8Rng) -> Constraint {
    let mut constraint = Constraint::default();
    if random.random_range(0..3) == 0 {
        constraint.tolerations.push(Toleration {
            key: Some("old".into()),
            value: None,
            effect: None,
        });
    }
    if random.random_range(0..5) == 0 {
        constraint.terms.push(Term {
            labels: vec![Requirement {
                key: "pool".into(),
                operator: Operator::In,
                values: vec![format!("pool-{}", random.random_range(0..3))],
            }],
            names: None,
        });
    }
    constraint
}
