//! What a dataset's status is to say: a function of the objects and of what its lead knows.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use trackbed_controller::api::{
    CacheNode, CachedDataset, CachedOn, Dataset, DatasetStatus, Phase, READY, WARMED, WarmUp,
};

use super::view::View;

/// The most nodes that a status names.
const MAX_NODES: usize = 1000;
/// The longest reason that is repeated in a condition, in characters.
const MAX_MESSAGE: usize = 1000;

/// What the lead of a dataset knows.
pub(super) struct Facts<'a> {
    pub(super) dataset: &'a Dataset,
    /// The nodes whose heartbeats have not stopped.
    pub(super) nodes: &'a [CacheNode],
    /// Its origin is being listed.
    pub(super) listing: bool,
    /// It is, or is to be as soon as other listings leave it a turn.
    pub(super) due: bool,
    /// Why it cannot be listed, if so.
    pub(super) trouble: Option<&'a str>,
    /// The refresh that was listed last, if this node knows it better than the status.
    pub(super) listed_refresh: Option<i64>,
    pub(super) now: Time,
}

impl Facts<'_> {
    /// Whether there may be a newer version soon: one is asked for, or to be made of another origin.
    fn refreshing(&self) -> bool {
        self.due && self.trouble.is_none()
    }
}

/// Whether a node is to warm a dataset.
pub(super) fn selects(warm_up: &WarmUp, node: &CacheNode) -> bool {
    let mut wanted = warm_up.node_selector.iter();
    wanted.all(|(label, value)| node.labels().get(label) == Some(value))
}

/// The status, without the fields that go with a version.
pub(super) fn judge(facts: &Facts<'_>) -> DatasetStatus {
    let Facts { dataset, nodes, .. } = *facts;
    let before = dataset.status.clone().unwrap_or_default();
    let shown = dataset.shown_version();
    let namespace = dataset.namespace().unwrap_or_default();
    let name = dataset.name_any();
    let told: Vec<(&CacheNode, &CachedDataset)> = nodes
        .iter()
        .filter_map(|node| Some((node, View::told(node, &namespace, &name)?)))
        .filter(|(_, told)| Some(told.version.as_str()) == shown)
        .collect();
    let warm_up = dataset.spec.warm_up.as_ref();
    let warming =
        warm_up.map(|warm_up| warming(warm_up, dataset.metadata.generation, nodes, &told));
    let most = told
        .iter()
        .map(|(_, told)| percent(told.bytes_present, told.bytes))
        .max();
    let mut cached: Vec<_> = told
        .iter()
        .filter(|(_, told)| told.bytes_present > 0)
        .map(|(node, told)| CachedOn {
            node: node.name_any(),
            bytes: told.bytes_present,
            percent: percent(told.bytes_present, told.bytes),
        })
        .collect();
    cached.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.node.cmp(&b.node)));
    cached.truncate(MAX_NODES);
    cached.sort_by(|a, b| a.node.cmp(&b.node));
    let phase = match (&shown, &warming) {
        (None, _) if facts.listing => Phase::Listing,
        (None, _) if facts.trouble.is_some() => Phase::Failed,
        (None, _) => Phase::Pending,
        (Some(_), _) if facts.refreshing() => Phase::Listing,
        (Some(_), None) => Phase::Ready,
        (Some(_), Some(warming)) if warming.is_done() => Phase::Warm,
        (Some(_), Some(_)) => Phase::Warming,
    };
    let mut conditions = vec![ready(facts, shown)];
    conditions.extend(warming.as_ref().map(|warming| {
        if facts.refreshing() {
            let why = "a newer version is being made of what is at its origin";
            condition(WARMED, false, "Refreshing", why.into())
        } else {
            warming.condition()
        }
    }));
    for condition in &mut conditions {
        condition.observed_generation = dataset.metadata.generation;
        let same =
            |old: &&Condition| old.type_ == condition.type_ && old.status == condition.status;
        let since = before.conditions.iter().find(same);
        condition.last_transition_time = since
            .map_or(&facts.now, |old| &old.last_transition_time)
            .clone();
    }
    DatasetStatus {
        observed_generation: dataset.metadata.generation,
        phase: Some(phase),
        listed_refresh: facts.listed_refresh.or(before.listed_refresh),
        bytes: told
            .iter()
            .map(|(_, told)| told.bytes)
            .max()
            .or(before.bytes)
            .filter(|_| shown.is_some()),
        cached_percent: shown.map(|_| warming.as_ref().map_or(most.unwrap_or(0), |it| it.percent)),
        warm_nodes: warming.as_ref().map(|warming| warming.done),
        selected_nodes: warming.as_ref().map(|warming| warming.selected),
        nodes: cached,
        conditions,
        ..DatasetStatus::default()
    }
}

/// How a warm-up is going.
struct Warming {
    selected: i32,
    done: i32,
    percent: i32,
    /// A node and why it could not, and how many there are.
    troubled: Option<(String, usize)>,
}

fn warming(
    warm_up: &WarmUp,
    generation: Option<i64>,
    nodes: &[CacheNode],
    told: &[(&CacheNode, &CachedDataset)],
) -> Warming {
    let chosen: Vec<_> = nodes.iter().filter(|node| selects(warm_up, node)).collect();
    let mut warming = Warming {
        selected: i32::try_from(chosen.len()).unwrap_or(i32::MAX),
        done: 0,
        percent: 0,
        troubled: None,
    };
    let mut sum = 0;
    for node in &chosen {
        let name = node.name_any();
        let Some((_, told)) = told.iter().find(|(teller, _)| teller.name_any() == name) else {
            continue;
        };
        if told.warmed_generation == generation && generation.is_some() {
            warming.done += 1;
            sum += 100;
            continue;
        }
        let part = i64::from(warm_up.percent.unwrap_or(100));
        let wanted = (i128::from(told.bytes) * i128::from(part) / 100) as i64;
        // Not all of it, as the node has not said so.
        sum += i64::from(percent(told.bytes_present, wanted).min(99));
        if let Some(why) = &told.trouble {
            let count = warming.troubled.as_ref().map_or(0, |(_, count)| *count) + 1;
            let first = warming.troubled.take().map(|(first, _)| first);
            warming.troubled = Some((first.unwrap_or_else(|| format!("{name}: {why}")), count));
        }
    }
    warming.percent = i32::try_from(sum / i64::from(warming.selected.max(1))).unwrap_or(0);
    warming
}

impl Warming {
    fn is_done(&self) -> bool {
        self.selected > 0 && self.done == self.selected
    }

    fn condition(&self) -> Condition {
        let Warming { selected, done, .. } = self;
        let so_far = format!("{done} of {selected} nodes have all that is to be warmed");
        match &self.troubled {
            _ if self.is_done() => condition(WARMED, true, "Complete", so_far),
            _ if *selected == 0 => condition(
                WARMED,
                false,
                "NoNode",
                "no CacheNode has the labels of spec.warmUp.nodeSelector: correct it, or label one"
                    .into(),
            ),
            Some((first, count)) => condition(
                WARMED,
                false,
                "Trouble",
                format!("{so_far}; {count} cannot: {first}"),
            ),
            None => condition(WARMED, false, "Warming", so_far),
        }
    }
}

fn ready(facts: &Facts<'_>, shown: Option<&str>) -> Condition {
    match (shown, facts.trouble) {
        (Some(version), None) => condition(READY, true, "Listed", format!("version {version}")),
        (Some(version), Some(why)) => condition(
            READY,
            true,
            "RefreshFailed",
            format!("version {version} goes on being shown, a newer one could not be made: {why}"),
        ),
        (None, _) if facts.listing => {
            condition(READY, false, "Listing", "its origin is being listed".into())
        }
        (None, Some(why)) => condition(READY, false, "OriginFailed", why.to_owned()),
        (None, None) => condition(READY, false, "Pending", "it waits to be listed".into()),
    }
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> Condition {
    let mut shortened: String = message.chars().take(MAX_MESSAGE).collect();
    if shortened.len() < message.len() {
        shortened.push('…');
    }
    Condition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: shortened,
        observed_generation: None,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    }
}

/// Rounded down, so that 100 is all. All of nothing is 100 too.
fn percent(part: i64, whole: i64) -> i32 {
    let share = (i128::from(part.max(0)) * 100).checked_div(i128::from(whole.max(0)));
    share.map_or(100, |share| i32::try_from(share.min(100)).unwrap_or(100))
}

#[cfg(test)]
mod tests;
