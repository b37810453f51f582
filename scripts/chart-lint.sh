#!/usr/bin/env bash
# chart-lint.sh HELM: the chart by helm's own rules, with each set of values in its ci folder; and its README, which must not be stale.
set -euo pipefail
helm=$1
cd "$(dirname "$0")/.."
scripts/chart-readme.py --check
# Built from its module, helm does not know how new a Kubernetes it is for, and would take an old one.
version=$(sed -n 's/.*KUBERNETES_VERSION: &str = "\(.*\)";/\1/p' tests/control-plane/src/binaries.rs)
for values in charts/stowage/ci/*-values.yaml; do
    "$helm" lint --strict --quiet --kube-version "$version" --values "$values" charts/stowage || { echo "chart-lint.sh: with $values" >&2; exit 1; }
done
