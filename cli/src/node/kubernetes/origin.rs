//! From where a dataset's bytes may come. Whoever may make Dataset objects in a namespace must not get at
//! the nodes' own files and credentials by it, so both are given only where an administrator shares them.

use std::path::PathBuf;

use kube::ResourceExt;
use trackbed_cache::OriginUrl;
use trackbed_cache::origin::{CredentialsRef, Service};
use trackbed_controller::api::Dataset;
use url::Host;

use super::KubernetesConfig;

/// The origin of a dataset with the place of its credentials, or why it is not given.
pub(super) fn origin(dataset: &Dataset, config: &KubernetesConfig) -> Result<OriginUrl, String> {
    let url: OriginUrl = dataset
        .spec
        .origin
        .parse()
        .map_err(|error| format!("{error}"))?;
    if let OriginUrl::Directory(path) = &url {
        let shared = config
            .shared_folders
            .iter()
            .any(|folder| path.starts_with(folder));
        return match shared {
            true => Ok(url),
            false => Err(format!(
                "the nodes' folder {} is not for datasets: name another origin, or have an administrator \
                 give the nodes --share-folder",
                path.display()
            )),
        };
    }
    if url.credentials() != Some(&CredentialsRef::default()) {
        return Err(
            "the origin's URL says where its credentials are: say it in spec.credentials".into(),
        );
    }
    if let Some(host) = url.host().filter(is_of_the_node) {
        return Err(format!(
            "{host} is this machine, or a service that only its own machine may ask: name one that \
             others can reach too"
        ));
    }
    let credentials = match &dataset.spec.credentials {
        Some(reference) => CredentialsRef::Secret {
            namespace: dataset.namespace().unwrap_or_default(),
            name: reference.secret_name.clone(),
        },
        None if config.share_credentials && sends_tokens_elsewhere(&url) => {
            return Err(
                "the nodes' own credentials would be sent to the endpoint that the dataset names: leave the \
                 endpoint out, or give the dataset credentials of its own"
                    .into(),
            );
        }
        None if config.share_credentials => CredentialsRef::Environment,
        None => CredentialsRef::Anonymous,
    };
    Ok(url.with_credentials(credentials))
}

/// Whether a dataset has its origin asked at a place of its own choosing by a service that is shown a token,
/// which whoever gets it can use. S3's requests are signed, and show none.
fn sends_tokens_elsewhere(url: &OriginUrl) -> bool {
    matches!(url, OriginUrl::Bucket(location)
        if location.service != Service::S3 && location.endpoint.is_some())
}

/// Whether a host is the node itself, or what answers to it alone: clouds give an instance's credentials to
/// whoever asks a link-local address from there.
fn is_of_the_node(host: &Host) -> bool {
    let address = match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            return name == "localhost"
                || name.ends_with(".localhost")
                || name == "metadata"
                || name == "metadata.google.internal";
        }
        Host::Ipv4(address) => address.to_ipv6_mapped(),
        Host::Ipv6(address) => *address,
    };
    /// Where one cloud answers by IPv6: fd00:ec2::/48.
    const METADATA: [u16; 3] = [0xfd00, 0x0ec2, 0];
    let v4 = address.to_ipv4_mapped();
    address.is_loopback()
        || address.is_unspecified()
        || address.is_unicast_link_local()
        || address.segments().starts_with(&METADATA)
        || v4.is_some_and(|it| it.is_loopback() || it.is_link_local() || it.is_unspecified())
}

/// Folders without `..` and the like, or the first that is none.
pub(crate) fn check_folders(folders: &[PathBuf]) -> Result<(), String> {
    let plain = |folder: &&PathBuf| {
        let text = folder.to_string_lossy();
        !matches!(text.parse(), Ok(OriginUrl::Directory(parsed)) if parsed == **folder)
    };
    match folders.iter().find(plain) {
        Some(folder) => Err(format!(
            "{} is no absolute path without '..'",
            folder.display()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn asked(spec: serde_json::Value) -> Result<String, String> {
        asked_of(spec, false)
    }

    fn asked_of(spec: serde_json::Value, share_credentials: bool) -> Result<String, String> {
        let dataset = serde_json::json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
            "metadata": { "name": "cats", "namespace": "team-a" }, "spec": spec });
        let dataset: Dataset = serde_json::from_value(dataset).expect("a dataset");
        let config = KubernetesConfig {
            address: "10.0.0.1:7420".into(),
            report_every: Duration::from_secs(30),
            weight: None,
            zone: None,
            rack: None,
            shared_folders: vec!["/mnt/nfs".into()],
            share_credentials,
        };
        origin(&dataset, &config).map(|url| url.to_string())
    }

    #[test]
    fn a_dataset_gets_at_no_folder_and_no_credentials_that_are_not_shared() {
        let folder = |path: &str| asked(serde_json::json!({ "origin": format!("file://{path}") }));
        assert!(folder("/mnt/nfs/cats").is_ok());
        for path in [
            "/etc",
            "/mnt/nfsx",
            "/mnt/nfs/../etc",
            "/mnt",
            "/mnt/nfs/%2e%2e/etc",
        ] {
            assert!(folder(path).is_err(), "{path}");
        }
        let bucket = "s3://sets/cats";
        let anonymous = asked(serde_json::json!({ "origin": bucket })).expect("given");
        assert!(anonymous.ends_with("credentials=none"), "{anonymous}");
        let own =
            asked(serde_json::json!({ "origin": bucket, "credentials": { "secretName": "s3" } }));
        assert!(
            own.expect("given")
                .ends_with("credentials=secret%3Ateam-a%2Fs3")
        );
        for own in [
            "169.254.169.254",
            "localhost",
            "127.0.0.1:9",
            "[::ffff:169.254.169.254]",
            "0.0.0.0",
            "[::1]",
            "2130706433",
        ] {
            for url in [
                format!("{bucket}?endpoint=http://{own}"),
                format!("gs://sets/cats?endpoint=http://{own}"),
                format!("az://account1/sets/cats?endpoint=http://{own}"),
                format!("http://{own}/latest/meta-data/?index=user-data"),
                format!("https://{own}"),
            ] {
                assert!(
                    asked(serde_json::json!({ "origin": url })).is_err(),
                    "{url}"
                );
            }
        }
        for elsewhere in [
            "s3://sets/cats?endpoint=http://10.0.0.1:9000",
            "https://data.example.org/cats?index=files.txt",
        ] {
            assert!(
                asked(serde_json::json!({ "origin": elsewhere })).is_ok(),
                "{elsewhere}"
            );
        }
        for stolen in ["/etc/shadow", "secret:team-b/s3"] {
            let url = format!("{bucket}?credentials={stolen}");
            assert!(
                asked(serde_json::json!({ "origin": url })).is_err(),
                "{stolen}"
            );
        }
    }

    #[test]
    fn a_token_of_the_nodes_is_sent_to_no_endpoint_that_a_dataset_names() {
        let shared = |url: &str| asked_of(serde_json::json!({ "origin": url }), true);
        for elsewhere in [
            "gs://sets/cats?endpoint=https://mine.example.org",
            "az://account1/sets/cats?endpoint=https://mine.example.org",
        ] {
            assert!(shared(elsewhere).is_err(), "{elsewhere}");
            assert!(asked(serde_json::json!({ "origin": elsewhere })).is_ok());
        }
        for theirs in [
            "gs://sets/cats",
            "az://account1/sets/cats",
            "s3://sets/cats",
        ] {
            assert!(shared(theirs).is_ok(), "{theirs}");
        }
    }
}
