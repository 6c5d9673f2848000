# shellcheck shell=bash
# The folders that become the image's layers. To be sourced by hack/image, whose variables it uses.
# shellcheck disable=SC2154

# The names of hack/image.d/packages that this machine's apt has.
package_names() {
    local line each candidate
    while read -r line; do
        for each in ${line//|/ }; do
            candidate=$(apt-cache policy "$each" 2>/dev/null | awk '/Candidate:/ { print $2 }')
            if [ -n "$candidate" ] && [ "$candidate" != "(none)" ]; then
                echo "$each=$candidate"
                continue 2
            fi
        done
        return 1
    done < <(sed -e 's/#.*//' -e '/^[[:space:]]*$/d' hack/image.d/packages)
}

update_lists() {
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq >&2; else sudo apt-get update -qq >&2; fi ||
        fail "apt-get update failed"
}

# Fetches the packages to $work/debs, and their names with versions to $work/packages.txt.
download() {
    local names
    names=$(package_names) || return 1
    rm -rf "$work/debs"
    mkdir "$work/debs"
    # shellcheck disable=SC2086 # one word a package
    (cd "$work/debs" && apt-get download -qq -o APT::Sandbox::User=root $names >&2) || return 1
    echo "$names" >"$work/packages.txt"
}

# The same; apt checks them with its keys.
fetch_packages() {
    download && return
    # Lists that were never fetched know nothing, and old ones name versions that are gone.
    update_lists
    download || fail "apt cannot fetch every package of hack/image.d/packages: it has said why"
}

# What roles need and no more: of documentation the licences alone, no shell, no package manager.
readonly LEFT_OUT=(
    './usr/share/man*' './usr/share/locale*' './usr/share/lintian*'
    './usr/share/bash-completion*' './usr/share/bug*' './usr/lib/*/gconv*' './usr/share/gcc*'
    './etc/cron*' './etc/init.d*' './etc/default*' './lib/systemd*' './usr/lib/systemd*'
    './usr/sbin/update-ca-certificates' './etc/ca-certificates*'
)
# Of the package mount, losetup alone: the rest are setuid programs or unused.
readonly ONLY_OF_MOUNT='*/losetup'

# make_debian_root FOLDER
make_debian_root() {
    local root=$1 deb folder exclude=() choose
    fetch_packages
    for folder in bin sbin lib lib64; do
        mkdir -p "$root/usr/$folder"
        ln -s "usr/$folder" "$root/$folder"
    done
    for folder in "${LEFT_OUT[@]}"; do exclude+=("--exclude=$folder"); done
    for deb in "$work"/debs/*.deb; do
        choose=()
        case ${deb##*/} in mount_*) choose=(--wildcards "$ONLY_OF_MOUNT") ;; esac
        dpkg-deb --fsys-tarfile "$deb" |
            tar -x -C "$root" --keep-directory-symlink --no-same-owner "${exclude[@]}" "${choose[@]}"
    done
    find "$root/usr/share/doc" ! -type d ! -name copyright -delete
    find "$root/usr/share/doc" -type d -empty -delete
    # What the packages' scripts would do.
    mkdir -p "$root/etc/ssl/certs" "$root"/{tmp,run,proc,sys,dev,var/lib}
    find "$root/usr/share/ca-certificates" -name '*.crt' -print0 | LC_ALL=C sort -z |
        xargs -0 cat >"$root/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$root/usr/share/ca-certificates"
    chmod 1777 "$root/tmp"
    printf 'root:x:0:0:root:/:/nonexistent\nnonroot:x:65532:65532:nonroot:/:/nonexistent\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnonroot:x:65532:\n' >"$root/etc/group"
    printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
    find "$root" -xdev -type f -perm /6000 -exec chmod a-s {} +
    # Links to what was left out.
    find "$root" -xtype l ! -path "$root/etc/alternatives/*" -print -delete >"$work/dangling.txt"
}

# make_trackbed_root FOLDER
make_trackbed_root() {
    local root=$1
    mkdir -p "$root/usr/bin" "$root/usr/share/doc/trackbed"
    install -m 0755 "$binary" "$root/usr/bin/trackbed"
    # Names of functions stay, for backtraces.
    strip --strip-debug "$root/usr/bin/trackbed"
    install -m 0644 LICENSE NOTICE "$root/usr/share/doc/trackbed/"
}

# check_libraries ROOT...: every program and library finds what it is linked with among them.
check_libraries() {
    local file needed missing=0
    while IFS= read -r -d '' file; do
        while read -r needed; do
            if [ -z "$(find "$@" -name "$needed" -print -quit)" ]; then
                echo "hack/image: ${file#"$work"/} needs $needed, which no package of the image has" >&2
                missing=1
            fi
        done < <(readelf -d "$file" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p')
    done < <(find "$@" -type f \( -name '*.so*' -o -perm /111 \) -print0)
    ((missing == 0)) || fail "name the packages in hack/image.d/packages"
}
