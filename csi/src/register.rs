//! Making the driver known to kubelet, without a side-car: kubelet watches a folder of sockets
//! (`/var/lib/kubelet/plugins_registry`), asks each who it is, and says whether it took it.
//!
//! kubelet takes every socket in that folder whose name does not begin with a dot for a plug-in, so
//! ours gets its name when it is ready to be called, and a socket of an earlier life is replaced.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use trackbed_proto::pluginregistration::v1::registration_server::{
    Registration as Service, RegistrationServer,
};
use trackbed_proto::pluginregistration::v1::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

use trackbed_proto::endpoint::{Endpoint, EndpointError, SocketFile, listen};

use crate::driver::DRIVER_NAME;

/// What kubelet calls plug-ins that serve CSI, and the version it wants them to have.
const TYPE: &str = "CSIPlugin";
const VERSION: &str = "1.0.0";

/// How long kubelet's last call may take to be answered before giving up.
const DRAIN: Duration = Duration::from_secs(2);

/// Longest reason that is passed on, in characters.
const MAX_REASON: usize = 2000;

/// Why the driver is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// kubelet said so.
    #[error("kubelet did not register the driver {DRIVER_NAME}: {0}")]
    Refused(String),
    /// The socket's server ended by itself.
    #[error("the registration socket's server ended: {0}")]
    Server(#[source] io::Error),
}

/// A socket that waits for kubelet. Its file is removed when this is dropped, by which kubelet
/// takes the driver off its list.
#[derive(Debug)]
pub struct Registration {
    listener: UnixListener,
    socket: SocketFile,
    info: PluginInfo,
}

impl Registration {
    /// Listens in kubelet's folder `plugins_registry`, only for this user, for a driver that is
    /// called on `endpoint` already. kubelet must see that at the same path.
    pub fn listen(
        plugins_registry: &Path,
        endpoint: &Endpoint,
    ) -> Result<Registration, EndpointError> {
        let path = plugins_registry.join(format!("{DRIVER_NAME}-reg.sock"));
        let (listener, socket) = listen(&path.to_string_lossy().parse()?)?;
        Ok(Registration {
            listener,
            socket,
            info: PluginInfo {
                r#type: TYPE.to_owned(),
                name: DRIVER_NAME.to_owned(),
                endpoint: endpoint.path().to_string_lossy().into_owned(),
                supported_versions: vec![VERSION.to_owned()],
            },
        })
    }

    /// Answers kubelet as often as it asks (it asks again when it restarts), until it refuses.
    pub async fn serve(self) -> RegisterError {
        let (refuse, mut refused) = watch::channel(None);
        let service = RegistrationServer::new(Answers {
            info: self.info,
            refuse,
        });
        let mut noticed = refused.clone();
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(UnixListenerStream::new(self.listener), async move {
                // The sender is in the service, which lives as long as the server.
                let _ = noticed.wait_for(Option::is_some).await;
            });
        let mut server = std::pin::pin!(server);
        let reason = async {
            let reason = refused.wait_for(Option::is_some).await;
            reason.ok().and_then(|reason| reason.clone())
        };
        let ended = tokio::select! {
            ended = &mut server => ended,
            reason = reason => {
                // kubelet gets the answer to its call, if it wants it.
                let _ = tokio::time::timeout(DRAIN, server).await;
                drop(self.socket);
                return RegisterError::Refused(reason.unwrap_or_default());
            }
        };
        drop(self.socket);
        RegisterError::Server(match ended {
            Ok(()) => io::Error::other("without a reason"),
            Err(error) => io::Error::other(error),
        })
    }
}

struct Answers {
    info: PluginInfo,
    refuse: watch::Sender<Option<String>>,
}

#[tonic::async_trait]
impl Service for Answers {
    async fn get_info(
        &self,
        _request: Request<InfoRequest>,
    ) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = DRIVER_NAME, "registered with kubelet");
        } else {
            let reason = status.error.chars().take(MAX_REASON).collect();
            self.refuse.send_replace(Some(reason));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
