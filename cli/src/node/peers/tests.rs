//! Two nodes' control interfaces over mutual TLS on loopback.

use super::*;
use crate::node::peer_service::{PeerHost, PeerService};
use crate::node::settings::{Settings, resolve};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::fs;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use trackbed_cache::Registry;
use trackbed_cache::registry::FileRegistry;

/// Longer than one part, so that it travels in several.
const MANIFEST_BYTES: usize = (5 << 20) / 2;

/// A host that answers with who asked, and has one manifest.
struct Host;

impl PeerHost for Host {
    fn accept<'a>(
        &'a self,
        peer: &'a str,
        offer: &'a [u8],
    ) -> BoxFuture<'a, Result<Vec<u8>, Status>> {
        Box::pin(async move { Ok([peer.as_bytes(), b" offers ", offer].concat()) })
    }

    fn manifest(&self, digest: Digest) -> BoxFuture<'_, Result<Option<Bytes>, Status>> {
        let manifest = Bytes::from(vec![7; MANIFEST_BYTES]);
        Box::pin(async move { Ok((digest == Digest::of(&manifest)).then_some(manifest)) })
    }
}

/// A certificate authority in a folder of its own.
struct Authority {
    folder: tempfile::TempDir,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            folder: tempfile::tempdir().unwrap(),
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// The identity of a node, loaded as a node does.
    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |file: &str, text: String| {
            let path = self.folder.path().join(format!("{name}.{file}"));
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let settings = Settings {
            name: Some(name.to_owned()),
            registry: Some("/unused".into()),
            cache_dir: Some(vec!["/unused".into()]),
            tls_ca: write("ca", self.pem.clone()),
            tls_cert: write("cert", certificate.pem()),
            tls_key: write("key", key.serialize_pem()),
            ..Settings::default()
        };
        Identity::load(&resolve(settings, None).unwrap()).unwrap()
    }
}

/// A serving node and its entry in the registry, in which `members` are.
async fn serve(identity: &Identity, name: &str, members: &[&str]) -> Member {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = listener.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let listed: Vec<_> = members
        .iter()
        .map(|name| serde_json::json!({"name": name, "control": &control, "weight": 100}))
        .collect();
    let text = serde_json::json!({ "members": listed }).to_string();
    fs::write(folder.path().join("members.json"), text).unwrap();
    let registry: Arc<dyn Registry> = Arc::new(FileRegistry::open(folder.path()).unwrap());
    let server = Server::builder()
        .tls_config(identity.server())
        .unwrap()
        .add_service(PeerService::server(Arc::new(Host), registry))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move {
        // The registry's folder lives as long as the server.
        let _folder = folder;
        server.await
    });
    Member {
        name: name.to_owned(),
        control,
        weight: 100,
    }
}

fn peers(identity: Identity) -> Peers {
    Peers::new(identity, tokio::runtime::Handle::current())
}

#[tokio::test]
async fn a_member_meets_our_fabric_under_the_name_in_its_certificate() {
    let authority = Authority::new();
    let server = serve(
        &authority.identity("node-1"),
        "node-1",
        &["node-1", "node-2"],
    )
    .await;
    let caller = peers(authority.identity("node-2"));
    assert_eq!(
        caller.connect(&server, b"x").await.unwrap(),
        b"node-2 offers x"
    );
}

#[tokio::test]
async fn a_manifest_of_several_parts_arrives_whole_and_an_unknown_one_is_not_there() {
    let authority = Authority::new();
    let server = serve(&authority.identity("node-1"), "node-1", &["node-2"]).await;
    let caller = peers(authority.identity("node-2"));
    let manifest = vec![7; MANIFEST_BYTES];
    let got = caller
        .manifest(&server, Digest::of(&manifest))
        .await
        .unwrap();
    assert!(got.is_some_and(|got| got == manifest));
    assert!(
        caller
            .manifest(&server, Digest::of(b"other"))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_certificate_of_no_member_is_refused() {
    let authority = Authority::new();
    let server = serve(&authority.identity("node-1"), "node-1", &["node-1"]).await;
    let stranger = peers(authority.identity("stranger"));
    let error = stranger
        .connect(&server, b"x")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("PermissionDenied") && error.contains("stranger"),
        "{error}"
    );
    assert!(stranger.manifest(&server, Digest::of(b"")).await.is_err());
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_both_sides() {
    let server = serve(&Authority::new().identity("node-1"), "node-1", &["node-2"]).await;
    let stranger = peers(Authority::new().identity("node-2"));
    let error = stranger
        .connect(&server, b"x")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&server.control), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_the_peer_that_was_meant_is_not_told_anything() {
    let authority = Authority::new();
    let impostor = serve(&authority.identity("node-3"), "node-1", &["node-2"]).await;
    let caller = peers(authority.identity("node-2"));
    assert!(caller.connect(&impostor, b"secret").await.is_err());
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let server = serve(&authority.identity("node-1"), "node-1", &["node-1"]).await;
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(&authority.pem))
        .domain_name("node-1");
    let endpoint = Endpoint::from_shared(format!("https://{}", server.control)).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let request = ConnectFabricRequest {
        offer: b"x".to_vec(),
    };
    assert!(
        PeerControlClient::new(channel)
            .connect_fabric(request)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_peer_that_is_down_is_an_error_that_names_it() {
    let authority = Authority::new();
    let caller = peers(authority.identity("node-2"));
    // Bound and closed again: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let gone = Member {
        name: "node-9".into(),
        control: address.to_string(),
        weight: 100,
    };
    let error = caller.connect(&gone, b"x").await.unwrap_err().to_string();
    assert!(
        error.contains("node-9") && error.contains(&gone.control),
        "{error}"
    );
}
