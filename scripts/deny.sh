#!/usr/bin/env bash
# deny.sh: what deny.toml asks of the dependencies. cargo-deny is no part of the toolchain, so a machine may lack it; then this says so.
set -euo pipefail
if ! cargo deny --version >/dev/null 2>&1; then
    echo 'WARNING: cargo-deny is not installed: licences, bans and sources of the dependencies were NOT checked (cargo install cargo-deny)' >&2
    exit
fi
cargo deny --all-features check bans licenses sources
# Advisories come from a database on the network, which may be out of reach: then the rest still counts.
cargo deny --all-features fetch db || { echo 'WARNING: the advisory database could not be fetched: advisories were NOT checked' >&2; exit; }
cargo deny --all-features check advisories
