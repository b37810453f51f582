#!/usr/bin/env bash
# kl.sh KL CACHE MODEL: the divergence of the cpu backend from the reference, for MODEL as it is and in every quantisation, and for Gemma 3 270M as it is,
# whose layers have windows. KL is the built example.
#
# llama-quantize makes the quantised files from a copy of MODEL in F32 whose rows are whole blocks of K-quants. TYPES names the types (all), TOKENS how many
# tokens of text are compared (4000).
set -euo pipefail
kl=$1 cache=$2 model=$3
tokens=${TOKENS:-4000}
read -r -a types <<<"${TYPES:-Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 F16 BF16}"
here=$(dirname "$0")
python=$("$here/python-environment.sh" "$here/kl/requirements.txt" "$cache")
work=$(mktemp -d "$cache/kl.XXXXXX")
llama=$cache/llama-cpp
trap 'rm -rf "$work" "$llama/root/models/"padded.* ' EXIT
trap 'exit 130' INT TERM HUP

quantize() { # TYPE: padded.gguf in it
    local options=(--pure) as=$1
    # There is no file type of MXFP4 alone: its weights are named, and all else is Q8_0. Of a model this small nothing is left with 2 bits in every matrix.
    case $1 in
    MXFP4) options=(--tensor-type attn=mxfp4 --tensor-type ffn=mxfp4) as=Q8_0 ;;
    Q2_K) options=(--token-embedding-type q6_K) ;;
    esac
    "$here/llama-cpp.sh" "$llama" llama-quantize "${options[@]}" /models/padded.gguf "/models/padded.$1.gguf" "$as" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        return 1
    }
}

failed=()
check() { # FILE OPTIONS...
    "$kl" --tokens "$tokens" "$@" || failed+=("$1")
}

# Perplexities of the first tokens of a text by both engines, with each type of cache, and their ratio.
beside_llama_cpp() { # FILE TOKENS
    local text=agent/engine/testdata/alice.txt some=$2
    cp "$1" "$llama/root/models/padded.whole.gguf"
    "$python" "$here/kl/peer.py" "$here/llama-cpp.sh" "$llama" padded.whole.gguf "$text" "$some" >"$work/theirs" || {
        failed+=("llama.cpp's perplexities of $(basename "$1")")
        return 0
    }
    # Divergences were held to their gates by `check`.
    "$kl" --text "$text" --tokens "$some" "$1" 2>>"$work/log" | grep '8-bit activations' >"$work/ours" || true
    awk 'function value(name,   i) { for (i = 1; i < NF; i++) if ($i == name) return $(i + 1) }
         NR == FNR { theirs[$2] = value("perplexity"); next }
         { ratio = value("perplexity") / theirs[$2]; bad = bad || !(ratio <= 1.02)
           printf "%-5s cache: perplexity %.4f, llama.cpp %.4f, ratio %.4f (at most 1.02)\n", $2, value("perplexity"), theirs[$2], ratio }
         END { exit bad }' "$work/theirs" "$work/ours" || failed+=("perplexities of $(basename "$1") beside llama.cpp")
}

gemma=$("$here/models.sh" "$cache/models" gemma3)
"$here/llama-cpp.sh" "$llama" llama-bench --help >/dev/null
check "$model"
beside_llama_cpp "$model" 256
# Gemma has one head of keys and values for all heads of queries: what 4 bits lose there, all of them lose.
check "$gemma" --gate-q4-0 0.2
beside_llama_cpp "$gemma" 256
"$python" "$here/kl/pad.py" "$model" "$work/padded.gguf"
mv "$work/padded.gguf" "$llama/root/models/"
for type in "${types[@]}"; do
    quantize "$type"
    # A small model with 2 bits is close to guessing, and feels every rounding: its perplexity is ten times the whole model's.
    [ "$type" = Q2_K ] && gate=0.02 || gate=0.006
    check "$llama/root/models/padded.$type.gguf" --f16-alone --gate "$gate"
    rm "$llama/root/models/padded.$type.gguf"
done
[ ${#failed[@]} = 0 ] || { printf 'kl.sh: not within the gates: %s\n' "${failed[*]}" >&2; exit 1; }
