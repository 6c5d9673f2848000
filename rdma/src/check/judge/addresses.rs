//! The addresses of ports.

use std::collections::BTreeMap;

use super::Seen;
use crate::check::Finding;
use crate::check::facts::DeviceFacts;

const USABLE: &str = "gid/usable";

pub(super) fn judge(seen: &Seen<'_>) -> Vec<Finding> {
    let subject = &seen.subject;
    let gids = &seen.known.gids;
    if !seen.is_ethernet() {
        return vec![match seen.known.lid {
            Some(0) => Finding::failure("port/lid", subject, "it has no LID")
                .expected("a LID, assigned by the subnet manager")
                .remedy("start a subnet manager (opensm) on this network"),
            Some(lid) => Finding::ok("port/lid", subject, format!("LID {lid}")),
            None => Finding::unknown("port/lid", subject, "its LID can't be read")
                .remedy("check again: the device may have been removed or reset meanwhile"),
        }];
    }
    let net = seen.known.net_device.as_deref().unwrap_or("its net device");
    let assign = format!("ip address add ADDRESS/PREFIX dev {net}");
    let of_kind = |kind: &str| gids.iter().find(|gid| gid.kind.as_deref() == Some(kind));
    vec![match (of_kind("rocev2-ipv4"), of_kind("rocev2-ipv6")) {
        (Some(gid), _) => Finding::ok(
            USABLE,
            subject,
            format!("RoCE v2 over IPv4: {} at index {}", gid.gid, gid.index),
        ),
        (None, Some(gid)) => Finding::warning(
            USABLE,
            subject,
            format!("RoCE v2 over IPv6 only: {} at index {}", gid.gid, gid.index),
        )
        .expected("a GID of RoCE v2 over IPv4")
        .remedy(assign),
        (None, None) if gids.is_empty() => Finding::failure(USABLE, subject, "it has no GID")
            .expected("a GID of RoCE v2 over IPv4")
            .remedy(assign),
        (None, None) => Finding::failure(
            USABLE,
            subject,
            format!("none of its {} GIDs is of RoCE v2", gids.len()),
        )
        .expected("a GID of RoCE v2 over IPv4")
        .remedy(format!("allow RoCE v2 in the driver; {assign}")),
    }]
}

/// The same address twice: at two ports of different net devices, or twice at one port.
pub(super) fn duplicates(devices: &[DeviceFacts]) -> Vec<Finding> {
    /// A port, and the net device of an address there.
    type Place<'a> = (String, Option<&'a str>);
    let mut places: BTreeMap<(&str, &str), Vec<Place<'_>>> = BTreeMap::new();
    for device in devices {
        for port in &device.device.ports {
            let subject = format!("{}/{}", device.device.name, port.number);
            for gid in &port.gids {
                let kind = gid.kind.as_deref().unwrap_or("");
                let net = gid.net_device.as_deref().or(port.net_device.as_deref());
                places
                    .entry((kind, &gid.gid))
                    .or_default()
                    .push((subject.clone(), net));
            }
        }
    }
    places
        .into_iter()
        .filter_map(|((kind, gid), places)| {
            let ((first, net), (other, _)) = places.iter().enumerate().find_map(|(at, one)| {
                places[at + 1..]
                    .iter()
                    // Two devices on one net device, such as soft-RoCE on a RoCE adapter's, share addresses.
                    .find(|two| one.0 == two.0 || one.1.is_none() || one.1 != two.1)
                    .map(|two| (one, two))
            })?;
            let place = if first == other {
                "twice in its table".to_owned()
            } else {
                format!("at {other} too")
            };
            let remedy = match net {
                Some(net) => format!("give {net} an address of its own"),
                None => "give each port a GUID of its own".to_owned(),
            };
            Some(
                Finding::failure("gid/unique", first, format!("{gid} ({kind}) is {place}"))
                    .expected("each address once")
                    .remedy(remedy),
            )
        })
        .collect()
}
