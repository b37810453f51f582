#!/usr/bin/env bash
# cuda-kernels.sh COMPILER CACHE FOLDER: compiles the CUDA kernels for every architecture into FOLDER. COMPILER is the built example `cuda_kernels`; NVRTC, which it
# loads, comes from PyPI. No GPU is needed.
set -euo pipefail
compiler=$1 cache=$2 folder=$3
here=$(dirname "$0")
python=$("$here/python-environment.sh" "$here/cuda/requirements.txt" "$cache")
# NVRTC looks for the rest of itself where the loader does.
library=$(find "$(dirname "$(dirname "$python")")" -name 'libnvrtc.so.*' | head -1)
[ -n "$library" ] || { echo 'cuda-kernels.sh: the package nvidia-cuda-nvrtc has no libnvrtc' >&2; exit 1; }
rm -rf "$folder"
LD_LIBRARY_PATH=$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$compiler" "$folder"
