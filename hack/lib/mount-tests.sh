#!/usr/bin/env bash
# Runs test executables that mount inside the guest of hack/vm, on its kernel, with what they write on a
# disk with a real file system.
#
# Usage: hack/lib/mount-tests.sh EXECUTABLE...
set -euo pipefail

[ "${TRACKBED_GUEST:-}" = 1 ] || {
    echo "${0##*/}: this is for the guest: hack/test kernels" >&2
    exit 3
}

echo "-- Linux $(uname -r)" >&2
for executable in "$@"; do
    echo "-- ${executable##*/}" >&2
    TMPDIR=/var/lib/trackbed "$executable" --test-threads 1
done
