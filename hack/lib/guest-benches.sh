#!/usr/bin/env bash
# Runs a criterion benchmark inside the guest of hack/vm, on a software RDMA device that talks to itself.
#
# Usage: hack/lib/guest-benches.sh EXECUTABLE [ARGUMENT]...
set -euo pipefail

[ "${TRACKBED_GUEST:-}" = 1 ] || {
    echo "${0##*/}: this is for the guest: hack/bench rdma --criterion" >&2
    exit 3
}

ip link add tb0 mtu 9000 type veth peer name tb1 mtu 9000
ip address add 10.89.0.1/24 dev tb0
ip link set lo up
ip link set tb0 up
ip link set tb1 up
rdma link add rxe0 type rxe netdev tb0

# What criterion keeps for the next run is gone with the guest.
TRACKBED_BENCH_DEVICE=rxe0 CRITERION_HOME=/tmp/criterion exec "$@" --bench
