# shellcheck shell=bash
# hack/vm prepare: host tools, then the guest's kernel and root file system.

readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The first of these Debian suites that has what we need is the guest's: rdma_rxe
# in network namespaces since Linux 7.1, its matching user space since rdma-core 64.
readonly suites="${TRACKBED_VM_SUITES:-forky sid}"
readonly kernel_min=7.1 rdma_core_min=64
# The first QEMU with the SR-IOV network card igb.
readonly qemu_min=8

prepare() {
    local guest lock
    guest="$(guest_folder)"
    if [[ ! -d "$guest" ]]; then
        mkdir -p "$cache"
        exec {lock}>"$cache/prepare.lock"
        flock --nonblock "$lock" || {
            say "another hack/vm prepares a guest: waiting for it"
            flock "$lock"
        }
        [[ -d "$guest" ]] || make_guest "$guest"
        exec {lock}>&-
    fi
    install_tools
}

make_guest() {
    local guest="$1" apt_dir="$cache/apt" building="$cache/building" suite mirror
    install_tools
    [[ -r "$keyring" ]] || apt_install debian-archive-keyring

    say "looking for a Debian suite with Linux >= $kernel_min and rdma-core >= $rdma_core_min"
    choose_suite "$apt_dir"

    as_root rm -rf "$building"
    mkdir -p "$building/debs"
    say "fetching the kernels and busybox of Debian"
    fetch_all "$apt_dir" "$building/debs"

    say "making the guest's root file system (one to three minutes)"
    # In a mount namespace, so that an interrupted debootstrap leaves no mount.
    as_root unshare --mount "$vm_d/build-guest" "$building" "$suite" "$mirror" "$keyring" ||
        die "could not make the guest; its log is $building/log"
    as_root chown -R "$(id -u):$(id -g)" "$building"
    rm -rf "$building/debs" "$apt_dir"
    mv "$building" "$guest"
    say "the guest is ready: Linux $(cat "$guest"/kernels/*/version | paste -sd' ' -), in $guest"
}

# --- host tools -------------------------------------------------------------

install_tools() {
    local missing=() entry
    for entry in flock:util-linux setpriv:util-linux mkfs.ext4:e2fsprogs xz:xz-utils \
        zstd:zstd \
        objcopy:binutils debootstrap:debootstrap dpkg-deb:dpkg; do
        find_tool "${entry%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    if ((${#missing[@]})); then
        apt_install "${missing[@]}"
    fi
    find_tool qemu-system-x86_64 >/dev/null || install_qemu
}

# sbin is not on everyone's PATH.
find_tool() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1"
}

qemu_version() {
    qemu-system-x86_64 --version | sed -n '1s/.*version \([0-9][0-9.]*\).*/\1/p'
}

apt_install() {
    say "installing on this machine: $*"
    command -v apt-get >/dev/null ||
        die "no apt-get on this machine: install by hand: $*"
    as_root apt-get update -qq >/dev/null || die "apt-get update failed"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "could not install them: do it by hand: apt-get install $*"
}

# Where the release's own QEMU is too old, its backport is taken, without adding
# a source to the machine.
install_qemu() {
    local codename candidate mirror options
    codename="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
    if candidate="$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ { print $2 }')" &&
        [[ -z "$candidate" || "$candidate" == "(none)" ]]; then
        as_root apt-get update -qq >/dev/null || die "apt-get update failed"
        candidate="$(apt-cache policy qemu-system-x86 | awk '/Candidate:/ { print $2 }')"
    fi
    if dpkg --compare-versions "${candidate#*:}" ge "$qemu_min"; then
        apt_install qemu-system-x86
        return
    fi
    say "installing on this machine: qemu-system-x86 of $codename-backports"
    mkdir -p "$cache/apt-host"
    for mirror in $(mirrors); do
        private_apt_options "$cache/apt-host" /var/lib/dpkg/status "$mirror" \
            "$codename" "$codename-backports"
        if as_root apt-get "${options[@]}" update -qq >/dev/null &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install \
                -y -qq --no-install-recommends -t "$codename-backports" qemu-system-x86 >/dev/null; then
            as_root rm -rf "$cache/apt-host"
            return
        fi
    done
    as_root rm -rf "$cache/apt-host"
    say "no QEMU >= $qemu_min in $codename-backports: taking the release's own, without --nic igb"
    apt_install qemu-system-x86
}

# --- Debian suites that the machine's own apt may not list ---------------------

# Addresses to look for Debian suites at: TRACKBED_DEBIAN_MIRROR, or those from
# which this machine gets its own Debian packages.
mirrors() {
    if [[ -n "${TRACKBED_DEBIAN_MIRROR:-}" ]]; then
        echo "$TRACKBED_DEBIAN_MIRROR"
        return
    fi
    # shellcheck disable=SC2016 # apt-get expands these
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 ~ /^(bookworm|trixie|forky|duke|sid|stable|testing|unstable)$/ && $3 == "main" { print $1 }' |
        sort -u
}

# Sets `options` for an apt that knows only the given suites of one mirror, and
# keeps its state in a folder of its own.
private_apt_options() {
    local folder="$1" dpkg_status="$2" mirror="$3" suite
    shift 3
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    for suite in "$@"; do
        echo "deb [signed-by=$keyring] $mirror $suite main"
    done >"$folder/sources.list"
    options=(
        -o "Dir::Etc::SourceList=$folder/sources.list"
        -o Dir::Etc::SourceParts=/dev/null
        -o Dir::Etc::Preferences=/dev/null
        -o Dir::Etc::PreferencesParts=/dev/null
        -o "Dir::State::Lists=$folder/lists"
        -o "Dir::State::Status=$dpkg_status"
        -o "Dir::Cache=$folder/cache"
        -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o APT::Sandbox::User=root
    )
}

# Sets `suite` and `mirror` of the caller, and leaves the suite's lists in $1.
choose_suite() {
    local folder="$1" options kernel rdma_core tried=0
    for mirror in $(mirrors); do
        for suite in $suites; do
            tried=1
            rm -rf "$folder"
            guest_apt_options "$folder"
            apt-get "${options[@]}" update -qq >/dev/null || continue
            kernel="$(newest linux-image-amd64)"
            rdma_core="$(newest rdma-core)"
            if dpkg --compare-versions "${kernel:-0}" ge "$kernel_min" &&
                dpkg --compare-versions "${rdma_core:-0}" ge "$rdma_core_min"; then
                say "Debian $suite has Linux $kernel and rdma-core $rdma_core"
                return
            fi
        done
    done
    ((tried)) || die "this machine's apt has no Debian source to derive a mirror from:" \
        "set TRACKBED_DEBIAN_MIRROR to the address of a Debian mirror (the folder that holds dists/)"
    die "no suite of '$suites' with Linux >= $kernel_min and rdma-core >= $rdma_core_min was found:" \
        "set TRACKBED_VM_SUITES or TRACKBED_DEBIAN_MIRROR"
}

guest_apt_options() {
    mkdir -p "$1"
    : >"$1/no-packages-installed"
    private_apt_options "$1" "$1/no-packages-installed" "$mirror" "$suite"
}

newest() {
    apt-cache "${options[@]}" madison "$1" | awk -F ' *[|] *' 'NR == 1 { print $2 }'
}

# Busybox, and the packages of each kernel in a folder of its own. Sets `suite` back when it is through
# with those of other suites.
fetch_all() {
    local folder="$1" target="$2" own="$suite" options name
    guest_apt_options "$folder"
    fetch "$target" busybox-static
    fetch_kernel "$folder" "$target/newest"
    while read -r name suite; do
        rm -rf "$folder"
        guest_apt_options "$folder"
        apt-get "${options[@]}" update -qq >/dev/null ||
            die "there is no Debian $suite at $mirror, whose kernel $name hack/vm.d/kernels names"
        fetch_kernel "$folder" "$target/$name"
    done < <(list kernels)
    suite="$own"
}

# linux-image-amd64 only names the packages of the newest kernel.
fetch_kernel() {
    local folder="$1" target="$2" options names
    guest_apt_options "$folder"
    mapfile -t names < <(
        apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests \
            --no-conflicts --no-breaks --no-replaces --no-enhances linux-image-amd64 |
            grep -E '^linux-(image|base|binary|modules)-[0-9]' | sort -u
    )
    ((${#names[@]})) || die "linux-image-amd64 of Debian $suite names no kernel"
    fetch "$target" "${names[@]}"
}

# fetch FOLDER PACKAGE...
fetch() {
    mkdir -p "$1"
    (cd "$1" && shift && apt-get "${options[@]}" download -qq "$@") >/dev/null ||
        die "could not fetch ${*:2} of Debian $suite"
}
