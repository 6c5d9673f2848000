# shellcheck shell=bash
# Folders to layers, layers to an archive that is an OCI layout and what `docker save` writes at
# once. To be sourced by hack/image, whose variables it uses.
# shellcheck disable=SC2154

# tar_of FOLDER: its content in one order, of one owner and time.
tar_of() {
    tar -c -C "$1" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" .
}

# add_blob FILE: moves it to where its digest names it; prints the digest.
add_blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    cp "$1" "$layout/blobs/sha256/$digest"
    echo "$digest"
}

# descriptor MEDIA_TYPE DIGEST [MORE]
descriptor() {
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%s%s}' \
        "$1" "$2" "$(stat -c %s "$layout/blobs/sha256/$2")" "${3:-}"
}

# join WORD...: with commas.
join() {
    local IFS=,
    echo "$*"
}

# write_archive ROOT...: a layer of each. Sets manifest_digest.
write_archive() {
    local root digest created config layers=() paths=() diff_ids=() history=() layer_type
    layout=$work/layout
    mkdir -p "$layout/blobs/sha256"
    created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
    layer_type=application/vnd.oci.image.layer.v1.tar
    for root in "$@"; do
        tar_of "$root" >"$root.tar"
        digest=$(add_blob "$root.tar")
        layers+=("$(descriptor "$layer_type" "$digest")")
        paths+=("\"blobs/sha256/$digest\"")
        diff_ids+=("\"sha256:$digest\"")
        history+=("{\"created\":\"$created\",\"created_by\":\"hack/image ${root##*/}\"}")
    done
    cat >"$work/config.json" <<END
{"created":"$created","architecture":"$architecture","os":"linux","config":{"User":"65532:65532",\
"Env":["PATH=/usr/sbin:/usr/bin"],"Entrypoint":["/usr/bin/trackbed"],"Cmd":["--help"],"WorkingDir":"/",\
"Labels":{"org.opencontainers.image.title":"Trackbed","org.opencontainers.image.version":"$version",\
"org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":[$(join "${diff_ids[@]}")]},\
"history":[$(join "${history[@]}")]}
END
    config=$(add_blob "$work/config.json")
    cat >"$work/manifest.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",\
"config":$(descriptor application/vnd.oci.image.config.v1+json "$config"),"layers":[$(join "${layers[@]}")]}
END
    manifest_digest=$(add_blob "$work/manifest.json")
    # containerd takes the whole name, podman and skopeo the tag.
    cat >"$layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[$(
        descriptor application/vnd.oci.image.manifest.v1+json "$manifest_digest" \
            ",\"annotations\":{\"io.containerd.image.name\":\"$name:$tag\",\"org.opencontainers.image.ref.name\":\"$tag\"}"
    )]}
END
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    cat >"$layout/manifest.json" <<END
[{"Config":"blobs/sha256/$config","RepoTags":["$name:$tag"],"Layers":[$(join "${paths[@]}")]}]
END
    mkdir -p "${output%/*}"
    tar_of "$layout" >"$output.part"
    mv "$output.part" "$output"
}
