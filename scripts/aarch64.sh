#!/usr/bin/env bash
# aarch64.sh TARGET_DIR: the engine built for aarch64, and its tests there, which QEMU runs: what has kernels for x86-64 alone has to work without them.
#
# It needs rustup's target aarch64-unknown-linux-gnu, a linker (Debian's gcc-aarch64-linux-gnu) and QEMU's user mode (qemu-user). What is missing is said, and
# then nothing is tested.
set -euo pipefail
triple=aarch64-unknown-linux-gnu
missing=()
command -v aarch64-linux-gnu-gcc >/dev/null || missing+=('aarch64-linux-gnu-gcc (apt-get install gcc-aarch64-linux-gnu)')
command -v qemu-aarch64 >/dev/null || missing+=('qemu-aarch64 (apt-get install qemu-user)')
[ -d "$(rustc --print sysroot)/lib/rustlib/$triple" ] || missing+=("Rust's $triple (rustup target add $triple)")
if [ ${#missing[@]} != 0 ]; then
    printf '==> SKIPPED: the engine was not tried on aarch64, which needs %s\n' "$(IFS=';' && echo "${missing[*]}")" >&2
    exit 0
fi
# A real model takes an emulator hours; small ones of every family are made. Two tests can't do without one.
export XDG_CACHE_HOME=$1/without-models
unset STOWAGE_TEST_MODELS
without=(--skip smollm2 --skip what_is_allocated_is_what_was_planned_to_the_byte)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu'
exec "$(dirname "$0")/rust-tests.sh" --package stowage-engine --lib --target "$triple" --target-dir "$1" -- "${without[@]}"
