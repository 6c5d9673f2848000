//! What is shown, as a pure function of what daemons and the API server said at two moments.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::samples::Samples;
use super::target::{Role, Target};
use crate::queue::Shown as Job;

/// What one daemon said, or why nothing.
#[derive(Clone, Debug)]
pub(crate) struct Scraped {
    pub(crate) target: Target,
    /// When, by a clock that never goes back.
    pub(crate) at: Duration,
    pub(crate) answer: Result<Samples, String>,
}

/// What all said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Round {
    pub(crate) scrapes: Vec<Scraped>,
    /// The jobs that wait and run; `None` where no API server is asked.
    pub(crate) jobs: Option<Vec<Job>>,
    /// What could not be asked beside daemons, and why.
    pub(crate) troubles: Vec<String>,
}

/// All that is shown.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    pub(crate) nodes: Vec<Node>,
    pub(crate) datasets: Vec<Dataset>,
    pub(crate) devices: Vec<Devices>,
    /// `null` where no API server is asked.
    pub(crate) jobs: Option<Vec<Job>>,
    pub(crate) troubles: Vec<String>,
}

/// An agent. Bytes, and bytes a second between the two moments; no rates if it did not answer at both.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    /// Why it did not answer, or what is wrong with what it said.
    pub(crate) trouble: Option<String>,
    pub(crate) used_bytes: Option<u64>,
    pub(crate) capacity_bytes: Option<u64>,
    /// Of the bytes brought to the node since its agent started, how many of 100 came from peers or from its
    /// own disks and not from an origin.
    pub(crate) hit_percent: Option<u64>,
    pub(crate) from_origins: Option<u64>,
    /// What the fabric received from and sent to peers.
    pub(crate) received: Option<u64>,
    pub(crate) sent: Option<u64>,
    /// Peers that it can ask.
    pub(crate) links: Option<u64>,
    /// What it says of itself that wants looking after.
    pub(crate) complaints: Vec<String>,
}

/// A dataset, as far as agents that answered know it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// How much of it that node has which has the most.
    pub(crate) cached_percent: u64,
    /// Nodes that have some of it.
    pub(crate) nodes: usize,
    /// Nodes that have all of it.
    pub(crate) complete: usize,
    /// What all nodes together have.
    pub(crate) present_bytes: u64,
}

/// The devices of a resource on a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Devices {
    pub(crate) node: String,
    pub(crate) address: String,
    /// Why the device plugin did not answer.
    pub(crate) trouble: Option<String>,
    pub(crate) resource: String,
    pub(crate) healthy: u64,
    pub(crate) unhealthy: u64,
    /// Those that pods have, and these pods.
    pub(crate) held: u64,
    pub(crate) pods: Vec<String>,
}

/// What to show: `now`, with rates since `before`.
pub(crate) fn view(before: &Round, now: &Round) -> View {
    let earlier: BTreeMap<&Target, (&Samples, Duration)> = before
        .scrapes
        .iter()
        .filter_map(|it| Some((&it.target, (it.answer.as_ref().ok()?, it.at))))
        .collect();
    let mut view = View {
        jobs: now.jobs.clone(),
        troubles: now.troubles.clone(),
        ..View::default()
    };
    let mut datasets = BTreeMap::new();
    for scraped in &now.scrapes {
        let Scraped { target, at, answer } = scraped;
        match answer {
            Ok(samples) => {
                let agent = samples.sum("trackbed_cache_used_bytes").is_some();
                let plugin = samples
                    .sum("trackbed_deviceplugin_allocations_total")
                    .is_some();
                if agent {
                    let since = earlier.get(target).map(|(samples, then)| {
                        let seconds = at.saturating_sub(*then).as_secs_f64();
                        (*samples, seconds)
                    });
                    view.nodes.push(node(target, samples, since));
                    add_datasets(&mut datasets, samples);
                }
                if plugin {
                    view.devices.extend(devices(target, samples));
                }
                if !agent && !plugin {
                    let why = "it answers, but with no numbers of Trackbed's";
                    view.nodes.push(silent(target, why));
                }
            }
            Err(why) if target.role == Some(Role::DevicePlugin) => view.devices.push(Devices {
                node: target.node.clone(),
                address: target.address.clone(),
                trouble: Some(why.clone()),
                ..Devices::default()
            }),
            Err(why) => view.nodes.push(silent(target, why)),
        }
    }
    // Nobody was told that there are device plugins: where none answers there is none.
    if view.devices.iter().all(|it| it.trouble.is_some()) {
        view.devices.clear();
    }
    view.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    view.devices
        .sort_by(|a, b| (&a.node, &a.resource).cmp(&(&b.node, &b.resource)));
    view.datasets = datasets.into_values().collect();
    view
}

fn silent(target: &Target, why: &str) -> Node {
    Node {
        name: target.node.clone(),
        address: target.address.clone(),
        trouble: Some(why.to_owned()),
        ..Node::default()
    }
}

/// Numbers are floats on the wire; ours are whole.
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

fn node(target: &Target, now: &Samples, before: Option<(&Samples, f64)>) -> Node {
    let sum = |name| now.sum(name).map(whole);
    let rate = |name| {
        let (samples, seconds) = before.filter(|(_, seconds)| *seconds > 0.0)?;
        let (then, now) = (samples.sum(name)?, now.sum(name)?);
        // A daemon that has started again counts from 0.
        let more = if now < then { now } else { now - then };
        Some(whole(more / seconds))
    };
    let mut complaints = Vec::new();
    for (name, what) in [
        (
            "trackbed_cache_disks_out_of_service",
            "disks out of service",
        ),
        ("trackbed_csi_keeper_unusable", "keeper unusable"),
        ("trackbed_cache_fill_errors_total", "chunks undeliverable"),
        ("trackbed_cache_disk_corrupt_blocks_total", "damaged blocks"),
        ("trackbed_cache_scrub_lost_chunks_total", "chunks lost"),
    ] {
        if let Some(count) = sum(name).filter(|count| *count > 0) {
            complaints.push(format!("{what}: {count}"));
        }
    }
    Node {
        name: target.node.clone(),
        address: target.address.clone(),
        trouble: None,
        used_bytes: sum("trackbed_cache_used_bytes"),
        capacity_bytes: sum("trackbed_cache_disk_capacity_bytes"),
        hit_percent: hits(now),
        from_origins: rate("trackbed_cache_origin_read_bytes_total"),
        received: rate("trackbed_fabric_received_bytes_total"),
        sent: rate("trackbed_fabric_sent_bytes_total"),
        links: sum("trackbed_fabric_links_open"),
        complaints,
    }
}

fn hits(now: &Samples) -> Option<u64> {
    let sum = |name| now.sum(name).unwrap_or(0.0);
    let here =
        sum("trackbed_cache_peer_received_bytes_total") + sum("trackbed_cache_shared_bytes_total");
    let all = here + sum("trackbed_cache_origin_read_bytes_total");
    (all > 0.0).then(|| whole(here * 100.0 / all))
}

fn add_datasets(datasets: &mut BTreeMap<String, Dataset>, samples: &Samples) {
    let named = |name| {
        let samples = samples.of(name);
        samples.filter_map(|it| Some((it.label("dataset")?, whole(it.value))))
    };
    let present: BTreeMap<_, _> = named("trackbed_cache_dataset_present_bytes").collect();
    for (name, bytes) in named("trackbed_cache_dataset_bytes") {
        let present = present.get(name).copied().unwrap_or(0);
        let entry = datasets.entry(name.to_owned()).or_default();
        entry.name = name.to_owned();
        entry.bytes = entry.bytes.max(bytes);
        entry.present_bytes = entry.present_bytes.saturating_add(present);
        entry.nodes += usize::from(present > 0);
        entry.complete += usize::from(present >= bytes);
        let percent = match bytes {
            0 => 100,
            bytes => whole(present as f64 * 100.0 / bytes as f64).min(100),
        };
        entry.cached_percent = entry.cached_percent.max(percent);
    }
}

fn devices(target: &Target, samples: &Samples) -> Vec<Devices> {
    let mut found: BTreeMap<&str, Devices> = BTreeMap::new();
    for sample in samples.of("trackbed_deviceplugin_devices") {
        let Some(resource) = sample.label("resource") else {
            continue;
        };
        let row = found.entry(resource).or_default();
        match sample.label("health") {
            Some("healthy") => row.healthy += whole(sample.value),
            _ => row.unhealthy += whole(sample.value),
        }
    }
    for sample in samples.of("trackbed_deviceplugin_device_held") {
        let Some(resource) = sample.label("resource") else {
            continue;
        };
        let row = found.entry(resource).or_default();
        row.held += 1;
        if let (Some(namespace), Some(pod)) = (sample.label("namespace"), sample.label("pod")) {
            let pod = format!("{namespace}/{pod}");
            if !row.pods.contains(&pod) {
                row.pods.push(pod);
            }
        }
    }
    let named = found.into_iter().map(|(resource, row)| Devices {
        node: target.node.clone(),
        address: target.address.clone(),
        resource: resource.to_owned(),
        ..row
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraped(target: &str, seconds: u64, answer: Result<&str, &str>) -> Scraped {
        Scraped {
            target: target.parse().expect("a target"),
            at: Duration::from_secs(seconds),
            answer: answer
                .map(|text| Samples::parse(text).expect("metrics"))
                .map_err(str::to_owned),
        }
    }

    fn round(scrapes: Vec<Scraped>) -> Round {
        Round {
            scrapes,
            ..Round::default()
        }
    }

    fn agent(received: u64, origin: u64) -> String {
        format!(
            "trackbed_cache_used_bytes 50\ntrackbed_cache_disk_capacity_bytes{{disk=\"/a\"}} 60\n\
             trackbed_cache_disk_capacity_bytes{{disk=\"/b\"}} 40\ntrackbed_fabric_links_open 2\n\
             trackbed_fabric_received_bytes_total {received}\ntrackbed_fabric_sent_bytes_total 0\n\
             trackbed_cache_peer_received_bytes_total {received}\n\
             trackbed_cache_origin_read_bytes_total {origin}\n\
             trackbed_cache_fill_errors_total 3\n"
        )
    }

    #[test]
    fn rates_are_of_what_came_between_two_moments() {
        let before = round(vec![
            scraped("b=h:1", 10, Ok(&agent(1000, 0))),
            scraped("a=h:2", 10, Err("gone")),
        ]);
        let now = round(vec![
            scraped("b=h:1", 12, Ok(&agent(3000, 1000))),
            scraped("a=h:2", 12, Ok(&agent(7, 0))),
        ]);
        let view = view(&before, &now);
        let [a, b] = &view.nodes[..] else {
            panic!("{view:?}");
        };
        assert_eq!((b.received, b.sent), (Some(1000), Some(0)));
        assert_eq!(b.from_origins, Some(500));
        assert_eq!((b.used_bytes, b.capacity_bytes), (Some(50), Some(100)));
        assert_eq!((b.hit_percent, b.links), (Some(75), Some(2)));
        assert_eq!(b.complaints, ["chunks undeliverable: 3"]);
        // It did not answer before.
        assert_eq!((a.name.as_str(), a.received), ("a", None));
    }

    #[test]
    fn an_agent_that_started_again_counts_from_nothing() {
        let before = round(vec![scraped("h:1", 0, Ok(&agent(1_000_000, 0)))]);
        let now = round(vec![scraped("h:1", 2, Ok(&agent(500, 0)))]);
        assert_eq!(view(&before, &now).nodes[0].received, Some(250));
        // Two answers of one moment tell no rate.
        assert_eq!(view(&now, &now).nodes[0].received, None);
    }

    #[test]
    fn who_does_not_answer_is_shown_with_the_reason() {
        let now = round(vec![
            scraped("n1=h:1", 2, Err("nobody listens there")),
            scraped("n2=h:1", 2, Ok("trackbed_something 1")),
        ]);
        let view = view(&Round::default(), &now);
        let said: Vec<_> = view
            .nodes
            .iter()
            .map(|it| (it.name.as_str(), it.trouble.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(said[0], ("n1", "nobody listens there"));
        assert!(said[1].1.contains("no numbers"), "{said:?}");
    }

    #[test]
    fn datasets_are_counted_over_all_nodes() {
        let holds = |cats: u64| {
            format!(
                "trackbed_cache_used_bytes 1\n\
                 trackbed_cache_dataset_bytes{{dataset=\"cats\"}} 200\n\
                 trackbed_cache_dataset_present_bytes{{dataset=\"cats\"}} {cats}\n\
                 trackbed_cache_dataset_bytes{{dataset=\"empty\"}} 0\n"
            )
        };
        let texts = [holds(0), holds(50), holds(200)];
        let scrapes = texts.iter().zip(["a:1", "b:1", "c:1"]);
        let now = round(scrapes.map(|(text, at)| scraped(at, 1, Ok(text))).collect());
        let cats = &view(&Round::default(), &now).datasets[0];
        let wanted = Dataset {
            name: "cats".into(),
            bytes: 200,
            cached_percent: 100,
            nodes: 2,
            complete: 1,
            present_bytes: 250,
        };
        assert_eq!(*cats, wanted);
    }

    #[test]
    fn devices_are_counted_by_resource_with_the_pods_that_have_some() {
        let text = "trackbed_deviceplugin_allocations_total 2\n\
                    trackbed_deviceplugin_devices{resource=\"t/vf\",health=\"healthy\"} 7\n\
                    trackbed_deviceplugin_devices{resource=\"t/vf\",health=\"unhealthy\"} 1\n\
                    trackbed_deviceplugin_device_held{resource=\"t/vf\",device=\"1\",namespace=\"n\",pod=\"p\"} 1\n\
                    trackbed_deviceplugin_device_held{resource=\"t/vf\",device=\"2\",namespace=\"n\",pod=\"p\"} 1\n";
        let mut gone = scraped("n2=h:2", 1, Err("gone"));
        gone.target.role = Some(Role::DevicePlugin);
        let now = round(vec![scraped("n1=h:1", 1, Ok(text)), gone.clone()]);
        let shown = view(&Round::default(), &now);
        assert!(shown.nodes.is_empty());
        let row = &shown.devices[0];
        assert_eq!((row.healthy, row.unhealthy, row.held), (7, 1, 2));
        assert_eq!((row.node.as_str(), row.resource.as_str()), ("n1", "t/vf"));
        assert_eq!(row.pods, ["n/p"]);
        assert_eq!(shown.devices[1].trouble.as_deref(), Some("gone"));
        // Where no device plugin answers there is none.
        let shown = view(&Round::default(), &round(vec![gone]));
        assert!(shown.devices.is_empty());
    }
}
