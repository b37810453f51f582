#!/usr/bin/env bash
# gpu-test-folder.sh PROGRAM FOLDER: what a machine with a GPU and no network needs for `make gpu-test`: PROGRAM, the built example `gpu_test` with its kernels in
# it, and a script that runs it. At most 64 MiB.
set -euo pipefail
program=$1 folder=$2
most=$((64 << 20))
rm -rf "$folder"
mkdir -p "$folder"
strip -o "$folder/gpu_test" "$program"
cat > "$folder/run.sh" <<'SCRIPT'
#!/usr/bin/env bash
# Tries CUDA on this machine's GPU, without a network. REPORT: the file that gets what is found, report.md beside this script where it is not set. MODELS: a folder
# with 25 GiB free, for models that are made and removed again. Ends with 77 where there is no GPU.
here=$(cd "$(dirname "$0")" && pwd)
exec "$here/gpu_test" --folder "${MODELS:-$here/models}" --report "${REPORT:-$here/report.md}" "$@"
SCRIPT
chmod +x "$folder/run.sh"
bytes=$(du --bytes --summarize "$folder" | cut -f1)
if [ "$bytes" -gt "$most" ]; then
    rm -rf "$folder"
    echo "gpu-test-folder.sh: $folder would have $bytes bytes, and at most $most are to be taken along" >&2
    exit 1
fi
echo "$folder: $((bytes >> 20)) MiB; on a machine with a GPU: $(basename "$folder")/run.sh" >&2
