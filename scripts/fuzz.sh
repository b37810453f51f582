#!/usr/bin/env bash
# fuzz.sh TARGET SECONDS [INPUT]: fuzzes the header reader, then the parsers of requests, or runs one INPUT again. TARGET is cargo's target folder.
# With cargo-fuzz and a nightly compiler (cargo install cargo-fuzz) it is libFuzzer, led by coverage; where they are missing, mutators on stable.
set -euo pipefail
target=$1
seconds=$2
input=${3:-}

on_stable() {
    local name=$1
    shift
    case $name in
    header) cargo run --quiet --release --package stowage-placement --example fuzz_header -- "$@" ;;
    requests) cargo run --quiet --release --package stowage-agent --features fuzzed --example fuzz_requests -- "$@" ;;
    esac
}

# What is found beside the corpus stays out of the checkout; `-merge=1` brings it in (fuzz/README.md).
by_coverage() {
    local name=$1 longest=$2
    mkdir -p "$target/fuzz/corpus/$name"
    CARGO_TARGET_DIR=$target/fuzz cargo +nightly fuzz run "$name" "$target/fuzz/corpus/$name" "fuzz/corpus/$name" -- \
        -max_total_time="$seconds" -max_len="$longest" -malloc_limit_mb=64 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
}

if [ -n "$input" ]; then
    # Which it was found by is the name of its folder.
    case $input in
    *requests/*) on_stable requests "$input" ;;
    *) on_stable header "$input" ;;
    esac
elif cargo +nightly fuzz --version >/dev/null 2>&1; then
    by_coverage header 40960
    by_coverage requests 4160
else
    echo 'fuzz: no cargo-fuzz with a nightly compiler here; the mutators on stable run instead' >&2
    for name in header requests; do
        on_stable "$name" --seconds "$seconds" "fuzz/corpus/$name"
    done
fi
