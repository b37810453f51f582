#!/usr/bin/env bash
# rust-tests.sh ARGUMENT...: `cargo test` with these arguments, and one closing line over all its programs.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
awk '/^test result: / { programs++; passed += $4; failed += $6; ignored += $8 }
     END { printf "rust tests: %d passed, %d failed, %d ignored, in %d programs\n", passed, failed, ignored, programs }' "$log"
exit "$status"
