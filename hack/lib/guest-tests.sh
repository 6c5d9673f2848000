#!/usr/bin/env bash
# Runs test executables inside the guest of hack/vm, where two software RDMA devices are joined by a
# link: each in a network namespace of its own, as two hosts would be.
#
# Usage: hack/lib/guest-tests.sh EXECUTABLE...
set -euo pipefail

[ "${TRACKBED_GUEST:-}" = 1 ] || {
    echo "${0##*/}: this is for the guest: hack/test guest" >&2
    exit 3
}

ip netns add one
ip netns add other
ip link add tb0 netns one mtu 9000 type veth peer name tb1 netns other mtu 9000
for end in "one tb0 1 rxeone" "other tb1 2 rxeother"; do
    read -r namespace net_device host device <<<"$end"
    ip -n "$namespace" link set lo up
    ip -n "$namespace" address add "10.88.0.$host/24" dev "$net_device"
    ip -n "$namespace" link set "$net_device" up
    ip netns exec "$namespace" rdma link add "$device" type rxe netdev "$net_device"
done

# The devices are slow under emulation, and one after the other they disturb each other least.
for executable in "$@"; do
    echo "-- ${executable##*/}" >&2
    TRACKBED_TEST_DEVICES=rxeone,rxeother \
        ip netns exec one "$executable" --test-threads 1
done
