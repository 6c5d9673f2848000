//! What is in a gang's way, in words for who waits.

use super::snapshot::Picture;
use crate::plan::{Blocked, Reservation};

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
    for role in &gang.roles {
        let usable = picture.snapshot.nodes.iter().filter(|node| {
            node.unusable.is_none()
                && role
                    .constraint
                    .allows(&node.name, &node.labels, &node.taints)
        });
        let (mut nodes, mut fits, mut ever) = (0u64, 0u64, 0u64);
        for node in usable {
            nodes += 1;
            fits += u64::from(node.free.times(&role.request, role.count));
            ever += u64::from(node.allocatable.times(&role.request, role.count));
        }
        let count = u64::from(role.count);
        if nodes == 0 {
            return format!(
                "no node that is ready may be used by role {}: look at its node selector, affinity and \
                 tolerations",
                role.name
            );
        }
        if ever < count {
            return format!(
                "the {nodes} nodes that role {} may use hold {ever} of its {count} pods even when they are empty",
                role.name
            );
        }
        if fits < count {
            return format!(
                "there is room for {fits} of the {count} pods of role {} on the {nodes} nodes that it may use",
                role.name
            );
        }
    }
    format!(
        "its {} pods do not fit all at once on one kind of hardware",
        gang.pods()
    )
}
