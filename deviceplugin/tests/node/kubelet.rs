//! What kubelet gets of the plugin, over the sockets that it uses.

use std::fs;

use crate::support::Node;
use tonic::Code;
use trackbed_proto::deviceplugin::v1beta1::{
    ContainerPreferredAllocationRequest, PreStartContainerRequest, PreferredAllocationRequest,
};
use trackbed_tests::kubelet::PATIENCE;
use trackbed_tests::machine::{Adapter, Machine};

const ROCE: Adapter = Adapter::ROCE;
const VF: &str = "trackbed.io/vf";
const CONFIG: &str = "pools: [{name: vf, select: {rdma: true}}]";

fn id(index: u32) -> String {
    format!("mt2042x00123-0-0-vf{index}")
}

fn machine(vfs: u32) -> Machine {
    let machine = Machine::new();
    machine.adapter(&ROCE, 0);
    machine.virtual_functions(&ROCE, vfs, 1);
    machine
}

async fn node(vfs: u32) -> Node {
    let mut node = Node::new(machine(vfs), CONFIG);
    node.kubelet.start();
    node.start().await;
    node.kubelet.healthy(VF, vfs as usize).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_it_needs_to_use_its_device() {
    let node = node(3).await;
    let list = node.kubelet.healthy(VF, 3).await;
    let ids: Vec<_> = list.iter().map(|device| device.id.clone()).collect();
    assert_eq!(ids, [id(0), id(1), id(2)]);
    let nodes = &list[0].topology.as_ref().expect("told").nodes;
    assert_eq!(nodes[0].id, 0, "NUMA node 0 is told as well");

    let given = node
        .kubelet
        .admit(VF, "a", &[&id(1), &id(0)])
        .await
        .expect("given");
    let paths: Vec<_> = given
        .devices
        .iter()
        .map(|it| it.container_path.as_str())
        .collect();
    let own = [
        "/dev/infiniband/rdma_cm",
        "/dev/infiniband/uverbs1",
        "/dev/infiniband/uverbs2",
    ];
    assert_eq!(paths, own);
    let env = |name: &str| given.envs.get(name).map(String::as_str);
    assert_eq!(env("TRACKBED_VF_PCI"), Some("0000:3b:00.2,0000:3b:00.1"));
    assert_eq!(env("TRACKBED_VF_NET"), Some("ens59f0v1,ens59f0v0"));
    assert_eq!(env("NCCL_IB_HCA"), Some("=mlx5_2,mlx5_1"));
    assert_eq!(env("UCX_NET_DEVICES"), Some("mlx5_2:1,mlx5_1:1"));
    // Names change: they are looked up at that moment.
    node.machine.move_away(&ROCE, &ROCE.vf(2), 3);
    let refused = node
        .kubelet
        .admit(VF, "b", &[&id(0)])
        .await
        .expect_err("held");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("ns/a"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kubelet_can_not_mean_is_refused_and_nothing_is_given() {
    let node = node(2).await;
    let refused = async |ids: &[&str]| {
        let refused = node.kubelet.admit(VF, "a", ids).await.expect_err("refused");
        (refused.code(), refused.message().to_owned())
    };
    assert_eq!(refused(&[&id(0), "nowhere"]).await.0, Code::NotFound);
    assert_eq!(refused(&[&id(0), &id(0)]).await.0, Code::InvalidArgument);
    assert_eq!(refused(&[]).await.0, Code::InvalidArgument);
    let many = vec!["x"; 5000];
    assert_eq!(refused(&many).await.0, Code::InvalidArgument);
    fs::remove_file(node.machine.at("dev/infiniband/uverbs2")).expect("removed");
    let (code, said) = refused(&[&id(0), &id(1)]).await;
    assert_eq!(code, Code::Unavailable);
    assert!(said.contains("uverbs2") && said.contains("udev"), "{said}");
    node.kubelet
        .admit(VF, "a", &[&id(0)])
        .await
        .expect("it is still free");

    let mut plugin = node.kubelet.plugin(VF).await;
    let prefer = |available: &[String], must: &[String], size| PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_i_ds: available.to_vec(),
            must_include_device_i_ds: must.to_vec(),
            allocation_size: size,
        }],
    };
    let preferred = plugin
        .get_preferred_allocation(prefer(&[id(0), id(1)], &[id(1)], 1))
        .await;
    let preferred = preferred.expect("chosen").into_inner();
    assert_eq!(preferred.container_responses[0].device_i_ds, [id(1)]);
    for (must, size) in [(vec![], 3), (vec![], 0), (vec![], -1), (vec![id(7)], 1)] {
        let refused = plugin
            .get_preferred_allocation(prefer(&[id(0), id(1)], &must, size))
            .await;
        assert_eq!(refused.expect_err("refused").code(), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_comes_back_and_finds_every_device() {
    let mut node = node(4).await;
    node.kubelet.admit(VF, "a", &[&id(1)]).await.expect("given");
    node.machine.move_away(&ROCE, &ROCE.vf(1), 2);
    for _ in 0..3 {
        node.kubelet.kill().await;
        node.kubelet.start();
        node.kubelet.healthy(VF, 4).await;
    }
    let refused = node
        .kubelet
        .admit(VF, "b", &[&id(1)])
        .await
        .expect_err("held");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_was_killed_knows_who_has_what() {
    let mut node = node(4).await;
    node.kubelet.admit(VF, "a", &[&id(1)]).await.expect("given");
    let moved = node.machine.move_away(&ROCE, &ROCE.vf(1), 2);
    node.kill().await;
    node.start().await;
    node.kubelet.healthy(VF, 4).await;
    assert!(node.kubelet.admit(VF, "b", &[&id(1)]).await.is_err());

    // Its journal is lost, and it can't be seen: kubelet knows.
    node.kill().await;
    fs::remove_dir_all(node.state_dir()).expect("removed");
    node.start().await;
    node.kubelet.healthy(VF, 4).await;
    let refused = node
        .kubelet
        .admit(VF, "b", &[&id(1)])
        .await
        .expect_err("held");
    assert!(refused.message().contains("ns/a"), "{}", refused.message());
    moved.back();
    node.kubelet.end("a");
    node.plugin().reconcile().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        // Files that move tell nobody: it is looked for, which takes its time.
        node.plugin().look_again();
        match node.kubelet.admit(VF, "b", &[&id(1)]).await {
            Ok(_) => return,
            Err(refused) => assert!(tokio::time::Instant::now() < deadline, "{refused}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_given_again_when_its_pod_ended_and_it_works() {
    let node = node(2).await;
    let address = ROCE.vf(0);
    node.kubelet.admit(VF, "a", &[&id(0)]).await.expect("given");
    let moved = node.machine.move_away(&ROCE, &address, 1);
    node.broken
        .0
        .lock()
        .expect("no panic")
        .insert(address.parse().expect("an address"));
    node.plugin().reconcile().await;
    node.kubelet.end("a");
    node.plugin().reconcile().await;
    node.kubelet.healthy(VF, 1).await;
    let why = async |part: &str| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let shown = node.plugin().state.status().remove(0).devices.remove(0);
            if format!("{:?}", shown.health).contains(part) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{shown:?} has no {part:?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    // Files that move tell nobody: it is looked for.
    node.plugin().look_again();
    why("has not come back").await;
    let refused = node
        .kubelet
        .admit(VF, "b", &[&id(0)])
        .await
        .expect_err("not back");
    assert!(
        refused.message().contains("come back"),
        "{}",
        refused.message()
    );
    // It is back with another address than it had, then as it was and broken, then well.
    moved.back();
    let mac = format!("sys/bus/pci/devices/{address}/net/ens59f0v0/address");
    let had = fs::read_to_string(node.machine.at(&mac)).expect("reads");
    node.machine.write(&mac, "02:00:00:00:00:ee\n");
    node.plugin().look_again();
    why("02:00:00:00:00:ee").await;
    node.machine.write(&mac, &had);
    node.plugin().look_again();
    why("not been probed").await;
    assert!(node.kubelet.admit(VF, "b", &[&id(0)]).await.is_err());
    node.broken.0.lock().expect("no panic").clear();
    node.kubelet
        .admit(VF, "b", &[&id(0)])
        .await
        .expect("it is tried when it is wanted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_goes_down_is_told_and_so_is_its_recovery() {
    let node = node(3).await;
    node.machine.set_port(&ROCE, &ROCE.vf(1), 2, false);
    node.plugin().look_again();
    let list = node.kubelet.healthy(VF, 2).await;
    assert_eq!(list[1].health, "Unhealthy");
    let refused = node
        .kubelet
        .admit(VF, "a", &[&id(1)])
        .await
        .expect_err("down");
    assert!(refused.message().contains("DOWN"), "{}", refused.message());
    node.machine.set_port(&ROCE, &ROCE.vf(1), 2, true);
    node.plugin().look_again();
    node.kubelet.healthy(VF, 3).await;
    // One that is taken out is not there any more.
    node.machine.remove(&ROCE.vf(2));
    node.plugin().look_again();
    node.kubelet.list(VF, |list| list.len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_does_not_start_with_a_device_that_does_not_work() {
    let node = node(2).await;
    node.kubelet.admit(VF, "a", &[&id(0)]).await.expect("given");
    let mut plugin = node.kubelet.plugin(VF).await;
    let request = || PreStartContainerRequest {
        devices_ids: vec![id(0)],
    };
    plugin
        .pre_start_container(request())
        .await
        .expect("it works");
    let address = ROCE.vf(0).parse().expect("an address");
    node.broken.0.lock().expect("no panic").insert(address);
    let refused = plugin
        .pre_start_container(request())
        .await
        .expect_err("broken");
    assert!(
        refused.message().contains("bytes are lost"),
        "{}",
        refused.message()
    );
    // In the pod's namespace it can't be tried, which is no fault.
    node.machine.move_away(&ROCE, &ROCE.vf(0), 1);
    plugin
        .pre_start_container(request())
        .await
        .expect("not here");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_shared_among_as_many_as_are_configured() {
    let config = "pools: [{name: hca, mode: shared, shares: 3}]";
    let mut node = Node::new(machine(1), config);
    node.kubelet.start();
    node.start().await;
    let hca = "trackbed.io/hca";
    let list = node.kubelet.healthy(hca, 3).await;
    for (pod, device) in ["a", "b", "c"].into_iter().zip(&list) {
        let given = node
            .kubelet
            .admit(hca, pod, &[&device.id])
            .await
            .expect("a share");
        assert_eq!(given.envs["NCCL_IB_HCA"], "=mlx5_0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_that_overlap_here_are_refused_at_the_start() {
    let config = "pools: [{name: one}, {name: two}]";
    let node = Node::new(machine(1), config);
    let refused = node.prepare().await.err().expect("refused").to_string();
    assert!(
        refused.contains("one") && refused.contains("two"),
        "{refused}"
    );
}
