#!/usr/bin/env bash
# python-syntax.sh: every Python file of the checkout compiles; nothing is written.
set -euo pipefail
git ls-files --cached --others --exclude-standard -z -- '*.py' | python3 -c '
import os, sys
files = [name for name in sys.stdin.read().split("\0") if name and os.path.exists(name)]
for name in files:
    with open(name, encoding="utf-8") as source:
        compile(source.read(), name, "exec")
print(f"python syntax: {len(files)} files")'
