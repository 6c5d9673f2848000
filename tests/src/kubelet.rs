//! Kubelet as far as device plugins see it: the same sockets, the same order of calls.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use trackbed_proto::deviceplugin::v1beta1::device_plugin_client::DevicePluginClient;
use trackbed_proto::deviceplugin::v1beta1::registration_server::{
    Registration, RegistrationServer,
};
use trackbed_proto::deviceplugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, Device, Empty,
    RegisterRequest,
};
use trackbed_proto::podresources::v1::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use trackbed_proto::podresources::v1::{
    ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};

/// How long anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The newest list of each resource; `None` once its plugin hung up.
type Lists = Arc<Mutex<HashMap<String, watch::Sender<Option<Vec<Device>>>>>>;
/// Which pod has which devices of which resource.
type Pods = Arc<Mutex<Vec<(String, String, Vec<String>)>>>;

/// Kubelet, which runs or does not.
pub struct Kubelet {
    folder: TempDir,
    lists: Lists,
    pods: Pods,
    running: Option<[JoinHandle<()>; 2]>,
}

impl Default for Kubelet {
    fn default() -> Kubelet {
        Kubelet::new()
    }
}

impl Kubelet {
    /// With its folders; it does not run.
    pub fn new() -> Kubelet {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("device-plugins")).expect("made");
        Kubelet {
            folder,
            lists: Lists::default(),
            pods: Pods::default(),
            running: None,
        }
    }

    /// The folder of device plugins' sockets.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("device-plugins")
    }

    /// The socket on which it says which pod has what.
    pub fn pod_resources(&self) -> PathBuf {
        self.folder.path().join("pods.sock")
    }

    /// Starts: removes what is in its folder, as kubelet does, and listens.
    pub fn start(&mut self) {
        for entry in fs::read_dir(self.folder()).expect("lists") {
            fs::remove_file(entry.expect("lists").path()).expect("removes");
        }
        let _ = fs::remove_file(self.pod_resources());
        let registrar = Registrar {
            folder: self.folder(),
            lists: Arc::clone(&self.lists),
        };
        let pods = Lister(Arc::clone(&self.pods));
        self.running = Some([
            serve(
                &self.folder().join("kubelet.sock"),
                Server::builder().add_service(RegistrationServer::new(registrar)),
            ),
            serve(
                &self.pod_resources(),
                Server::builder().add_service(PodResourcesListerServer::new(pods)),
            ),
        ]);
    }

    /// Ends as a crash does: its sockets' files stay.
    pub async fn kill(&mut self) {
        for task in self.running.take().expect("it runs") {
            task.abort();
            let _ = task.await;
        }
        self.forget();
    }

    /// Forgets all lists: those that come from now on are new.
    pub fn forget(&self) {
        self.lists.lock().expect("no panic").clear();
    }

    /// Waits until a resource's list is as wanted, and gives it.
    pub async fn list(&self, resource: &str, wanted: impl Fn(&[Device]) -> bool) -> Vec<Device> {
        let found = async {
            loop {
                let list = self
                    .lists
                    .lock()
                    .expect("no panic")
                    .get(resource)
                    .map(|it| it.subscribe());
                let Some(mut list) = list else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                let found = list.wait_for(|list| list.as_ref().is_some_and(|it| wanted(it)));
                if let Ok(found) = found.await {
                    return found.clone().expect("waited for");
                }
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!(
                "{resource} is never as wanted: {:?}",
                self.lists
                    .lock()
                    .expect("no panic")
                    .get(resource)
                    .map(|it| it.borrow().clone())
            ),
        }
    }

    /// Waits until so many devices are healthy, and gives the list.
    pub async fn healthy(&self, resource: &str, count: usize) -> Vec<Device> {
        let well = |list: &[Device]| list.iter().filter(|it| it.health == "Healthy").count();
        self.list(resource, |list| well(list) == count).await
    }

    /// A connection to the plugin of a resource.
    pub async fn plugin(&self, resource: &str) -> DevicePluginClient<Channel> {
        let pool = resource.rsplit_once('/').expect("a name").1;
        connect(&self.folder().join(format!("trackbed-{pool}.sock")))
            .await
            .expect("connects")
    }

    /// Admits a pod: asks for devices, and from then on names it.
    pub async fn admit(
        &self,
        resource: &str,
        pod: &str,
        ids: &[&str],
    ) -> Result<ContainerAllocateResponse, Status> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: ids.clone(),
            }],
        };
        let answered = self.plugin(resource).await.allocate(request).await?;
        let named = (pod.to_owned(), resource.to_owned(), ids);
        self.pods.lock().expect("no panic").push(named);
        Ok(answered.into_inner().container_responses.remove(0))
    }

    /// A pod ends.
    pub fn end(&self, pod: &str) {
        self.pods
            .lock()
            .expect("no panic")
            .retain(|(name, _, _)| name != pod);
    }
}

fn serve(socket: &Path, router: tonic::transport::server::Router) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("listens");
    tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        router.serve_with_incoming(incoming).await.expect("serves");
    })
}

async fn connect(socket: &Path) -> Result<DevicePluginClient<Channel>, Status> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a path");
    let channel = endpoint
        .connect_timeout(Duration::from_secs(10))
        .connect()
        .await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(DevicePluginClient::new(channel))
}

struct Registrar {
    folder: PathBuf,
    lists: Lists,
}

#[tonic::async_trait]
impl Registration for Registrar {
    /// Calls back before it answers.
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        assert_eq!(request.version, "v1beta1");
        let mut plugin = connect(&self.folder.join(&request.endpoint)).await?;
        let options = plugin
            .get_device_plugin_options(Empty {})
            .await?
            .into_inner();
        assert_eq!(Some(options), request.options);
        let mut stream = plugin.list_and_watch(Empty {}).await?.into_inner();
        let list = watch::Sender::new(None);
        let newest = list.clone();
        let resource = request.resource_name;
        self.lists.lock().expect("no panic").insert(resource, list);
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                newest.send_replace(Some(message.devices));
            }
            newest.send_replace(None);
        });
        Ok(Response::new(Empty {}))
    }
}

struct Lister(Pods);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pods = self.0.lock().expect("no panic");
        let pods = pods.iter().map(|(pod, resource, ids)| PodResources {
            name: pod.clone(),
            namespace: "ns".to_owned(),
            containers: vec![ContainerResources {
                name: "main".to_owned(),
                devices: vec![ContainerDevices {
                    resource_name: resource.clone(),
                    device_ids: ids.clone(),
                }],
            }],
        });
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: pods.collect(),
        }))
    }
}
