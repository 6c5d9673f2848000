# shellcheck shell=bash
# cargo-fuzz, which builds and runs the fuzz targets of fuzz/. To be sourced after prerequisites.sh
# and python-tools.sh; nothing happens by that alone.

# The version that hack/fuzz is written for.
CARGO_FUZZ_VERSION=0.13.2

# need_cargo_fuzz: finds cargo-fuzz, or builds it once. Sets CARGO_FUZZ, its program.
need_cargo_fuzz() {
    local folder
    CARGO_FUZZ=$(command -v cargo-fuzz) && return
    folder=$(python_tool_folder cargo-fuzz "$CARGO_FUZZ_VERSION")
    CARGO_FUZZ=$folder/bin/cargo-fuzz
    "$CARGO_FUZZ" --version >/dev/null 2>&1 && return
    echo "${0##*/}: building cargo-fuzz $CARGO_FUZZ_VERSION, which takes a minute or two" >&2
    cargo install --quiet --locked --root "$folder" --version "$CARGO_FUZZ_VERSION" cargo-fuzz >&2 ||
        fail "cannot build cargo-fuzz: \`cargo install --locked cargo-fuzz\` says why"
}
