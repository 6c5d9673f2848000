#!/usr/bin/env bash
# image-test.sh BINARY: builds the image twice and looks at it as its users do: both are equal, an
# engine's own reader takes it as either kind of archive, and its program runs from its root.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=hack/lib/prerequisites.sh
. hack/lib/prerequisites.sh
need_commands tar skopeo chroot unshare

binary=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export SOURCE_DATE_EPOCH=1700000000
hack/image --binary "$binary" --output "$work/first.tar" | tee "$work/said" >&2
# Another folder, another umask and time zone change nothing.
(umask 077 && TZ=Asia/Tokyo hack/image --binary "$binary" --output "$work/other/second.tar" >/dev/null)
cmp "$work/first.tar" "$work/other/second.tar" || fail "two builds of one image differ"
digest=$(sed -n 's/^digest: *//p' "$work/said")

# skopeo reads archives as podman does; it checks every digest while it copies.
skopeo copy --quiet "oci-archive:$work/first.tar" "dir:$work/oci"
[ "sha256:$(sha256sum "$work/oci/manifest.json" | cut -d ' ' -f 1)" = "$digest" ] ||
    fail "the archive's manifest is not the one whose digest was printed"
skopeo inspect --config "oci-archive:$work/first.tar" | grep -q '"created": "2023-11-14T22:13:20Z"' ||
    fail "SOURCE_DATE_EPOCH is not the image's time"
skopeo copy --quiet "docker-archive:$work/first.tar" "dir:$work/docker"

# The root, layer upon layer, as a runtime makes it.
mkdir "$work/layout" "$work/root"
tar -x -C "$work/layout" -f "$work/first.tar"
mapfile -t layers < <(grep -o '"Layers":\[[^]]*\]' "$work/layout/manifest.json" | grep -o 'blobs/sha256/[0-9a-f]*')
((${#layers[@]} > 0)) || fail "manifest.json names no layer"
for layer in "${layers[@]}"; do
    tar -x -C "$work/root" --keep-directory-symlink --no-same-owner -f "$work/layout/$layer"
done
run_in_root() {
    if [ "$(id -u)" -eq 0 ]; then
        # As the user that the image names.
        chroot --userspec=65532:65532 "$work/root" "$@"
    else
        unshare --map-root-user chroot "$work/root" "$@"
    fi
}
[ "$(run_in_root /usr/bin/trackbed --version)" = "$("$binary" --version)" ] ||
    fail "the program of the image does not say the version of the one that went in"
# The libraries that are opened at run time are there too, and the certificates.
run_in_root /usr/bin/trackbed crds | grep -q '^  name: datasets.trackbed.io$' || fail "trackbed crds"
libraries=$(find "$work/root/" -name 'libibverbs.so.1' -o -name 'librdmacm.so.1' -o -name 'libmlx5*.so*' | wc -l)
((libraries >= 3)) || fail "the image lacks RDMA's libraries"
grep -q 'BEGIN CERTIFICATE' "$work/root/etc/ssl/certs/ca-certificates.crt" || fail "no certificates"
found=$(find "$work/root/" -type f -perm /6000)
[ -z "$found" ] || fail "the image has programs that gain privilege: $found"
echo "the image's two builds are equal, and its program runs from its root" >&2
