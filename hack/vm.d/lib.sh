# shellcheck shell=bash
# What prepare.sh and boot.sh share: messages, the cache's layout, rights.

readonly vm_d="${BASH_SOURCE[0]%/*}"
readonly cache="${TRACKBED_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/trackbed/vm}"

# Exit statuses of hack/vm itself; any other is the command's own.
readonly exit_timeout=124
readonly exit_failure=125

say() {
    printf 'hack/vm: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit "$exit_failure"
}

# Lines of a list file of hack/vm.d, without comments and empty lines.
list() {
    sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' "$vm_d/$1"
}

# Names of the kernels that a guest can boot.
kernels() {
    echo newest
    list kernels | cut -d' ' -f1
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root, and there is no sudo: run as root: $*"
    fi
}

# The guest's folder in the cache: root.ext4, busybox, kernels/.
# Its name changes with all that decides its content, so that a guest is either
# there whole and right, or not there.
guest_folder() {
    local key
    key="$( (list packages && list modules && list kernels && cat "$vm_d/build-guest") | sha256sum)"
    echo "$cache/guest-${key:0:12}"
}
