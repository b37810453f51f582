#!/usr/bin/env bash
# chart-lint.sh HELM: the chart by helm's own rules, with each set of values in its ci folder; and its README, which must not be stale.
set -euo pipefail
helm=$1
cd "$(dirname "$0")/.."
scripts/chart-readme.py --check
for values in charts/stowage/ci/*-values.yaml; do
    # Built from its module, helm does not know how new a Kubernetes it is for, and would take an old one.
    "$helm" lint --strict --quiet --kube-version 1.37.2 --values "$values" charts/stowage || { echo "chart-lint.sh: with $values" >&2; exit 1; }
done
