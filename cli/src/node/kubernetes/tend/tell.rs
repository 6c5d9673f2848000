//! What a node tells the API server: of itself, of what it holds, and, where it leads, of datasets.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::timeout;
use trackbed_cache::DatasetName;
use trackbed_controller::api::{CacheNode, CachedDataset, Dataset, DatasetStatus};

use super::super::announce::{self, answered, signed};
use super::super::judge::{Facts, judge};
use super::super::view::object_of;
use super::super::{ANSWER_WITHIN, KEEPER_OF_STATUS};
use super::{SOON, Tender, goal};

impl Tender {
    /// What this node has to tell of a dataset.
    pub(super) async fn holding(
        &self,
        name: &DatasetName,
        dataset: &Dataset,
    ) -> Option<CachedDataset> {
        let record = self.agent.dataset(name).ok().flatten()?;
        let tended = self.tended.get(name)?;
        let trouble = tended
            .warm_trouble
            .as_ref()
            .map(|trouble| trouble.why.clone());
        let (namespace, object) = object_of(name)?;
        let mut told = CachedDataset {
            namespace: namespace.to_owned(),
            name: object.to_owned(),
            version: record.version.to_string(),
            bytes: 0,
            bytes_present: 0,
            native: false,
            warmed_generation: None,
            trouble,
        };
        if !self.agent.holds(record.version) {
            return told.trouble.is_some().then_some(told);
        }
        // From the disk: nobody else is asked.
        match self.agent.look_at(name, Some(record.version)).await {
            Ok(open) => {
                let progress = open.progress();
                told.bytes = signed(progress.bytes);
                told.bytes_present = signed(progress.bytes_present);
                told.native = open.showable().is_native();
            }
            Err(error) => told.trouble = Some(error.to_string()),
        }
        let own = self.registry.look(|view| view.own_node().cloned());
        let goal = goal(dataset, own.as_ref());
        let warmed = goal.is_some() && goal == tended.warmed;
        told.warmed_generation = dataset.metadata.generation.filter(|_| warmed);
        Some(told)
    }

    /// Tells of this node if it is time.
    pub(super) async fn tell(&mut self, report: bool, told: Vec<CachedDataset>) {
        let news = |told: &[CachedDataset]| {
            let news = told
                .iter()
                .map(|it| (it.name.clone(), it.warmed_generation, it.trouble.clone()));
            news.collect::<Vec<_>>()
        };
        let settled = self.told_at.is_none_or(|at| at.elapsed() >= SOON);
        let due = report || (settled && news(&told) != news(&self.told));
        if !due {
            return;
        }
        let disks = self.agent.disks();
        let there = self
            .registry
            .look(|view| !view.is_whole() || view.own_node().is_some());
        let mut done = Ok(());
        if !self.announced || !there {
            let object = announce::object(&self.registry, &disks);
            done = announce::apply(&self.registry, &object).await;
            self.announced = done.is_ok();
        }
        if done.is_ok() {
            let status = announce::status(&self.registry, &disks, &told);
            done = announce::apply_status(&self.registry, &status).await;
        }
        match done {
            Ok(()) => (self.told, self.told_at) = (told, Some(Instant::now())),
            Err(why) => tracing::warn!(why, "the API server does not take this node's report"),
        }
    }

    /// Writes a dataset's status if it says something else by now.
    pub(super) async fn write_if_due(
        &mut self,
        name: &DatasetName,
        dataset: &Dataset,
        nodes: &[CacheNode],
    ) {
        let every = self.registry.config().report_every;
        let tended = self.tended.entry(name.clone()).or_default();
        let facts = Facts {
            dataset,
            nodes,
            listing: tended.listing.is_some(),
            due: tended.due,
            trouble: tended
                .list_trouble
                .as_ref()
                .map(|trouble| trouble.why.as_str()),
            listed_refresh: tended.listed_refresh,
            now: Time(Timestamp::now()),
        };
        let status = judge(&facts);
        let before = dataset.status.clone().unwrap_or_default();
        // The fields of a version are written with it.
        let as_told = DatasetStatus {
            version: before.version.clone(),
            earlier_versions: before.earlier_versions.clone(),
            origin: before.origin.clone(),
            volume_dataset: before.volume_dataset.clone(),
            ..status.clone()
        };
        if as_told == before {
            return;
        }
        if let Some((at, written)) = &tended.written {
            let turned = written.phase != status.phase
                || written.observed_generation != status.observed_generation;
            let wait = if turned { SOON.min(every) } else { every };
            if at.elapsed() < wait {
                return;
            }
        }
        tended.written = Some((Instant::now(), status.clone()));
        let Some((namespace, object)) = object_of(name) else {
            return;
        };
        let patch = json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
            "metadata": { "name": object, "uid": dataset.metadata.uid }, "status": status });
        let api: Api<Dataset> = Api::namespaced(self.registry.client(), namespace);
        let how = PatchParams::apply(KEEPER_OF_STATUS).force();
        let called = timeout(
            ANSWER_WITHIN,
            api.patch_status(object, &how, &Patch::Apply(patch)),
        )
        .await;
        if let Err(why) = answered(called) {
            tracing::warn!(dataset = %name, why, "a dataset's status can't be written");
        }
    }
}
