//! What kubelet, a user's manifest and the driver's own files say. See [`crate::fuzzing`].

use std::collections::HashMap;
use std::path::Component;

use trackbed_cache::Digest;

use super::ledger::{Created, SnapshotEntry, Source, VolumeEntry};
use super::path::HostPath;
use super::record::Record;
use super::spec::{Said, VolumeSpec};
use super::volume::VolumeId;
use crate::fuzzing::Target;

/// A volume's id on the first line, its context in the others, `key=value`.
pub(crate) const VOLUME: Target = Target {
    name: "volume-context",
    seeds: || {
        let digest = Digest::of(b"v");
        let volumes = [
            format!("cats@{digest}"),
            format!("pvc-1\ndataset=cats\nversion={digest}\ncsi.storage.k8s.io/ephemeral=true"),
            "v\nempty=true\ncsi.storage.k8s.io/pod.namespace=team-a".to_owned(),
            "cats\ndatset=dogs".to_owned(),
        ];
        volumes.map(String::into_bytes).into()
    },
    check: volume,
};

/// A path that kubelet sends.
pub(crate) const PATH: Target = Target {
    name: "host-path",
    seeds: || {
        let paths = ["/var/lib/kubelet/pods/1/volumes/v/mount", "//a/./b//c/"];
        paths.map(|path| path.as_bytes().to_vec()).into()
    },
    check: |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Ok(path) = HostPath::parse("target_path", text)
        {
            let path = path.as_path();
            assert!(path.is_absolute() && path.file_name().is_some());
            assert!(path.components().all(|part| part != Component::ParentDir));
            assert!(HostPath::recorded(path).is_ok());
        }
    },
};

/// What the driver remembers of a staged volume, and the registry of a created one.
pub(crate) const RECORD: Target = Target {
    name: "volume-record",
    seeds: record_seeds,
    check: |bytes| {
        read::<Record>(bytes);
        read::<VolumeEntry>(bytes);
        read::<SnapshotEntry>(bytes);
    },
};

fn volume(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut lines = text.lines();
    let Ok(id) = VolumeId::parse(lines.next().unwrap_or_default()) else {
        return;
    };
    let pairs = lines.filter_map(|line| line.split_once('='));
    let context: HashMap<String, String> = pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let spec =
        Said::parse("volume", "volume_context", &context).and_then(|said| said.spec_or_id(&id));
    match spec {
        Ok(spec) => {
            let again = Said::parse("", "", &spec.context()).map(|said| said.spec());
            assert_eq!(again.expect("its own context"), Some(spec));
        }
        // A refusal travels in gRPC's trailers, which are small.
        Err(error) => assert!(error.to_string().len() < 1000 + 10 * text.len()),
    }
}

fn read<T>(bytes: &[u8])
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    if let Ok(read) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&read).expect("it was JSON");
        let again: T = serde_json::from_slice(&again).expect("its own text");
        assert_eq!(again, read);
    }
}

fn record_seeds() -> Vec<Vec<u8>> {
    let content = || VolumeSpec {
        dataset: "cats".parse().ok(),
        version: Some(Digest::of(b"v")),
    };
    let volume = VolumeEntry {
        name: "pvc-1".to_owned(),
        content: content(),
        bytes: 7,
        capacity: 1 << 30,
        source: Some(Source::Snapshot("snapshot:1".to_owned())),
        created: Created(1),
    };
    let snapshot = SnapshotEntry {
        name: "s".to_owned(),
        volume: "cats".to_owned(),
        content: content(),
        bytes: 7,
        created: Created(2),
    };
    let access = serde_json::json!({"mode": 3, "flags": ["noexec"]});
    let record = serde_json::json!({
        "volume": "cats", "spec": content(), "pinned": Digest::of(b"v"), "access": access,
        "staging": "/staging", "inline": false,
        "targets": [{"path": "/pods/1", "access": access, "read_only": true}],
    });
    let texts = [
        serde_json::to_vec(&volume),
        serde_json::to_vec(&snapshot),
        serde_json::to_vec(&record),
    ];
    texts.map(|text| text.expect("JSON")).into()
}
