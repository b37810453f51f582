#!/usr/bin/env bash
# fuzz.sh TARGET SECONDS [INPUT]: fuzzes the header reader, or runs one INPUT again. TARGET is cargo's target folder.
# With cargo-fuzz and a nightly compiler (cargo install cargo-fuzz) it is libFuzzer, led by coverage; where they are missing, a mutator on stable.
set -euo pipefail
target=$1
seconds=$2
input=${3:-}
corpus=fuzz/corpus/header
stable=(cargo run --quiet --release --package stowage-placement --example fuzz_header --)

if [ -n "$input" ]; then
    exec "${stable[@]}" "$input"
fi
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo 'fuzz: no cargo-fuzz with a nightly compiler here; the mutator on stable runs instead' >&2
    exec "${stable[@]}" --seconds "$seconds" "$corpus"
fi
# What is found beside the corpus stays out of the checkout; `-merge=1` brings it in (fuzz/README.md).
mkdir -p "$target/fuzz/corpus"
CARGO_TARGET_DIR=$target/fuzz cargo +nightly fuzz run header "$target/fuzz/corpus" "$corpus" -- \
    -max_total_time="$seconds" -max_len=40960 -malloc_limit_mb=64 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
