# shellcheck shell=bash
# What the scripts of hack/ need on a machine, and how it gets there: packages by apt-get where
# this user may, else the command to run is said. To be sourced; nothing happens by that alone.

# The package of Debian and Ubuntu that has a command.
package_of() {
    case $1 in
    cc | gcc) echo gcc libc6-dev ;;
    c++) echo g++ libc6-dev ;;
    ip | rdma | bridge) echo iproute2 ;;
    fusermount3) echo fuse3 ;;
    fsck.erofs) echo erofs-utils ;;
    readelf | strip) echo binutils ;;
    nsenter | setpriv | unshare) echo util-linux ;;
    chroot | sha256sum) echo coreutils ;;
    dpkg-deb) echo dpkg ;;
    python3) echo python3 ;;
    *) echo "$1" ;;
    esac
}

# fail SENTENCE...: says it and ends the script.
fail() {
    echo "${0##*/}: $*" >&2
    exit 3
}

# install_packages PACKAGE...: installs them, or says what to run.
install_packages() {
    local as_root=()
    command -v apt-get >/dev/null ||
        fail "missing: $*. This machine has no apt-get; install what your distribution calls them"
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
            as_root=(sudo)
        else
            fail "missing: $*. Run as root: apt-get update && apt-get install -y $*"
        fi
    fi
    echo "${0##*/}: installing $* with apt-get" >&2
    # Not yet updated lists are the usual reason for a failure: then once more after an update.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@" >&2 ||
        { "${as_root[@]}" apt-get update >&2 &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends "$@" >&2; } ||
        fail "apt-get could not install $*. Run it by hand to see why, then try again"
}

# need_commands COMMAND...: installs the packages of those that are missing.
need_commands() {
    local command packages=()
    for command in "$@"; do
        # The paths of administrators' commands are not in every user's PATH.
        PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null && continue
        # shellcheck disable=SC2207 # package names have no blanks
        packages+=($(package_of "$command"))
    done
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# need_verbs_headers: the headers of libibverbs and librdmacm, which tests and benchmarks compare with.
# What is compared needs them; Trackbed itself doesn't.
need_verbs_headers() {
    local packages=()
    [ -e /usr/include/infiniband/verbs.h ] || packages+=(libibverbs-dev)
    [ -e /usr/include/rdma/rdma_cma.h ] || packages+=(librdmacm-dev)
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# The toolchain that rust-toolchain.toml names.
rust_channel() {
    sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml
}

# version_at_least HAVE WANT
version_at_least() {
    [ "$(printf '%s\n' "$2" "$1" | sort --version-sort | head -n 1)" = "$2" ]
}

# True when `cargo` is there and new enough, having rustup fetch the named toolchain if need be.
have_rust() {
    command -v cargo >/dev/null || return 1
    local version
    version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
    if [ -z "$version" ] && command -v rustup >/dev/null; then
        rustup toolchain install "$(rust_channel)" --profile minimal \
            --component rustfmt --component clippy >&2 || return 1
        version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
    fi
    [ -n "$version" ] && version_at_least "$version" "$(rust_channel)"
}

# need_rust: a C compiler, and a Rust of at least the version that rust-toolchain.toml names. To be
# called in the repository's root.
need_rust() {
    # A user's own rustup is not in the PATH of a shell that is no login shell.
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    need_commands cc
    have_rust && return
    if ! command -v rustup >/dev/null && [ -n "$(apt-cache search --names-only '^rustup$' 2>/dev/null)" ]; then
        install_packages rustup
    fi
    if ! command -v rustup >/dev/null; then
        need_commands curl
        echo "${0##*/}: installing Rust with rustup, for this user alone" >&2
        local installer
        installer=$(mktemp)
        if curl --proto '=https' --tlsv1.2 -sSf --max-time 60 https://sh.rustup.rs -o "$installer"; then
            sh "$installer" -y --profile minimal --default-toolchain none >&2 || true
        fi
        rm -f "$installer"
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    hash -r
    have_rust ||
        fail "needs Rust $(rust_channel) or later: install it from https://rustup.rs, or your" \
            "distribution's rustup, and run this again"
}
