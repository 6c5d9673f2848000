//! Asking all of them, again and again: daemons at once, the API server and the registry now and then.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use kube::Client;
use tokio::time::timeout;
use trackbed_cache::Registry;
use trackbed_cache::registry::FileRegistry;
use trackbed_controller::api::CacheNode;
use trackbed_controller::reconcile::list_all;

use super::scrape::scrape;
use super::target::{Ports, Target};
use super::view::{Round, Scraped};
use crate::node::kubernetes::reason;
use crate::queue::{self, Shown as Job};

/// Daemons that are asked at the same time. As each has two seconds at most, some that are gone hold nobody up.
const AT_A_TIME: usize = 256;

/// From one question to the API server or the registry to the next.
const LISTS_EVERY: Duration = Duration::from_secs(5);

/// How long these may take.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

/// Whom to ask.
pub(crate) struct Sources {
    /// Daemons that were named.
    pub(crate) named: Vec<Target>,
    /// The folder of a registry, whose members' daemons are asked.
    pub(crate) registry: Option<PathBuf>,
    /// An API server, whose CacheNodes' daemons are asked.
    pub(crate) cluster: Option<Client>,
    pub(crate) ports: Ports,
}

/// Asks, and remembers what is not asked for each time.
pub(crate) struct Gatherer {
    sources: Sources,
    started: Instant,
    listed: Option<Instant>,
    /// Daemons that the registry and the API server have told of, and the jobs.
    found: Vec<Target>,
    jobs: Option<Vec<Job>>,
    troubles: Vec<String>,
}

impl Gatherer {
    pub(crate) fn new(sources: Sources) -> Gatherer {
        Gatherer {
            sources,
            started: Instant::now(),
            listed: None,
            found: Vec::new(),
            jobs: None,
            troubles: Vec::new(),
        }
    }

    /// Asks all once.
    pub(crate) async fn round(&mut self) -> Round {
        if self.listed.is_none_or(|at| at.elapsed() >= LISTS_EVERY) {
            self.list().await;
            self.listed = Some(Instant::now());
        }
        let mut targets = self.sources.named.clone();
        targets.extend(self.found.iter().cloned());
        targets.sort();
        targets.dedup();
        let started = self.started;
        let scrapes = stream::iter(targets).map(|target| async move {
            let answer = scrape(&target).await;
            Scraped {
                target,
                at: started.elapsed(),
                answer,
            }
        });
        Round {
            scrapes: scrapes.buffer_unordered(AT_A_TIME).collect().await,
            jobs: self.jobs.clone(),
            troubles: self.troubles.clone(),
        }
    }

    /// Looks who is there, and what waits. What can't be asked now stays as it was.
    async fn list(&mut self) {
        let (mut found, mut troubles) = (Vec::new(), Vec::new());
        if let Some(folder) = self.sources.registry.clone() {
            match members(folder, self.sources.ports).await {
                Ok(targets) => found.extend(targets),
                Err(why) => troubles.push(why),
            }
        }
        if let Some(client) = self.sources.cluster.clone() {
            let ports = self.sources.ports;
            let (nodes, jobs) = tokio::join!(nodes(&client, ports), jobs(&client));
            match nodes {
                Ok(targets) => found.extend(targets),
                Err(why) => troubles.push(why),
            }
            match jobs {
                Ok(jobs) => self.jobs = Some(jobs),
                Err(why) => troubles.push(why),
            }
        }
        if !troubles.is_empty() {
            found.append(&mut self.found);
        }
        self.found = found;
        self.troubles = troubles;
    }
}

async fn members(folder: PathBuf, ports: Ports) -> Result<Vec<Target>, String> {
    let place = folder.display().to_string();
    // A folder may be of a network.
    let looking = tokio::task::spawn_blocking(move || FileRegistry::open(&folder)?.members());
    match timeout(LISTED_WITHIN, looking).await {
        Ok(Ok(Ok(members))) => Ok(Target::of_members(&members, ports)),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(error)) => Err(format!("the registry {place}: {error}")),
        Err(_) => Err(format!(
            "the registry {place} does not answer: look at the file system it is on"
        )),
    }
}

async fn nodes(client: &Client, ports: Ports) -> Result<Vec<Target>, String> {
    let listed = timeout(LISTED_WITHIN, list_all::<CacheNode>(client)).await;
    match listed {
        Ok(Ok(nodes)) => Ok(Target::of_nodes(&nodes, ports)),
        Ok(Err(error)) => Err(format!("listing nodes: {}", reason(&error))),
        Err(_) => Err("listing nodes: the API server does not answer".to_owned()),
    }
}

async fn jobs(client: &Client) -> Result<Vec<Job>, String> {
    let listed = timeout(LISTED_WITHIN, queue::jobs(client)).await;
    match listed {
        Ok(Ok(jobs)) => Ok(queue::in_order(jobs, None, false)),
        Ok(Err(failure)) => Err(failure.to_string()),
        Err(_) => Err("listing jobs: the API server does not answer".to_owned()),
    }
}

/// A round that others look at.
pub(crate) type Latest = Arc<(Round, Round)>;

/// Asks at this pace for ever, and gives each time the round before and this one.
pub(crate) async fn go_on(
    mut gatherer: Gatherer,
    every: Duration,
    newest: tokio::sync::watch::Sender<Option<Latest>>,
) {
    let mut pace = tokio::time::interval(every);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Round::default();
    loop {
        pace.tick().await;
        let now = gatherer.round().await;
        let both = (std::mem::replace(&mut before, now.clone()), now);
        newest.send_replace(Some(Arc::new(both)));
    }
}
