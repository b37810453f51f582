#!/usr/bin/env bash
# krew-manifest.sh TAG ARCHIVE...: prints the manifest by which Krew installs the plugin of a release: `kubectl krew install --manifest=stowage.yaml`.
set -euo pipefail
tag=$1
shift
cat <<END
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: stowage
spec:
  version: $tag
  homepage: https://github.com/stowage-dev/stowage/blob/main/docs/kubectl-stowage.md
  shortDescription: See why language models are where they are
  description: |
    Says what the cluster has for a language model, why one that Stowage runs is
    where it is and what would change it, and who holds the GPUs' memory; and
    talks with it.
  platforms:
END
for archive in "$@"; do
    name=$(basename "$archive")
    architecture=${name#kubectl-stowage-linux-}
    cat <<END
    - selector: {matchLabels: {os: linux, arch: ${architecture%.tar.gz}}}
      uri: https://github.com/stowage-dev/stowage/releases/download/$tag/$name
      sha256: $(sha256sum "$archive" | cut -d' ' -f1)
      bin: kubectl-stowage
END
done
