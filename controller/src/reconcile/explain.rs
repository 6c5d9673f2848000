//! What is in a gang's way, in words for who waits.

use std::collections::BTreeMap;

use serde::Serialize;

use super::snapshot::Picture;
use crate::plan::{Amounts, Blocked, Gang, Reservation, Role};

/// What is in the way of the picture's gang of this place, and by how much.
pub fn explain(
    picture: &Picture,
    gang: usize,
    blocked: &Blocked,
    reservation: Option<&Reservation>,
) -> String {
    let name = |at: usize| {
        let other = picture.queue.get(at);
        other.map_or("another job", |other| other.name.as_str())
    };
    let why = match blocked {
        Blocked::NotBefore(_) => "it waits out a failed start".to_owned(),
        Blocked::Quota { beyond } => {
            let team = picture.queue.get(gang).map(|gang| gang.team.0 as usize);
            let team = team.and_then(|team| picture.snapshot.teams.get(team));
            format!(
                "team {} may use {beyond} accelerators fewer than this takes: wait for its other jobs, or have \
                 its quota raised",
                team.map_or("", |team| team.name.as_str())
            )
        }
        Blocked::DatasetCold { cached, needed } => format!(
            "its dataset is cached to {:.0}% of the {:.0}% that it waits for",
            cached * 100.0,
            needed * 100.0
        ),
        Blocked::OriginBusy(origin) => {
            let origin = picture.snapshot.origins.get(origin.0 as usize);
            format!(
                "origin {} gives other jobs their datasets first",
                origin.map_or("", |origin| origin.name.as_str())
            )
        }
        Blocked::NoRoom { wanted, free } => no_room(picture, gang, *wanted, *free),
        Blocked::Held(other) => format!("it would fit, but the room is held for {}", name(*other)),
        Blocked::Behind(other) => format!("{} is before it", name(*other)),
    };
    match reservation.filter(|reservation| reservation.gang == gang) {
        Some(reservation) => format!(
            "{why}; room is held for it on {} nodes, by {}",
            reservation.nodes.len(),
            k8s_openapi::jiff::Timestamp::from_millisecond(reservation.at).map_or_else(
                |_| "some time".to_owned(),
                |at| at.strftime("%FT%TZ").to_string()
            )
        ),
        None => why,
    }
}

/// Where a role's pods would find room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleRoom {
    /// The role.
    pub role: String,
    /// How many pods it has.
    pub wanted: u64,
    /// By the hardware of the nodes that it may use.
    pub hardware: Vec<HardwareRoom>,
}

/// Where pods would find room on nodes of one kind of hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HardwareRoom {
    /// The hardware; empty for nodes without accelerators.
    pub hardware: String,
    /// Nodes that the role may use.
    pub nodes: u64,
    /// How many of its pods they have room for now, at most all.
    pub pods: u64,
    /// The same if nothing else were on them.
    pub pods_when_empty: u64,
}

/// Where the pods of a gang would find room, each role for itself.
pub fn rooms(picture: &Picture, gang: &Gang) -> Vec<RoleRoom> {
    let of = |role: &Role| {
        let mut hardware: BTreeMap<&str, HardwareRoom> = BTreeMap::new();
        for node in &picture.snapshot.nodes {
            let may = role
                .constraint
                .allows(&node.name, &node.labels, &node.taints);
            if node.unusable.is_some() || !may {
                continue;
            }
            let name = &picture.snapshot.hardware[usize::from(node.hardware.0)].name;
            let room = hardware.entry(name).or_insert_with(|| HardwareRoom {
                hardware: name.clone(),
                nodes: 0,
                pods: 0,
                pods_when_empty: 0,
            });
            let most = u64::from(role.count);
            let fits = |free: &Amounts| u64::from(free.times(&role.request, role.count));
            room.nodes += 1;
            room.pods = most.min(room.pods + fits(&node.free));
            room.pods_when_empty = most.min(room.pods_when_empty + fits(&node.allocatable));
        }
        RoleRoom {
            role: role.name.clone(),
            wanted: u64::from(role.count),
            hardware: hardware.into_values().collect(),
        }
    };
    gang.roles.iter().map(of).collect()
}

/// There is no room: for lack of accelerators, of nodes that it may use, or of any with enough free.
fn no_room(picture: &Picture, gang: usize, wanted: u64, free: u64) -> String {
    let Some(gang) = picture.queue.get(gang) else {
        return "there is no room".to_owned();
    };
    if wanted > free {
        let lacking = wanted - free;
        return format!(
            "it takes {wanted} accelerators at once and {free} are free on nodes that it may use: {lacking} \
             are missing"
        );
    }
    for room in rooms(picture, gang) {
        let sum = |of: fn(&HardwareRoom) -> u64| room.hardware.iter().map(of).sum::<u64>();
        let (nodes, fits, ever) = (
            sum(|it| it.nodes),
            sum(|it| it.pods),
            sum(|it| it.pods_when_empty),
        );
        let (role, count) = (&room.role, room.wanted);
        if nodes == 0 {
            return format!(
                "no node that is ready may be used by role {role}: look at its node selector, affinity and \
                 tolerations"
            );
        }
        if ever < count {
            return format!(
                "the {nodes} nodes that role {role} may use hold {ever} of its {count} pods even when they are \
                 empty"
            );
        }
        if fits < count {
            return format!(
                "there is room for {fits} of the {count} pods of role {role} on the {nodes} nodes that it may use"
            );
        }
    }
    format!(
        "its {} pods do not fit all at once on one kind of hardware",
        gang.pods()
    )
}
