#!/usr/bin/env bash
# bench.sh AGENT EXAMPLES CACHE: tokens a second, seconds to the first token and memory beside llama.cpp's, in ROUNDS (5) turns; then how requests share a
# model. EXAMPLES: the folder of engine's and agent's examples. MODELS: smollm2, gemma3 and random (all). INSTRUCTIONS=avx2: tokens a second alone, of both engines'
# kernels for a CPU that has no more.
set -euo pipefail
agent=$1 examples=$2 cache=$3
here=$(dirname "$0")
llama=$cache/llama-cpp
python=$("$here/python-environment.sh" "$here/kl/requirements.txt" "$cache")
"$here/llama-cpp.sh" "$llama" llama-bench --help >/dev/null
if [ "${INSTRUCTIONS:-}" = avx2 ]; then
    # llama.cpp takes the best of its backends: here it finds one.
    narrow=$cache/llama-cpp.avx2
    rm -rf "$narrow"
    trap 'rm -rf "$narrow"' EXIT
    mkdir "$narrow"
    cp -al "$llama/root" "$narrow/root"
    find "$narrow" -name 'libggml-cpu-*.so' ! -name libggml-cpu-haswell.so -delete
    llama=$narrow
elif [ -n "${INSTRUCTIONS:-}" ]; then
    echo "bench.sh: INSTRUCTIONS is $INSTRUCTIONS; it can be avx2, or nothing for all that the CPU has" >&2
    exit 2
fi
models=$llama/root/models
# llama.cpp sees this folder alone; what others have laid there stays.
remove_laid() { rm -f "$models"/{smollm2,gemma-3,random}*.gguf; }
remove_laid
[ "${narrow:-}" ] || trap remove_laid EXIT
trap 'exit 130' INT TERM HUP
wants() { [[ " ${MODELS:-smollm2 gemma3 random} " == *" $1 "* ]]; }
lay() { ln "$1" "$models/" 2>/dev/null || cp "$1" "$models/"; }

smollm2=$("$here/models.sh" "$cache/models" smollm2)
! wants smollm2 || lay "$smollm2"
! wants gemma3 || lay "$("$here/models.sh" "$cache/models" gemma3)"
if wants random; then
    for type in Q4_K_M Q8_0; do
        file=random-1b-${type,,}.gguf
        if [ ! -f "$cache/models/$file" ]; then
            [ -f "$models/random.gguf" ] || "$python" "$here/bench/random_llama.py" "$smollm2" "$models/random.gguf"
            "$here/llama-cpp.sh" "$llama" llama-quantize /models/random.gguf "/models/$file" "$type" >/dev/null 2>&1
            mv "$models/$file" "$cache/models/"
        fi
        lay "$cache/models/$file"
    done
    rm -f "$models/random.gguf"
fi
"$python" "$here/bench/compare.py" "$agent" "$here/llama-cpp.sh" "$llama" "${ROUNDS:-5}" ${INSTRUCTIONS:+"$INSTRUCTIONS"}
[ -z "${INSTRUCTIONS:-}" ] || exit 0
"$python" "$here/bench/start.py" "$examples/first_token" "$here/llama-cpp.sh" "$llama" "${ROUNDS:-5}"
"$examples/worker_memory" "$agent" "$models"/*.gguf
"$examples/serving" "$smollm2" --threads 2 --rounds "${ROUNDS:-5}"
