# shellcheck shell=bash
# Building benches/peers: other crates for what Trackbed does, on request. To be sourced after
# prerequisites.sh, in the repository's root; nothing happens by that alone.

# What the crate ibverbs needs beside a C compiler: it builds rdma-core's sources for its bindings, and
# links with the system's libibverbs.
PEERS_PACKAGES=(cmake libclang-dev libibverbs-dev libnl-3-dev libnl-route-3-dev pkg-config)

# have_ibverbs_prerequisites: true when what ibverbs needs is there, having installed it if need be.
have_ibverbs_prerequisites() {
    local missing=() package
    command -v dpkg-query >/dev/null || return 0
    for package in "${PEERS_PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            missing+=("$package")
    done
    # In a shell of its own: what can't be installed is to be said, and is no reason to end here.
    [ ${#missing[@]} -eq 0 ] || (install_packages "${missing[@]}")
}

# with_peers PEER CARGO-COMMAND...: runs it for benches/peers. With the peer `ibverbs`, that is in it
# where it can be built; `tokio-uring` always is. What can't be built is said, and PEERS_MISSING begins the
# names of the cases to leave out.
with_peers() {
    local peer=$1 cargo
    shift
    PEERS_MISSING=
    cargo=(cargo "$@" --locked --manifest-path benches/peers/Cargo.toml
        --target-dir "${CARGO_TARGET_DIR:-target}")
    if [ "$peer" = ibverbs ]; then
        if have_ibverbs_prerequisites && "${cargo[@]}" --features ibverbs; then return; fi
        echo "${0##*/}: skipped: peers/ibverbs: that crate can't be built here, as said above; it" \
            "needs Debian's ${PEERS_PACKAGES[*]}, or what they are called elsewhere" >&2
        PEERS_MISSING=peers/ibverbs
    fi
    if ! "${cargo[@]}"; then
        echo "${0##*/}: skipped: peers: benches/peers can't be built here, as said above" >&2
        # shellcheck disable=SC2034 # read by the script that sources this
        PEERS_MISSING=peers
    fi
}
