//! From a cluster's objects to the pods that have our volumes.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use std::collections::BTreeSet;

const DRIVER: &str = "csi.trackbed.io";

/// Pods, as namespace/name, that run or are about to, and have a volume of ours: of their own, by a claim, or
/// by a claim that is made for them.
pub(super) fn of(
    volumes: &[PersistentVolume],
    claims: &[PersistentVolumeClaim],
    pods: &[Pod],
) -> Vec<String> {
    let ours: BTreeSet<&str> = volumes
        .iter()
        .filter(|volume| {
            let source = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            source.is_some_and(|source| source.driver == DRIVER)
        })
        .filter_map(|volume| volume.metadata.name.as_deref())
        .collect();
    let claims: BTreeSet<(&str, &str)> = claims
        .iter()
        .filter(|claim| {
            let bound = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.volume_name.as_deref());
            bound.is_some_and(|volume| ours.contains(volume))
        })
        .filter_map(|claim| {
            let metadata = &claim.metadata;
            metadata.namespace.as_deref().zip(metadata.name.as_deref())
        })
        .collect();
    let mut users: Vec<String> = pods.iter().filter_map(|pod| user(pod, &claims)).collect();
    users.sort();
    users
}

fn user(pod: &Pod, claims: &BTreeSet<(&str, &str)>) -> Option<String> {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let namespace = pod.metadata.namespace.as_deref()?;
    let name = pod.metadata.name.as_deref()?;
    let has = |volume: &Volume| {
        let inline = volume
            .csi
            .as_ref()
            .is_some_and(|source| source.driver == DRIVER);
        let claim = volume.persistent_volume_claim.as_ref();
        let claimed =
            claim.is_some_and(|claim| claims.contains(&(namespace, claim.claim_name.as_str())));
        // The claim that is made for a pod is called by both names.
        let made = volume.ephemeral.is_some()
            && claims.contains(&(namespace, format!("{name}-{}", volume.name).as_str()));
        inline || claimed || made
    };
    let volumes = pod.spec.as_ref()?.volumes.as_ref()?;
    volumes
        .iter()
        .any(has)
        .then(|| format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    fn object<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("of its type")
    }

    fn pod(name: &str, phase: &str, volume: Value) -> Pod {
        object(json!({
            "metadata": { "namespace": "team-a", "name": name },
            "spec": { "containers": [], "volumes": [volume] },
            "status": { "phase": phase },
        }))
    }

    #[test]
    fn pods_have_our_volumes_inline_by_claims_and_by_claims_made_for_them() {
        let volume = |name: &str, driver: &str| {
            object(json!({ "metadata": { "name": name },
                "spec": { "csi": { "driver": driver, "volumeHandle": "cats" } } }))
        };
        let claim = |namespace: &str, name: &str, volume: &str| {
            object(
                json!({ "metadata": { "namespace": namespace, "name": name },
                "spec": { "volumeName": volume } }),
            )
        };
        let volumes = [volume("ours", DRIVER), volume("other", "csi.example.com")];
        let claims = [
            claim("team-a", "cats", "ours"),
            claim("team-a", "dogs", "other"),
            claim("team-b", "birds", "ours"),
            claim("team-a", "made-data", "ours"),
        ];
        let inline = json!({ "name": "data", "csi": { "driver": DRIVER } });
        let by_claim =
            |name| json!({ "name": "data", "persistentVolumeClaim": { "claimName": name } });
        let pods = [
            pod("inline", "Running", inline.clone()),
            pod("over", "Succeeded", inline),
            pod("claims", "Pending", by_claim("cats")),
            pod("another-driver", "Running", by_claim("dogs")),
            pod("another-namespace", "Running", by_claim("birds")),
            pod(
                "made",
                "Running",
                json!({ "name": "data", "ephemeral": {} }),
            ),
            pod("none", "Running", json!({ "name": "data", "emptyDir": {} })),
        ];
        let users = of(&volumes, &claims, &pods);
        assert_eq!(users, ["team-a/claims", "team-a/inline", "team-a/made"]);
    }
}
