//! CSI Identity: who this driver is, and that it is ready.

use tonic::{Request, Response, Status};
use trackbed_proto::csi::v1::identity_server::Identity;
use trackbed_proto::csi::v1::plugin_capability::{
    Service, Type, VolumeExpansion, service, volume_expansion,
};
use trackbed_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

use super::DRIVER_NAME;

/// The Identity service.
#[derive(Debug)]
pub(super) struct IdentityService;

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        // No accessibility constraints: every node can show every dataset.
        let capabilities = [
            Type::Service(Service {
                r#type: service::Type::ControllerService.into(),
            }),
            Type::VolumeExpansion(VolumeExpansion {
                r#type: volume_expansion::Type::Online.into(),
            }),
        ];
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: capabilities
                .map(|capability| PluginCapability {
                    r#type: Some(capability),
                })
                .into(),
        }))
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        // The socket is only there once the cache behind it was started.
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
