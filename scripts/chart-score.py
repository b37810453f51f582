#!/usr/bin/env python3
"""chart-score.py HELM KUBE_SCORE: what kube-score finds in the chart, with each set of values in its ci folder, is nothing but what is excepted here, with the
reason; and what is excepted is found."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Checks that don't fit, wherever they are made.
LEFT_OUT = {
    "container-image-pull-policy": "Always: tags of the chart are versions, which don't change, and an air-gapped node has nowhere to pull from",
    "container-ephemeral-storage-request-and-limit": "root file systems are read-only, and what is downloaded goes to the cache's volume",
}
MORE = ["container-seccomp-profile", "container-ports-check"]
# Processor limits are left out by --ignore-container-cpu-limit: they would throttle inference while cores are idle.
EXCEPTED = [
    # Set of values, finding, why it stands.
    (r".*", r"agent.* \(prepare\) .*low (user|group) ID", "as root with CAP_CHOWN alone it gives a hostPath's folder to the agent's user"),
    (r".*", r"operator.* podAntiAffinity", "its Pods are spread over nodes by topologySpreadConstraints"),
    (r".*", r"-worker/.* NetworkPolicys selector doesn't match any pods", "the operator makes the Pods of workers"),
    (r"minimal", r"does not have a matching NetworkPolicy", "the set turns NetworkPolicies off"),
    (r"shared-storage", r"\(agent\) .*low (user|group) ID", "the set asks for the user that owns its storage"),
    (r"uninstalled-whole", r"\(agent\) Memory (limit|request) is not set", "the set has resources of its own"),
]


def findings(helm, kube_score, values, version):
    """Yields a line for each, without what is well."""
    chart = ["template", "stowage", "charts/stowage", "--namespace", "stowage-system", "--kube-version", version, "--values", values]
    rendered = subprocess.run([helm, *chart], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    flags = ["--output-format=ci", "--ignore-container-cpu-limit", "--kubernetes-version=v1.32"]
    flags += [f"--ignore-test={name}" for name in LEFT_OUT] + [f"--enable-optional-test={name}" for name in MORE]
    scored = subprocess.run([kube_score, "score", *flags, "-"], input=rendered, capture_output=True, text=True)
    lines = scored.stdout.splitlines()
    if not any(line.startswith("[OK]") for line in lines):
        sys.exit(f"chart-score.py: with {values} kube-score says: {scored.stdout}{scored.stderr}")
    yield from (line for line in lines if not line.startswith(("[OK]", "[SKIPPED]")))


def main():
    helm, kube_score = sys.argv[1:]
    source = (ROOT / "tests/control-plane/src/binaries.rs").read_text()
    version = re.search(r'KUBERNETES_VERSION: &str = "(.*)"', source)[1]
    unused, wrong, sets = set(EXCEPTED), [], sorted((ROOT / "charts/stowage/ci").glob("*-values.yaml"))
    for values in sets:
        name = values.name.removesuffix("-values.yaml")
        for finding in findings(helm, kube_score, values, version):
            excepted = {row for row in EXCEPTED if re.fullmatch(row[0], name) and re.search(row[1], finding)}
            unused -= excepted
            if not excepted:
                wrong.append(f"{name}: {finding}")
    wrong += [f"nothing is found any more for: {finding} ({why})" for _, finding, why in unused]
    if wrong:
        sys.exit("chart-score.py: " + "\n".join(wrong))
    print(f"chart-score.py: {len(sets)} sets of values; {len(EXCEPTED)} kinds of findings are excepted, with the reason")


main()
