//! What every plan keeps to, whatever the cluster and the queue.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn disciplines() -> impl Strategy<Value = Discipline> {
    prop_oneof![
        3 => Just(Discipline::default()),
        1 => prop_oneof![
            Just(Peer::Fifo),
            Just(Peer::SkipFifo),
            Just(Peer::Easy),
            Just(Peer::DrfGang),
            Just(Peer::Sjf)
        ]
        .prop_map(Discipline::Peer),
    ]
}

fn amounts(gpus: u32, vfs: u32, cpu_milli: u64) -> Amounts {
    Amounts {
        gpus,
        vfs,
        pods: 1,
        cpu_milli,
        ..Amounts::default()
    }
}

/// Nodes of two kinds in racks, some full, tainted, unusable or with NUMA nodes; teams of which the second
/// and the third have quotas; a running gang of the third.
fn snapshots() -> impl Strategy<Value = Snapshot> {
    let node = (0..2u16, 0..=8u32, 0..=8u32, 0..3u32, 0..10u8, any::<bool>());
    let quotas = (0..12u32, 0..12u32);
    (prop::collection::vec(node, 1..12), quotas, any::<bool>()).prop_map(
        |(nodes, (vision, speech), numa)| {
            let mut snapshot = Snapshot::default();
            let kinds = [
                snapshot.hardware("fast", 2.0),
                snapshot.hardware("slow", 1.0),
            ];
            for (index, (kind, gpus, vfs, rack, flaw, zoned)) in nodes.into_iter().enumerate() {
                let mut room = amounts(gpus, vfs, 64_000);
                room.pods = 20;
                let mut node = Node::new(&format!("node-{index}"), kinds[usize::from(kind)], room);
                if rack < 2 {
                    node.rack = Some(snapshot.domain(&format!("rack-{rack}")));
                    node.rail_group = Some(snapshot.domain("rails"));
                }
                if zoned && numa {
                    let zone = |gpus: u32, vfs: u32| Zone { gpus, vfs };
                    node.zones = vec![
                        zone(gpus / 2, vfs / 2),
                        zone(gpus - gpus / 2, vfs - vfs / 2),
                    ];
                }
                match flaw {
                    0 => node.unusable = Some("cordoned".into()),
                    1 => node.taints.push(Taint {
                        key: "broken".into(),
                        value: String::new(),
                        effect: Effect::NoSchedule,
                    }),
                    _ => {}
                }
                snapshot.nodes.push(node);
            }
            let free = Team::new("free");
            let with = |name: &str, nominal, borrow| Team {
                quotas: kinds
                    .iter()
                    .map(|kind| (*kind, Quota { nominal, borrow }))
                    .collect(),
                ..Team::new(name)
            };
            snapshot.teams = vec![
                free,
                with("vision", vision, Some(4)),
                with("speech", speech, None),
            ];
            let first = &mut snapshot.nodes[0];
            let held = amounts(first.free.gpus / 2, 0, 100);
            first.free.take(&held, 1);
            for zone in &mut first.zones {
                zone.gpus = zone.gpus.min(first.free.gpus);
            }
            snapshot.running.push(Running {
                name: "running".into(),
                team: TeamId(2),
                priority: 0,
                hardware: snapshot.nodes[0].hardware,
                started: 0,
                ends: Some(5000),
                holds: vec![(NodeId(0), held)],
                reclaimable: true,
            });
            snapshot
        },
    )
}

fn queues() -> impl Strategy<Value = Vec<Gang>> {
    let role = (1..5u32, 0..=8u32, 0..3u32, 0..5000u64);
    let gang = (
        prop::collection::vec(role, 1..3),
        0..3u32,
        0..3i32,
        0..2000i64,
        prop::option::of(1..10_000i64),
        0..4u8,
        any::<bool>(),
    );
    prop::collection::vec(gang, 0..15).prop_map(|gangs| {
        let made = gangs.into_iter().enumerate();
        made.map(
            |(index, (roles, team, priority, submitted, run_time, nearness, only_fast))| {
                let roles = roles
                    .into_iter()
                    .enumerate()
                    .map(|(role, (count, gpus, vfs, cpu))| {
                        Role::new(&format!("role-{role}"), count, amounts(gpus, vfs, cpu))
                    });
                let mut gang = Gang::new(
                    &format!("gang-{index}"),
                    TeamId(team),
                    submitted,
                    roles.collect(),
                );
                gang.priority = priority;
                gang.run_time = run_time;
                gang.hardware = if only_fast {
                    vec![HardwareId(0)]
                } else {
                    Vec::new()
                };
                gang.topology = match nearness {
                    0 => Topology::OneRack,
                    1 => Topology::OneRailGroup,
                    _ => Topology::Prefer,
                };
                gang
            },
        )
        .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_plan_keeps_to_what_there_is(
        snapshot in snapshots(), queue in queues(), discipline in disciplines(), now in 0..4000i64
    ) {
        let plan = plan(&snapshot, &queue, now, &discipline);
        let mut left: Vec<Amounts> = snapshot.nodes.iter().map(|node| node.free.clone()).collect();
        for admission in &plan.admissions {
            let gang = &queue[admission.gang];
            let mut racks = std::collections::BTreeSet::new();
            for (role, nodes) in gang.roles.iter().zip(&admission.nodes) {
                prop_assert_eq!(nodes.len(), role.count as usize, "all or nothing");
                for id in nodes {
                    let node = snapshot.node(*id);
                    prop_assert!(node.unusable.is_none() && node.taints.is_empty());
                    prop_assert_eq!(node.hardware, admission.hardware, "one kind of hardware");
                    prop_assert_eq!(left[id.0 as usize].times(&role.request, 1), 1, "no node is overfull");
                    left[id.0 as usize].take(&role.request, 1);
                    racks.insert((node.rail_group, node.rack));
                }
            }
            prop_assert!(gang.hardware.is_empty() || gang.hardware.contains(&admission.hardware));
            if gang.topology == Topology::OneRack {
                prop_assert!(racks.len() == 1 && racks.iter().all(|(_, rack)| rack.is_some()));
            }
            if gang.topology == Topology::OneRailGroup {
                prop_assert!(racks.iter().all(|(group, _)| group.is_some()));
            }
        }
        let admitted = plan.admissions.iter().map(|admission| admission.gang);
        let mut asked: Vec<usize> = admitted.chain(plan.blocked.iter().map(|(gang, _)| *gang)).collect();
        asked.sort_unstable();
        prop_assert_eq!(asked, (0..queue.len()).collect::<Vec<_>>(), "each gang has one answer");
    }

    #[test]
    fn no_team_goes_beyond_what_it_may_borrow(snapshot in snapshots(), queue in queues()) {
        let plan = plan(&snapshot, &queue, 3000, &Discipline::default());
        let mut used: BTreeMap<(TeamId, HardwareId), u64> = BTreeMap::new();
        let running = &snapshot.running[0];
        used.insert((running.team, running.hardware), running.holds[0].1.gpus.into());
        for admission in &plan.admissions {
            let gang = &queue[admission.gang];
            *used.entry((gang.team, admission.hardware)).or_default() += gang.gpus();
        }
        for ((team, hardware), used) in used {
            let quota = snapshot.teams[team.0 as usize].quotas.get(&hardware);
            if let Some(Quota { nominal, borrow: Some(borrow) }) = quota {
                prop_assert!(used <= u64::from(nominal + borrow));
            }
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer(snapshot in snapshots(), queue in queues()) {
        let ask = || plan(&snapshot, &queue, 3000, &Discipline::default());
        prop_assert_eq!(ask(), ask());
    }

    #[test]
    fn the_first_of_the_queue_starts_if_there_is_room(snapshot in snapshots(), queue in queues()) {
        let discipline = Discipline::default();
        let queue: Vec<Gang> = queue.into_iter().filter(|gang| gang.team == TeamId(0)).collect();
        let order = discipline.order(&queue, 3000);
        if let Some(&first) = order.first() {
            let alone = plan(&snapshot, &queue[first..=first], 3000, &discipline);
            let among = plan(&snapshot, &queue, 3000, &discipline);
            let starts = among.admissions.iter().any(|admission| admission.gang == first);
            prop_assert_eq!(starts, !alone.admissions.is_empty());
        }
    }

    #[test]
    fn who_overtakes_does_not_delay_the_one_that_room_is_held_for(
        snapshot in snapshots(), queue in queues()
    ) {
        let planned = plan(&snapshot, &queue, 3000, &Discipline::default());
        let Some(reservation) = planned.reservation else { return Ok(()) };
        // Everything that started runs exactly as long as it said; at the time that was named the gang fits.
        let mut later = snapshot.clone();
        later.running.retain(|running| running.ends.is_none_or(|ends| ends.max(3000) > reservation.at));
        for running in &snapshot.running {
            // A gang that is past its end is taken to end a little later, not now.
            let ends = reserve::end(running.started, running.ends, 3000).expect("it says so");
            if ends <= reservation.at {
                for (node, held) in &running.holds {
                    later.nodes[node.0 as usize].free.give(held, 1);
                    for zone in &mut later.nodes[node.0 as usize].zones {
                        zone.gpus += held.gpus;
                    }
                }
            }
        }
        let zoned = snapshot.nodes.iter().any(|node| !node.zones.is_empty());
        for admission in &planned.admissions {
            let gang = &queue[admission.gang];
            let speed = snapshot.hardware[usize::from(admission.hardware.0)].speed;
            let run_time = gang.run_time_on(admission.hardware, speed);
            if run_time.is_none_or(|run_time| 3000 + run_time > reservation.at) {
                for (role, nodes) in gang.roles.iter().zip(&admission.nodes) {
                    for node in nodes {
                        later.nodes[node.0 as usize].free.take(&role.request, 1);
                    }
                }
            }
        }
        let first = &queue[reservation.gang];
        let alone = plan(&later, std::slice::from_ref(first), reservation.at, &Discipline::default());
        // Which NUMA node a pod takes is kubelet's choice, so that room there can't be held.
        prop_assert!(zoned || !alone.admissions.is_empty(), "{:?}", alone.blocked);
    }
}

/// Two nodes of eight, both with a gang of a team that has borrowed them; a gang of another team that has a
/// right to eight.
fn borrowed() -> (Snapshot, Gang) {
    let mut snapshot = Snapshot::default();
    let fast = snapshot.hardware("fast", 1.0);
    let quota = |nominal| {
        BTreeMap::from([(
            fast,
            Quota {
                nominal,
                borrow: None,
            },
        )])
    };
    snapshot.teams = vec![
        Team {
            quotas: quota(8),
            ..Team::new("owner")
        },
        Team {
            quotas: quota(0),
            ..Team::new("borrower")
        },
    ];
    for index in 0..2u32 {
        let mut node = Node::new(&format!("node-{index}"), fast, amounts(8, 0, 8000));
        node.free = Amounts::default();
        snapshot.nodes.push(node);
        snapshot.running.push(Running {
            name: format!("borrower-{index}"),
            team: TeamId(1),
            priority: 0,
            hardware: fast,
            started: index.into(),
            ends: None,
            holds: vec![(NodeId(index), amounts(8, 0, 100))],
            reclaimable: true,
        });
    }
    let gang = Gang::new(
        "owner",
        TeamId(0),
        5,
        vec![Role::new("worker", 1, amounts(8, 0, 100))],
    );
    (snapshot, gang)
}

#[test]
fn no_more_is_taken_back_than_need_be_the_latest_first() {
    let (snapshot, gang) = borrowed();
    let planned = plan(&snapshot, &[gang], 10, &Discipline::default());
    assert_eq!(
        planned.reclaims,
        [Reclaim {
            running: 1,
            gang: 0
        }]
    );
}

#[test]
fn while_what_was_taken_back_is_still_ending_nothing_more_is() {
    let (mut snapshot, gang) = borrowed();
    let ending = snapshot.running.pop().expect("two run");
    snapshot.leaving = ending.holds;
    let planned = plan(
        &snapshot,
        std::slice::from_ref(&gang),
        10,
        &Discipline::default(),
    );
    assert_eq!(planned.reclaims, []);
    let held = planned.reservation.expect("room is held");
    assert_eq!((held.nodes, held.at), (vec![NodeId(1)], 30_010));
}
