//! Carries out what a step says: the status first, then the rest.

use futures::future::join_all;
use futures::{StreamExt, TryFutureExt, stream};
use k8s_openapi::api::core::v1::{Event as EventObject, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use tokio::time::timeout;

use super::lead::Shared;
use super::world::{Change, Kind};
use super::{ANSWER_WITHIN, CallError, MANAGER};
use crate::api::{Caffe2Job, Dataset, KubeflowCaffe2Job};
use crate::job::{
    Action, Event, FINALIZER, Job, JobKind, Step, release_patch, service, service_name,
};

/// How many calls a job has under way at a time.
const AT_ONCE: usize = 8;

/// Who acts, on what.
pub(super) struct Actor<'a> {
    pub(super) client: &'a Client,
    pub(super) shared: &'a Shared,
    pub(super) job: &'a Job,
    /// The version of the job's object that the step was made of.
    pub(super) version: Option<String>,
}

impl Actor<'_> {
    /// Writes the status, and if that is done, does the rest. Gives the first thing that went wrong, having
    /// tried all.
    #[tracing::instrument(
        target = "trackbed_traces",
        name = "job.act",
        skip_all,
        fields(namespace = self.job.key.namespace, job = self.job.key.name),
        err
    )]
    pub(super) async fn act(&self, step: Step) -> Result<(), CallError> {
        if step.status != self.job.status {
            match self.job.key.kind {
                JobKind::Trackbed => self.write_status::<Caffe2Job>(&step).await?,
                JobKind::Kubeflow => self.write_status::<KubeflowCaffe2Job>(&step).await?,
            }
            let shared = self.shared;
            let now = shared.clock.now();
            shared.metrics.wrote(&self.job.status, &step, now);
        }
        let told = step.events.into_iter().map(|event| self.tell(event));
        let acts = step
            .actions
            .into_iter()
            .map(|action| self.carry_out(action));
        let acts = stream::iter(acts.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        let (done, _) = tokio::join!(acts.collect::<Vec<_>>(), join_all(told.collect::<Vec<_>>()));
        done.into_iter().collect()
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
        if !self.shared.leadership.is_sure() {
            return Err(CallError::NotLeading);
        }
        let answer = match timeout(ANSWER_WITHIN, call).await {
            Ok(answer) => answer.map_err(CallError::Refused),
            Err(_) => Err(CallError::Late),
        };
        answer.inspect_err(|error| self.shared.metrics.call_failed(error))
    }

    fn api<T>(&self) -> Api<T>
    where
        T: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.job.key.namespace)
    }

    fn learn<T: Kind>(&self, object: T) {
        self.shared
            .change(|world| world.apply(Change::Written(lean(object))));
    }

    async fn write_status<T>(&self, step: &Step) -> Result<(), CallError>
    where
        T: Kind + Resource<Scope = kube::core::NamespaceResourceScope> + DeserializeOwned + Debug,
    {
        let key = &self.job.key;
        let patch = json!({
            "apiVersion": key.kind.api_version(), "kind": "Caffe2Job",
            "metadata": { "name": key.name, "namespace": key.namespace, "uid": self.job.uid,
                "resourceVersion": self.version },
            "status": step.status,
        });
        let how = PatchParams::apply(MANAGER).force();
        let api = self.api::<T>();
        let written = self
            .call(api.patch_status(&key.name, &how, &Patch::Apply(patch)))
            .await?;
        self.learn(written);
        Ok(())
    }

    async fn carry_out(&self, action: Action) -> Result<(), CallError> {
        match action {
            Action::Hold => self.finalizers(true).await,
            Action::LetGo => self.finalizers(false).await,
            Action::DeleteJob => self.delete_job().await,
            Action::CreateService => self.create::<Service>(&service(self.job)).await,
            Action::DeleteService => self.delete_service().await,
            Action::CreatePod(pod) => self.create::<Pod>(&pod).await,
            Action::Release { pod, node } => self.release(&pod, &node).await,
            Action::DeletePod { pod, uid } => self.delete_pod(&pod, uid).await,
            Action::WarmUp {
                namespace,
                dataset,
                percent,
            } => self.warm_up(&namespace, &dataset, percent).await,
        }
    }

    /// Puts the job's finalizer on, or takes it off; the others stay.
    async fn finalizers(&self, on: bool) -> Result<(), CallError> {
        match self.job.key.kind {
            JobKind::Trackbed => self.finalizers_of::<Caffe2Job>(on).await,
            JobKind::Kubeflow => self.finalizers_of::<KubeflowCaffe2Job>(on).await,
        }
    }

    async fn finalizers_of<T>(&self, on: bool) -> Result<(), CallError>
    where
        T: Kind + Resource<Scope = kube::core::NamespaceResourceScope> + DeserializeOwned + Debug,
    {
        let key = &self.job.key;
        let name = (key.namespace.clone(), key.name.clone());
        let known = self.shared.look(|world| T::kept(world).get(&name).cloned());
        let Some(known) = known.filter(|known| known.uid().as_ref() == Some(&self.job.uid)) else {
            return Ok(());
        };
        let mut finalizers = known.finalizers().to_vec();
        finalizers.retain(|it| it != FINALIZER);
        if on {
            finalizers.push(FINALIZER.to_owned());
        }
        let patch = json!({ "metadata": { "finalizers": finalizers,
            "resourceVersion": known.resource_version() } });
        let api = self.api::<T>();
        let how = PatchParams::default();
        match self
            .call(api.patch(&key.name, &how, &Patch::Merge(patch)))
            .await
        {
            Ok(object) if on => self.learn(object),
            // Without its finalizer it is gone, or others' still hold it, as the watch will tell.
            Ok(object) => match object.finalizers() {
                [] => self
                    .shared
                    .change(|world| world.apply(Change::Gone(object))),
                _ => self.learn(object),
            },
            Err(error) if error.code() == Some(404) => {
                self.shared.change(|world| world.apply(Change::Gone(known)));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn delete_job(&self) -> Result<(), CallError> {
        let how = of_uid(&self.job.uid);
        let name = &self.job.key.name;
        let done = match self.job.key.kind {
            JobKind::Trackbed => {
                self.call(self.api::<Caffe2Job>().delete(name, &how).map_ok(drop))
                    .await
            }
            JobKind::Kubeflow => {
                self.call(
                    self.api::<KubeflowCaffe2Job>()
                        .delete(name, &how)
                        .map_ok(drop),
                )
                .await
            }
        };
        unless(done, &[404])
    }

    async fn create<T>(&self, object: &Value) -> Result<(), CallError>
    where
        T: Kind
            + Resource<Scope = kube::core::NamespaceResourceScope>
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        // As it is, with what this build does not know of it.
        let object: kube::api::DynamicObject = match serde_json::from_value(object.clone()) {
            Ok(object) => object,
            Err(error) => return Err(CallError::Refused(kube::Error::SerdeError(error))),
        };
        let resource = kube::api::ApiResource::erase::<T>(&());
        let api = Api::namespaced_with(self.client.clone(), &self.job.key.namespace, &resource);
        let how = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        match self.call(api.create(&how, &object)).await {
            Ok(created) => {
                if let Ok(created) = created.try_parse::<T>() {
                    self.learn(created);
                }
                Ok(())
            }
            // It was made before, which the watch will tell; or it is another's, which that tells too.
            Err(error) => unless(Err(error), &[409]),
        }
    }

    async fn release(&self, name: &str, node: &str) -> Result<(), CallError> {
        let Some(pod) = self.pod(name) else {
            return Ok(());
        };
        let patch = release_patch(&pod, node);
        let how = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match self
            .call(self.api::<Pod>().patch(name, &how, &Patch::Merge(patch)))
            .await
        {
            Ok(pod) => self.learn(pod),
            Err(error) if error.code() == Some(404) => self.is_gone(pod),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn delete_pod(&self, name: &str, uid: String) -> Result<(), CallError> {
        let Some(pod) = self
            .pod(name)
            .filter(|pod| pod.metadata.uid.as_ref() == Some(&uid))
        else {
            return Ok(());
        };
        match self
            .call(self.api::<Pod>().delete(name, &of_uid(&uid)))
            .await
        {
            Ok(answer) => match answer.left() {
                Some(left) if left.metadata.deletion_timestamp.is_some() => self.learn(left),
                _ => self.is_gone(pod),
            },
            Err(error) if error.code() == Some(404) => self.is_gone(pod),
            // One of its name with another uid: it is gone, and this one is not ours to end.
            Err(error) if error.code() == Some(409) => self.is_gone(pod),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn pod(&self, name: &str) -> Option<Pod> {
        let name = (self.job.key.namespace.clone(), name.to_owned());
        self.shared.look(|world| world.pods.get(&name).cloned())
    }

    fn is_gone(&self, pod: Pod) {
        self.shared.change(|world| world.apply(Change::Gone(pod)));
    }

    async fn delete_service(&self) -> Result<(), CallError> {
        let name = service_name(self.job);
        let api = self.api::<Service>();
        let done = self.call(api.delete(&name, &DeleteParams::default())).await;
        unless(done.map(drop), &[404])
    }

    async fn warm_up(&self, namespace: &str, name: &str, percent: i32) -> Result<(), CallError> {
        let key = (namespace.to_owned(), name.to_owned());
        let known = self.shared.look(|world| world.datasets.get(&key).cloned());
        let version = known.and_then(|known| known.resource_version());
        let patch = json!({ "metadata": { "resourceVersion": version },
            "spec": { "warmUp": { "percent": percent } } });
        let api: Api<Dataset> = Api::namespaced(self.client.clone(), namespace);
        let how = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let dataset = self
            .call(api.patch(name, &how, &Patch::Merge(patch)))
            .await?;
        self.learn(dataset);
        Ok(())
    }

    /// Tells the job's users. What is not heard is in the status all the same.
    async fn tell(&self, event: Event) {
        let key = &self.job.key;
        let now = Time(self.shared.clock.now());
        let kind = if event.warning { "Warning" } else { "Normal" };
        let object = json!({
            "metadata": { "generateName": format!("{}.", key.name), "namespace": key.namespace },
            "involvedObject": { "apiVersion": key.kind.api_version(), "kind": "Caffe2Job",
                "namespace": key.namespace, "name": key.name, "uid": self.job.uid },
            "type": kind, "reason": event.reason, "message": event.message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": { "component": MANAGER }, "reportingComponent": MANAGER, "reportingInstance": "",
        });
        let Ok(object) = serde_json::from_value::<EventObject>(object) else {
            return;
        };
        let api = self.api::<EventObject>();
        if let Err(error) = self.call(api.create(&PostParams::default(), &object)).await {
            tracing::debug!(job = %key, %error, reason = event.reason, "an event was not told");
        }
    }
}

/// Who manages which field is of no use here, and is most of an object.
fn lean<T: Resource>(mut object: T) -> T {
    object.meta_mut().managed_fields = None;
    object
}

fn of_uid(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// That it was refused so is as good as done.
fn unless(done: Result<(), CallError>, codes: &[u16]) -> Result<(), CallError> {
    match done {
        Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(()),
        done => done,
    }
}
