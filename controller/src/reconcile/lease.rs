//! Who leads: the holder of a Lease.
//!
//! As Kubernetes' own controllers do it: a Lease that its holder has not renewed for its whole time, by the
//! watch of who looks and not by the holder's, may be taken. The holder stops acting well before others may
//! take it, by its own watch, so that clocks that differ or jump do no harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{CallError, Metrics};

/// Where the Lease is, and its times.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What this controller is called.
    pub identity: String,
    /// How long others wait for a sign of the holder.
    pub duration: Duration,
    /// How long the holder acts after its last sign: less than `duration`.
    pub act_for: Duration,
    /// From one sign to the next.
    pub renew_every: Duration,
}

impl LeaseSettings {
    /// The usual times, of 15, 10 and 2 s.
    pub fn new(namespace: &str, identity: &str) -> LeaseSettings {
        LeaseSettings {
            namespace: namespace.to_owned(),
            name: "trackbed-controller".to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(15),
            act_for: Duration::from_secs(10),
            renew_every: Duration::from_secs(2),
        }
    }
}

/// Until when this controller is sure to lead.
#[derive(Debug, Default)]
pub(super) struct Leadership {
    until: Mutex<Option<Instant>>,
}

impl Leadership {
    pub(super) fn is_sure(&self) -> bool {
        self.until
            .lock()
            .is_some_and(|until| Instant::now() < until)
    }

    fn set(&self, until: Option<Instant>) {
        *self.until.lock() = until;
    }
}

/// What was seen of a Lease, and since when it has been so.
struct Sighting {
    holder: Option<String>,
    renewed: Option<Timestamp>,
    term: i32,
    since: Instant,
}

/// A candidate for a Lease, or its holder.
pub(super) struct Elector {
    api: Api<Lease>,
    settings: LeaseSettings,
    metrics: Arc<Metrics>,
    seen: Option<Sighting>,
}

impl Elector {
    pub(super) fn new(client: Client, settings: LeaseSettings, metrics: Arc<Metrics>) -> Elector {
        Elector {
            api: Api::namespaced(client, &settings.namespace),
            settings,
            metrics,
            seen: None,
        }
    }

    /// Waits until the Lease is this controller's; gives the term.
    pub(super) async fn win(&mut self, leadership: &Leadership) -> i64 {
        loop {
            match self.attempt(leadership, true).await {
                Ok(Some(term)) => return term,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the Lease can't be looked at"),
            }
            tokio::time::sleep(self.settings.renew_every).await;
        }
    }

    /// Renews the Lease until it is lost.
    pub(super) async fn hold(&mut self, leadership: &Leadership) {
        loop {
            tokio::time::sleep(self.settings.renew_every).await;
            match self.attempt(leadership, false).await {
                Ok(Some(_)) => {}
                Ok(None) => return leadership.set(None),
                Err(error) => tracing::warn!(%error, "the Lease can't be renewed"),
            }
            if !leadership.is_sure() {
                return leadership.set(None);
            }
        }
    }

    /// Gives the Lease back, so that another controller need not wait.
    pub(super) async fn resign(&mut self, leadership: &Leadership) {
        leadership.set(None);
        let Ok(Some(mut lease)) = self.get().await else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.settings.identity) {
            spec.holder_identity = None;
            // Others take it when its time is over, if this fails.
            let _ = self.replace(&lease).await;
        }
    }

    /// Takes or renews the Lease if that may be; gives the term if it is this controller's.
    async fn attempt(
        &mut self,
        leadership: &Leadership,
        candidate: bool,
    ) -> Result<Option<i64>, CallError> {
        let began = Instant::now();
        let found = self.get().await?;
        self.metrics.heard();
        let mut lease = found.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let spec = lease.spec.get_or_insert_default();
        let holder = spec
            .holder_identity
            .clone()
            .filter(|holder| !holder.is_empty());
        let own = holder.as_deref() == Some(&self.settings.identity);
        if !own && (!candidate || !self.may_take(spec, holder)) {
            return Ok(None);
        }
        let now = MicroTime(Timestamp::now());
        // What this identity did before it died is not known: it begins a term too.
        if !own || candidate {
            spec.holder_identity = Some(self.settings.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds =
            Some(i32::try_from(self.settings.duration.as_secs().max(1)).unwrap_or(i32::MAX));
        let term = spec.lease_transitions.unwrap_or(0);
        let written = match lease.metadata.resource_version {
            Some(_) => self.replace(&lease).await,
            None => self.create(&lease).await,
        };
        match written {
            Ok(()) => {
                leadership.set(Some(began + self.settings.act_for));
                Ok(Some(term.into()))
            }
            // Another one was quicker.
            Err(error) if error.code() == Some(409) && candidate => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether nobody holds the Lease, or its holder gave no sign for all its time.
    fn may_take(&mut self, spec: &LeaseSpec, holder: Option<String>) -> bool {
        let renewed = spec.renew_time.as_ref().map(|time| time.0);
        let term = spec.lease_transitions.unwrap_or(0);
        let same = self.seen.as_ref().is_some_and(|seen| {
            seen.holder == holder && seen.renewed == renewed && seen.term == term
        });
        if !same {
            self.seen = Some(Sighting {
                holder: holder.clone(),
                renewed,
                term,
                since: Instant::now(),
            });
        }
        let seconds = spec
            .lease_duration_seconds
            .and_then(|it| u64::try_from(it).ok());
        let duration = seconds.map_or(self.settings.duration, Duration::from_secs);
        let silent = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.since.elapsed() >= duration);
        holder.is_none() || silent
    }

    async fn get(&self) -> Result<Option<Lease>, CallError> {
        self.answered(self.api.get_opt(&self.settings.name)).await
    }

    async fn create(&self, lease: &Lease) -> Result<(), CallError> {
        let how = PostParams::default();
        self.answered(self.api.create(&how, lease)).await.map(drop)
    }

    async fn replace(&self, lease: &Lease) -> Result<(), CallError> {
        let how = PostParams::default();
        let call = self.api.replace(&self.settings.name, &how, lease);
        self.answered(call).await.map(drop)
    }

    /// An answer that comes after others may lead is none.
    async fn answered<T>(
        &self,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, CallError> {
        match timeout(self.settings.act_for / 2, call).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(CallError::Late),
        }
    }
}
