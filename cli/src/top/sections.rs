//! The view as words: four tables, for a terminal that is drawn and for one that is printed to.

use super::view::View;
use crate::size::Size;

/// A table with its title.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// In a few words, how all of it is.
    pub(crate) summary: String,
    pub(crate) header: &'static [&'static str],
    pub(crate) rows: Vec<Row>,
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    /// Whether somebody should look after it.
    pub(crate) bad: bool,
}

/// The tables that there is something for.
pub(crate) fn sections(view: &View) -> Vec<Section> {
    let mut sections = vec![nodes(view), datasets(view)];
    if !view.devices.is_empty() {
        sections.push(devices(view));
    }
    sections.extend(jobs(view));
    sections
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| Size(bytes).to_string())
}

fn rate(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| format!("{}/s", Size(bytes)))
}

fn number(count: Option<u64>) -> String {
    count.map_or("-".to_owned(), |count| count.to_string())
}

/// Pods' names and reasons come from others: nothing in them may steer a terminal.
fn plain(text: &str) -> String {
    let plain = |at: char| if at.is_control() { ' ' } else { at };
    text.chars().map(plain).collect()
}

fn row(bad: bool, cells: impl Into<Vec<String>>) -> Row {
    let cells: Vec<String> = cells.into();
    Row {
        cells: cells.iter().map(|cell| plain(cell)).collect(),
        bad,
    }
}

fn nodes(view: &View) -> Section {
    let rows = view.nodes.iter().map(|node| {
        let mut remarks = node.complaints.clone();
        remarks.extend(node.trouble.clone());
        let hits = node.hit_percent.map(|percent| format!("{percent}%"));
        row(
            !remarks.is_empty(),
            [
                node.name.clone(),
                size(node.used_bytes),
                size(node.capacity_bytes),
                hits.unwrap_or("-".to_owned()),
                rate(node.from_origins),
                rate(node.received),
                rate(node.sent),
                number(node.links),
                remarks.join(", "),
            ],
        )
    });
    let up = view.nodes.iter().filter(|node| node.trouble.is_none());
    let sum = |of: fn(&super::view::Node) -> Option<u64>| {
        let rates: Vec<u64> = view.nodes.iter().filter_map(of).collect();
        let sum = rates.iter().copied().fold(0, u64::saturating_add);
        rate((!rates.is_empty()).then_some(sum))
    };
    Section {
        title: "NODES",
        summary: format!(
            "{} of {} answer, {} between them, {} from origins",
            up.count(),
            view.nodes.len(),
            sum(|node| node.received),
            sum(|node| node.from_origins)
        ),
        header: &[
            "NODE", "CACHED", "CAPACITY", "HIT", "ORIGIN", "RECEIVED", "SENT", "LINKS", "REMARKS",
        ],
        rows: rows.collect(),
    }
}

fn datasets(view: &View) -> Section {
    let rows = view.datasets.iter().map(|dataset| {
        row(
            false,
            [
                dataset.name.clone(),
                Size(dataset.bytes).to_string(),
                format!("{}%", dataset.cached_percent),
                dataset.nodes.to_string(),
                dataset.complete.to_string(),
                Size(dataset.present_bytes).to_string(),
            ],
        )
    });
    Section {
        title: "DATASETS",
        summary: view.datasets.len().to_string(),
        header: &["DATASET", "SIZE", "CACHED", "NODES", "COMPLETE", "ON DISKS"],
        rows: rows.collect(),
    }
}

fn devices(view: &View) -> Section {
    let rows = view.devices.iter().map(|it| {
        let remarks = match &it.trouble {
            Some(why) => why.clone(),
            None => it.pods.join(", "),
        };
        let count = |count: u64| match it.trouble {
            Some(_) => "-".to_owned(),
            None => count.to_string(),
        };
        row(
            it.trouble.is_some() || it.unhealthy > 0,
            [
                it.node.clone(),
                it.resource.clone(),
                count(it.healthy),
                count(it.unhealthy),
                count(it.held),
                remarks,
            ],
        )
    });
    let sum = |of: fn(&super::view::Devices) -> u64| view.devices.iter().map(of).sum::<u64>();
    Section {
        title: "DEVICES",
        summary: format!(
            "{} fit, {} not, {} in pods",
            sum(|it| it.healthy),
            sum(|it| it.unhealthy),
            sum(|it| it.held)
        ),
        header: &["NODE", "RESOURCE", "FIT", "UNFIT", "IN PODS", "PODS"],
        rows: rows.collect(),
    }
}

fn jobs(view: &View) -> Option<Section> {
    let jobs = view.jobs.as_ref()?;
    let waiting = jobs.iter().filter(|job| job.waits_since.is_some()).count();
    let rows = jobs.iter().map(|job| {
        row(
            false,
            [
                format!("{}/{}", job.namespace, job.name),
                job.phase(),
                format!("{}/{}", job.active, job.pods),
                job.attempt.to_string(),
                job.waits(),
                job.message.clone().unwrap_or_default(),
            ],
        )
    });
    Some(Section {
        title: "JOBS",
        summary: format!("{} wait, {} do not", waiting, jobs.len() - waiting),
        header: &["JOB", "PHASE", "ACTIVE", "ATTEMPT", "WAITS", "WHY"],
        rows: rows.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Shown;
    use crate::top::view::{Devices, Node};

    #[test]
    fn what_wants_looking_after_is_marked_and_totals_are_told() {
        let node = |name: &str, received, trouble: Option<&str>| Node {
            name: name.into(),
            received,
            trouble: trouble.map(str::to_owned),
            ..Node::default()
        };
        let view = View {
            nodes: vec![
                node("a", Some(1 << 20), None),
                node("b", Some(1 << 20), None),
                node("c", None, Some("gone")),
            ],
            devices: vec![Devices {
                unhealthy: 1,
                ..Devices::default()
            }],
            ..View::default()
        };
        let sections = sections(&view);
        assert_eq!(sections.len(), 3, "no API server, so no jobs");
        let nodes = &sections[0];
        assert!(
            nodes.summary.contains("2 of 3 answer, 2.0 MiB/s"),
            "{nodes:?}"
        );
        let bad: Vec<_> = nodes.rows.iter().map(|row| row.bad).collect();
        assert_eq!(bad, [false, false, true]);
        assert!(sections[2].rows[0].bad);
        for section in &sections {
            let wide = section
                .rows
                .iter()
                .all(|row| row.cells.len() == section.header.len());
            assert!(wide, "{section:?}");
        }
    }

    #[test]
    fn a_gang_s_reason_is_shown_and_steers_no_terminal() {
        let job = Shown {
            namespace: "vision".into(),
            name: "wide".into(),
            kind: "trackbed.io",
            team: "vision".into(),
            priority: 0,
            phase: None,
            attempt: 0,
            pods: 2,
            active: 0,
            queued_at: None,
            message: Some("8 are missing\u{1b}[2J".into()),
            waits_since: Some(0),
        };
        let view = View {
            jobs: Some(vec![job]),
            ..View::default()
        };
        let sections = sections(&view);
        let jobs = &sections[2];
        assert_eq!(jobs.summary, "1 wait, 0 do not");
        let cells = &jobs.rows[0].cells;
        assert_eq!(
            (&*cells[0], &*cells[1], &*cells[5]),
            ("vision/wide", "Unseen", "8 are missing [2J")
        );
    }
}
