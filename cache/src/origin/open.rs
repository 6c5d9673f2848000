//! Opens origins by what their URL says.

use std::sync::Arc;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::{
    BucketOrigin, CredentialsRef, DirectoryOrigin, OpenOrigin, Origin, OriginError, OriginUrl,
    RequestBudget, RequestRuntime, SecretValues, Secrets, WebOrigin, secrets,
};

/// Every kind of origin that this build knows. One for a process: origins that are asked by HTTP
/// share its threads, which the first of them starts.
#[derive(Default)]
pub struct Origins {
    budget: RequestBudget,
    runtime: Mutex<Option<Arc<RequestRuntime>>>,
    secrets: Option<Arc<dyn Secrets>>,
}

impl Origins {
    /// Origins whose requests are tried as often and as long as `budget` says.
    pub fn new(budget: RequestBudget) -> Origins {
        Origins {
            budget,
            ..Origins::default()
        }
    }

    /// Origins whose credentials may be kept in `secrets`.
    pub fn with_secrets(secrets: Arc<dyn Secrets>) -> Origins {
        Origins {
            secrets: Some(secrets),
            ..Origins::default()
        }
    }

    /// The secret that a URL refers to, if it refers to one.
    async fn secret(&self, url: &OriginUrl) -> Result<Option<SecretValues>, OriginError> {
        let Some(CredentialsRef::Secret { namespace, name }) = url.credentials() else {
            return Ok(None);
        };
        let shown = url.to_string();
        let kept = self.secrets.as_deref();
        secrets::look_up(kept, &shown, namespace, name)
            .await
            .map(Some)
    }

    fn runtime(&self, url: &OriginUrl) -> Result<Arc<RequestRuntime>, OriginError> {
        let mut runtime = self.runtime.lock();
        if let Some(runtime) = runtime.as_ref() {
            return Ok(runtime.clone());
        }
        let started = RequestRuntime::start().map_err(|e| cannot_start(url, &e))?;
        Ok(runtime.insert(Arc::new(started)).clone())
    }
}

fn cannot_start(url: &OriginUrl, error: &std::io::Error) -> OriginError {
    OriginError::Unavailable {
        origin: url.to_string(),
        why: format!("cannot start a thread: {error}"),
        remedy: "raise the limit on processes (pids.max of the pod, ulimit -u)",
        transient: true,
    }
}

/// Opens an origin on a thread of its own: a directory of a server that hangs blocks, and a client for
/// HTTPS reads all the certificates that the machine trusts.
async fn on_a_thread<T: Origin + 'static>(
    url: &OriginUrl,
    open: impl FnOnce() -> Result<T, OriginError> + Send + 'static,
) -> Result<Arc<dyn Origin>, OriginError> {
    let (opened, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("open-origin".into())
        .spawn(move || opened.send(open()).is_ok())
        .map_err(|e| cannot_start(url, &e))?;
    let origin = result.await.map_err(|_| OriginError::Cancelled)??;
    Ok(Arc::new(origin))
}

impl OpenOrigin for Origins {
    fn open<'a>(
        &'a self,
        url: &'a OriginUrl,
    ) -> BoxFuture<'a, Result<Arc<dyn Origin>, OriginError>> {
        Box::pin(async move {
            let budget = self.budget;
            match url.clone() {
                OriginUrl::Directory(path) => {
                    on_a_thread(url, move || DirectoryOrigin::open(&path)).await
                }
                OriginUrl::Bucket(location) => {
                    let (secret, runtime) = (self.secret(url).await?, self.runtime(url)?);
                    let open =
                        move || BucketOrigin::open(&location, budget, runtime, secret.as_ref());
                    on_a_thread(url, open).await
                }
                OriginUrl::Web(location) => {
                    let (secret, runtime) = (self.secret(url).await?, self.runtime(url)?);
                    let open = move || WebOrigin::open(&location, budget, runtime, secret.as_ref());
                    on_a_thread(url, open).await
                }
            }
        })
    }
}
