# shellcheck shell=bash
# Prometheus, of the Debian package without installing that, which would start a service. To be sourced
# after prerequisites.sh; nothing happens by that alone.

# need_prometheus: sets and exports TRACKBED_PROMETHEUS, its program.
need_prometheus() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/trackbed/tools/prometheus fetched
    TRACKBED_PROMETHEUS=${TRACKBED_PROMETHEUS:-$(command -v prometheus || true)}
    if [ -z "$TRACKBED_PROMETHEUS" ]; then
        TRACKBED_PROMETHEUS=$folder/usr/bin/prometheus
        if ! "$TRACKBED_PROMETHEUS" --version >/dev/null 2>&1; then
            need_commands dpkg-deb
            fetched=$(mktemp -d)
            if ! (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root prometheus >&2); then
                # Lists that were never fetched know nothing.
                apt-get update -qq >&2 || true
                (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root prometheus >&2) ||
                    fail "cannot fetch the package prometheus: run apt-get update, or name yours in TRACKBED_PROMETHEUS"
            fi
            rm -rf "$folder"
            mkdir -p "$folder"
            dpkg-deb -x "$fetched"/prometheus_*.deb "$folder"
            rm -rf "$fetched"
        fi
    fi
    export TRACKBED_PROMETHEUS
}
