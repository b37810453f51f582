#!/usr/bin/env bash
# python-environment.sh REQUIREMENTS CACHE: prints the python of a virtual environment that has REQUIREMENTS, making it in CACHE where it is missing.
# It is named after what it holds, so changed requirements get a new one.
set -euo pipefail
requirements=$1
environment=$2/venv-$(sha256sum "$requirements" | cut -c1-12)
if [ ! -x "$environment/bin/python" ] || [ ! -f "$environment/complete" ]; then
    rm -rf "$environment"
    python3 -m venv "$environment" >&2
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
    touch "$environment/complete"
fi
echo "$environment/bin/python"
