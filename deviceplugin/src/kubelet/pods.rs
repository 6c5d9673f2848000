//! Which pod has which device, as kubelet says it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use tonic::transport::Endpoint;
use trackbed_proto::podresources::v1::ListPodResourcesRequest;
use trackbed_proto::podresources::v1::pod_resources_lister_client::PodResourcesListerClient;

use crate::allocate::Pod;
use crate::config::{Config, PoolName};

const DEADLINE: Duration = Duration::from_secs(5);
/// The largest answer that is taken, in bytes: kubelet has hundreds of pods at most.
const MAX_BYTES: usize = 16 << 20;

/// Kubelet does not say.
#[derive(Debug, Error)]
#[error(
    "kubelet does not say on {socket} which pods have devices: {why}: mount its folder pod-resources into this \
     container"
)]
pub struct PodsError {
    socket: String,
    why: String,
}

/// The devices of our pools that pods have.
pub async fn held_by_pods(
    socket: &Path,
    config: &Config,
) -> Result<HashMap<(PoolName, String), Pod>, PodsError> {
    let failed = |why: String| PodsError {
        socket: socket.display().to_string(),
        why,
    };
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .map_err(|error| failed(error.to_string()))?
        .connect_timeout(DEADLINE)
        .timeout(DEADLINE);
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| failed(error.to_string()))?;
    let mut kubelet = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_BYTES);
    let listed = kubelet.list(ListPodResourcesRequest {}).await;
    let listed = listed.map_err(|status| failed(status.message().to_owned()))?;
    let pools: HashMap<String, &PoolName> = config
        .pools()
        .map(|pool| (config.resource(&pool.name), &pool.name))
        .collect();
    let mut held = HashMap::new();
    for pod in listed.into_inner().pod_resources {
        let named = Pod {
            namespace: pod.namespace,
            name: pod.name,
        };
        for devices in pod.containers.into_iter().flat_map(|it| it.devices) {
            if let Some(pool) = pools.get(&devices.resource_name) {
                for id in devices.device_ids {
                    held.insert(((*pool).clone(), id), named.clone());
                }
            }
        }
    }
    Ok(held)
}
