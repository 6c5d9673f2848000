//! What kubelet asks of a pool.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use trackbed_proto::deviceplugin::v1beta1::device_plugin_server::DevicePlugin;
use trackbed_proto::deviceplugin::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, NumaNode,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, TopologyInfo,
};

use crate::allocate::{Health, Offer, Refusal, Shown, prefer};
use crate::config::PoolName;
use crate::discover::{Needs, needs};
use crate::plugin::Plugin;
use crate::state::GiveError;

/// The most containers and devices that one call may be about.
const MAX_CONTAINERS: usize = 256;
const MAX_DEVICES: usize = 4096;

/// Serves one pool.
pub(super) struct PoolService {
    pub(super) plugin: Arc<Plugin>,
    pub(super) pool: PoolName,
}

/// What kubelet may ask of every pool.
pub(super) fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: true,
    }
}

#[tonic::async_trait]
impl DevicePlugin for PoolService {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (plugin, pool) = (Arc::clone(&self.plugin), self.pool.clone());
        let mut last = None;
        // A watch keeps the newest change only: a kubelet that reads slowly gets what is, not what was.
        let lists = WatchStream::new(self.plugin.state.lists()).filter_map(move |_| {
            let devices: Vec<Device> = plugin.state.shown(&pool).iter().map(device).collect();
            if last.as_ref() == Some(&devices) {
                return None;
            }
            last = Some(devices.clone());
            Some(Ok(ListAndWatchResponse { devices }))
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let containers = request.into_inner().container_requests;
        let shown = self.plugin.state.shown(&self.pool);
        let preferred = bounded(&containers)?
            .iter()
            .map(|container| preferred(&shown, container))
            .collect::<Result<_, _>>()?;
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: preferred,
        }))
    }

    #[tracing::instrument(
        target = "trackbed_traces",
        name = "deviceplugin.allocate",
        skip_all,
        fields(pool = %self.pool),
        err
    )]
    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let began = Instant::now();
        let allocated = self.allocate_all(request.into_inner()).await;
        let counters = &self.plugin.state.counters;
        counters.allocated(allocated.is_ok(), began.elapsed());
        if let Err(status) = &allocated {
            tracing::warn!(pool = %self.pool, reason = status.message(), "devices were refused");
        }
        allocated.map(Response::new)
    }

    #[tracing::instrument(
        target = "trackbed_traces",
        name = "deviceplugin.prestart",
        skip_all,
        fields(pool = %self.pool),
        err
    )]
    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids;
        let shown = self.plugin.state.shown(&self.pool);
        for id in bounded(&ids)? {
            let device = shown.iter().find(|it| it.id == *id);
            let device = device.ok_or_else(|| {
                Status::not_found(format!("pool {} has no device {id}", self.pool))
            })?;
            // Moved into the pod's network namespace already, it can't be tried from here.
            let tried = self
                .plugin
                .try_if_here(&self.pool, device.place.address)
                .await;
            tried.map_err(|why| Status::failed_precondition(format!("device {id}: {why}")))?;
        }
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

impl PoolService {
    async fn allocate_all(&self, request: AllocateRequest) -> Result<AllocateResponse, Status> {
        let containers = request.container_requests;
        let ids: Vec<String> = bounded(&containers)?
            .iter()
            .flat_map(|container| container.devices_ids.iter().cloned())
            .collect();
        let given = match self.plugin.state.give(&self.pool, bounded(&ids)?).await {
            // Who had it may have ended a moment ago: kubelet knows before it is looked at again.
            Err(GiveError::Refused(Refusal::Held { .. } | Refusal::Unhealthy { .. })) => {
                self.plugin.reconcile().await;
                self.plugin.probe_returned().await;
                self.plugin.state.give(&self.pool, &ids).await
            }
            given => given,
        };
        let given = given.map_err(status)?;
        match self.respond(&containers_of(&containers, given)) {
            Ok(response) => Ok(response),
            Err(status) => {
                if let Err(error) = self.plugin.state.take_back(&self.pool, &ids).await {
                    tracing::error!(%error, "what was not given stays taken until kubelet is asked");
                }
                Err(status)
            }
        }
    }

    fn respond(&self, containers: &[Vec<Offer>]) -> Result<AllocateResponse, Status> {
        let container = |offers: &Vec<Offer>| {
            let needs = offers.iter().map(|offer| {
                let found = needs(&self.plugin.state.root, offer.place.address);
                let found = found.map_err(|error| Status::unavailable(error.to_string()))?;
                Ok((offer, found))
            });
            let needs = needs.collect::<Result<Vec<_>, Status>>()?;
            Ok(response(&self.pool, &needs, &self.plugin.state.root))
        };
        let responses = containers.iter().map(container);
        Ok(AllocateResponse {
            container_responses: responses.collect::<Result<_, Status>>()?,
        })
    }
}

/// What was given, as the containers asked for it.
fn containers_of(
    containers: &[trackbed_proto::deviceplugin::v1beta1::ContainerAllocateRequest],
    given: Vec<Offer>,
) -> Vec<Vec<Offer>> {
    let mut given = given.into_iter();
    let of = |asked: usize| given.by_ref().take(asked).collect();
    containers
        .iter()
        .map(|it| it.devices_ids.len())
        .map(of)
        .collect()
}

fn response(
    pool: &PoolName,
    needs: &[(&Offer, Needs)],
    root: &std::path::Path,
) -> ContainerAllocateResponse {
    let mut devices = BTreeMap::new();
    for path in needs.iter().flat_map(|(_, needs)| &needs.char_devices) {
        // In the container they have the names that they have on the host.
        let inside = path.strip_prefix(root).unwrap_or(path);
        let container_path = std::path::Path::new("/").join(inside);
        let spec = DeviceSpec {
            container_path: container_path.to_string_lossy().into_owned(),
            host_path: path.to_string_lossy().into_owned(),
            permissions: "rw".to_owned(),
        };
        devices.insert(spec.container_path.clone(), spec);
    }
    let listed = |of: &dyn Fn(&(&Offer, Needs)) -> Vec<String>| {
        needs.iter().flat_map(of).collect::<Vec<_>>().join(",")
    };
    let rdma = |(_, needs): &(&Offer, Needs)| needs.rdma.iter().cloned().collect::<Vec<_>>();
    let in_variables = pool.0.to_ascii_uppercase().replace(['-', '.'], "_");
    let mut envs = HashMap::from([(
        format!("TRACKBED_{in_variables}_PCI"),
        listed(&|(offer, _)| vec![offer.place.address.to_string()]),
    )]);
    let mut tell = |name: String, value: String| {
        if !value.is_empty() {
            envs.insert(name, value);
        }
    };
    tell(
        format!("TRACKBED_{in_variables}_NET"),
        listed(&|(_, needs)| needs.net_devices.clone()),
    );
    let names = listed(&rdma);
    if !names.is_empty() {
        // NCCL takes names behind an equals sign as they are, not as beginnings.
        tell("NCCL_IB_HCA".to_owned(), format!("={names}"));
        let with_ports =
            |needs: &(&Offer, Needs)| rdma(needs).iter().map(|it| format!("{it}:1")).collect();
        tell("UCX_NET_DEVICES".to_owned(), listed(&with_ports));
    }
    tell(format!("TRACKBED_{in_variables}_RDMA"), names);
    ContainerAllocateResponse {
        envs,
        devices: devices.into_values().collect(),
        ..ContainerAllocateResponse::default()
    }
}

fn device(shown: &Shown) -> Device {
    let health = match shown.health {
        Health::Healthy => "Healthy",
        Health::Unhealthy(_) => "Unhealthy",
    };
    Device {
        id: shown.id.clone(),
        health: health.to_owned(),
        topology: shown.place.numa_node.map(|node| TopologyInfo {
            nodes: vec![NumaNode { id: node.into() }],
        }),
    }
}

fn preferred(
    shown: &[Shown],
    asked: &ContainerPreferredAllocationRequest,
) -> Result<ContainerPreferredAllocationResponse, Status> {
    let known: HashMap<&str, &Shown> = shown.iter().map(|it| (it.id.as_str(), it)).collect();
    let available = bounded(&asked.available_device_i_ds)?.iter();
    let available = available.filter_map(|id| {
        let shown = known.get(id.as_str())?;
        Some((id.as_str(), &shown.place))
    });
    let available: Vec<_> = available.collect();
    let must = bounded(&asked.must_include_device_i_ds)?;
    let must: Vec<_> = must.iter().map(String::as_str).collect();
    let size = usize::try_from(asked.allocation_size).unwrap_or(0);
    let chosen = prefer(&available, &must, size).filter(|_| size > 0);
    let chosen = chosen.ok_or_else(|| {
        Status::invalid_argument(format!(
            "{} of {} available devices, {} of them given, can't be chosen",
            asked.allocation_size,
            available.len(),
            must.len()
        ))
    })?;
    Ok(ContainerPreferredAllocationResponse {
        device_i_ds: chosen,
    })
}

fn status(error: GiveError) -> Status {
    let said = error.to_string();
    match error {
        GiveError::Refused(Refusal::Unknown { .. }) => Status::not_found(said),
        GiveError::Refused(Refusal::Malformed(_)) => Status::invalid_argument(said),
        GiveError::Refused(_) => Status::failed_precondition(said),
        GiveError::Journal(_) => Status::unavailable(said),
    }
}

/// A list that is not longer than any node has a use for.
fn bounded<T: Bounded>(list: &[T]) -> Result<&[T], Status> {
    if list.len() > T::MOST {
        return Err(Status::invalid_argument(format!(
            "{} are asked for at once: at most {} can be",
            list.len(),
            T::MOST
        )));
    }
    Ok(list)
}

trait Bounded {
    const MOST: usize;
}

impl Bounded for String {
    const MOST: usize = MAX_DEVICES;
}

impl Bounded for ContainerPreferredAllocationRequest {
    const MOST: usize = MAX_CONTAINERS;
}

impl Bounded for trackbed_proto::deviceplugin::v1beta1::ContainerAllocateRequest {
    const MOST: usize = MAX_CONTAINERS;
}
