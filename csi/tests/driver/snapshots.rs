//! Snapshots and clones: names for the same version, found by whoever looks for them.

use tonic::Code;
use trackbed_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use trackbed_proto::csi::v1::{
    CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, GetSnapshotRequest,
    ListSnapshotsRequest, ListSnapshotsResponse, Snapshot, VolumeContentSource,
};

use crate::support::cluster::Cluster;
use crate::{cats, create_of, create_request, datasets, snapshot_request};

fn of_snapshot(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource {
            snapshot_id: id.to_owned(),
        })),
    })
}

fn of_volume(id: &str) -> Option<VolumeContentSource> {
    Some(VolumeContentSource {
        r#type: Some(Type::Volume(VolumeSource {
            volume_id: id.to_owned(),
        })),
    })
}

async fn list(cluster: &mut Cluster, request: ListSnapshotsRequest) -> ListSnapshotsResponse {
    let answer = cluster.controller.list_snapshots(request).await;
    answer.expect("lists").into_inner()
}

fn all(list: ListSnapshotsResponse) -> Vec<Snapshot> {
    let entries = list.entries.into_iter();
    entries
        .map(|entry| entry.snapshot.expect("a snapshot"))
        .collect()
}

/// A volume of cats, and a snapshot of it.
async fn snapshot(cluster: &mut Cluster, name: &str) -> Snapshot {
    let volume = cluster
        .create(create_of(&format!("of-{name}"), "cats"))
        .await;
    cluster
        .snapshot(snapshot_request(name, &volume.volume_id))
        .await
}

#[tokio::test]
async fn a_snapshot_needs_a_name_and_a_volume_that_is_there() {
    let cluster = Cluster::start(&datasets()).await;
    let mut controller = cluster.controller.clone();
    let mut with_dataset = snapshot_request("name", "cats");
    with_dataset.parameters = [("dataset".to_owned(), "dogs".to_owned())].into();
    let mut with_unknown = snapshot_request("name", "cats");
    with_unknown.parameters = [("speed".to_owned(), "high".to_owned())].into();
    let wrong = [
        (snapshot_request("", "testId"), Code::InvalidArgument),
        (snapshot_request("name", ""), Code::InvalidArgument),
        (
            snapshot_request(&"x".repeat(129), "cats"),
            Code::InvalidArgument,
        ),
        (with_dataset, Code::InvalidArgument),
        (with_unknown, Code::InvalidArgument),
        (snapshot_request("name", "lions"), Code::NotFound),
        (snapshot_request("name", "fake vol id"), Code::NotFound),
    ];
    for (request, expected) in wrong {
        let said = format!("{request:?}");
        assert_eq!(
            code!(controller.create_snapshot(request)),
            expected,
            "{said}"
        );
    }
}

#[tokio::test]
async fn the_same_name_is_the_same_snapshot_and_never_that_of_another_volume() {
    let mut cluster = Cluster::start(&datasets()).await;
    let first = snapshot(&mut cluster, "s").await;
    let again = snapshot_request("s", &first.source_volume_id);
    assert_eq!(cluster.snapshot(again).await, first);
    let mut controller = cluster.controller.clone();
    let other = snapshot_request("s", "cats");
    assert_eq!(
        code!(controller.create_snapshot(other)),
        Code::AlreadyExists
    );
    let longest = snapshot_request(&"x".repeat(128), &first.source_volume_id);
    for _ in 0..2 {
        let snapshot = cluster.snapshot(longest.clone()).await;
        assert!(snapshot.snapshot_id.len() <= 128);
    }
}

#[tokio::test]
async fn snapshots_are_found_by_their_own_id_and_by_their_volume_s() {
    let mut cluster = Cluster::start(&datasets()).await;
    snapshot(&mut cluster, "before").await;
    let wanted = snapshot(&mut cluster, "wanted").await;
    snapshot(&mut cluster, "after").await;
    let by_id = ListSnapshotsRequest {
        snapshot_id: wanted.snapshot_id.clone(),
        ..Default::default()
    };
    assert_eq!(
        all(list(&mut cluster, by_id.clone()).await),
        std::slice::from_ref(&wanted)
    );
    let by_volume = ListSnapshotsRequest {
        source_volume_id: wanted.source_volume_id.clone(),
        ..Default::default()
    };
    assert_eq!(
        all(list(&mut cluster, by_volume).await),
        std::slice::from_ref(&wanted)
    );
    let neither = [
        ListSnapshotsRequest {
            snapshot_id: "none-exist-id".to_owned(),
            ..Default::default()
        },
        ListSnapshotsRequest {
            source_volume_id: "fake-vol-id-1234567890".to_owned(),
            ..Default::default()
        },
        ListSnapshotsRequest {
            source_volume_id: "cats".to_owned(),
            ..by_id
        },
    ];
    for request in neither {
        assert!(all(list(&mut cluster, request).await).is_empty());
    }

    let get = |id: &str| GetSnapshotRequest {
        snapshot_id: id.to_owned(),
    };
    let mut controller = cluster.controller.clone();
    let answer = controller.get_snapshot(get(&wanted.snapshot_id)).await;
    let found = answer.expect("answers").into_inner().snapshot;
    assert_eq!(found, Some(wanted));
    for (id, expected) in [
        ("", Code::InvalidArgument),
        ("none-exist-id", Code::NotFound),
    ] {
        assert_eq!(code!(controller.get_snapshot(get(id))), expected);
    }
}

#[tokio::test]
async fn snapshots_come_a_page_at_a_time_and_the_rest_at_once() {
    let mut cluster = Cluster::start(&datasets()).await;
    let mut expected = Vec::new();
    for number in 0..5 {
        expected.push(snapshot(&mut cluster, &format!("snapshot{number}")).await);
    }
    let page = ListSnapshotsRequest {
        max_entries: 2,
        ..Default::default()
    };
    let first = list(&mut cluster, page).await;
    let rest = ListSnapshotsRequest {
        starting_token: first.next_token.clone(),
        ..Default::default()
    };
    let mut seen = all(first);
    assert_eq!(seen.len(), 2);
    seen.extend(all(list(&mut cluster, rest).await));
    assert_eq!(seen, expected);
    let wrong = ListSnapshotsRequest {
        starting_token: "invalid-token".to_owned(),
        ..Default::default()
    };
    let code = code!(cluster.controller.list_snapshots(wrong));
    assert_eq!(code, Code::Aborted);
}

#[tokio::test]
async fn a_deleted_snapshot_is_gone_and_deleting_what_is_not_there_is_fine() {
    let mut cluster = Cluster::start(&datasets()).await;
    let snapshot = snapshot(&mut cluster, "s").await;
    let mut controller = cluster.controller.clone();
    let delete = |id: &str| DeleteSnapshotRequest {
        snapshot_id: id.to_owned(),
    };
    assert_eq!(
        code!(controller.delete_snapshot(delete(""))),
        Code::InvalidArgument
    );
    for id in [
        "reallyfakesnapshotid",
        &snapshot.snapshot_id,
        &snapshot.snapshot_id,
    ] {
        assert_eq!(code!(controller.delete_snapshot(delete(id))), Code::Ok);
    }
    let left = list(&mut cluster, ListSnapshotsRequest::default()).await;
    assert!(left.entries.is_empty());
}

#[tokio::test]
async fn a_volume_of_a_snapshot_or_of_a_volume_shows_the_same_version_for_ever() {
    let datasets = datasets();
    let mut cluster = Cluster::start(&datasets).await;
    let volume = cluster.create(create_of("a", "cats")).await;
    let snapshot = cluster
        .snapshot(snapshot_request("s", &volume.volume_id))
        .await;
    assert_eq!(snapshot.size_bytes, 200_004);
    // The dataset goes on, and the volume goes away.
    datasets.put("cats", &cats("purr, purr"));
    let clone = CreateVolumeRequest {
        volume_content_source: of_volume(&volume.volume_id),
        ..create_request("clone")
    };
    let clone = cluster.create(clone).await;
    let request = DeleteVolumeRequest {
        volume_id: volume.volume_id.clone(),
    };
    cluster
        .controller
        .delete_volume(request)
        .await
        .expect("deletes");
    // With the class's parameters, as the provisioner sends them again.
    let restore = CreateVolumeRequest {
        volume_content_source: of_snapshot(&snapshot.snapshot_id),
        ..create_of("restored", "cats")
    };
    let restored = cluster.create(restore.clone()).await;
    assert_eq!(cluster.create(restore).await, restored);
    for copy in [&clone, &restored] {
        assert_eq!(copy.volume_context, volume.volume_context);
        assert!(copy.content_source.is_some());
    }
    // Of what an administrator wrote down: the version that it shows now.
    let written = CreateVolumeRequest {
        volume_content_source: of_volume("cats"),
        ..create_request("written")
    };
    let written = cluster.create(written).await;
    assert_ne!(
        written.volume_context["version"],
        volume.volume_context["version"]
    );
}

#[tokio::test]
async fn a_source_that_is_not_there_is_not_found_and_one_of_other_data_refused() {
    let mut cluster = Cluster::start(&datasets()).await;
    let snapshot = snapshot(&mut cluster, "s").await;
    let mut controller = cluster.controller.clone();
    let with = |volume_content_source, dataset: &str| CreateVolumeRequest {
        volume_content_source,
        ..create_of("new", dataset)
    };
    let wrong = [
        (
            with(of_snapshot("non-existing-snapshot-id"), "cats"),
            Code::NotFound,
        ),
        (
            with(of_volume("fake-vol-id-1234567890"), "cats"),
            Code::NotFound,
        ),
        (with(of_volume(""), "cats"), Code::InvalidArgument),
        (with(of_snapshot(""), "cats"), Code::InvalidArgument),
        (
            with(of_snapshot(&snapshot.snapshot_id), "dogs"),
            Code::InvalidArgument,
        ),
    ];
    for (request, expected) in wrong {
        let said = format!("{request:?}");
        assert_eq!(code!(controller.create_volume(request)), expected, "{said}");
    }
    cluster.create(create_of("new", "cats")).await;
    let source = with(of_snapshot(&snapshot.snapshot_id), "cats");
    assert_eq!(code!(controller.create_volume(source)), Code::AlreadyExists);
}
