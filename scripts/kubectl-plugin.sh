#!/usr/bin/env bash
# kubectl-plugin.sh AGENT FOLDER ARCHITECTURE: packs the agent's program as kubectl's plugin, FOLDER/kubectl-stowage-linux-ARCHITECTURE.tar.gz. The same program gives
# the same bytes.
set -euo pipefail
agent=$1 folder=$2 architecture=$3
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT
strip -o "$packed/kubectl-stowage" "$agent"
cp "$(dirname "$0")/../LICENSE" "$packed/LICENSE"
mkdir -p "$folder"
tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=a+rX,u+w,go-w --directory "$packed" kubectl-stowage LICENSE \
    | gzip --no-name > "$folder/kubectl-stowage-linux-$architecture.tar.gz"
