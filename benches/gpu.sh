#!/usr/bin/env bash
# Everything that is to be measured on a GPU that secateur has not run on, in one command:
#
#     benches/gpu.sh [DEVICE] [MODEL.gguf]
#
# DEVICE is a name as `secateur devices` lists it (default: auto). The results go to docs/results/DATE-ADAPTER.md, each
# command with its output as it came, so that nothing is copied by hand; the sentences that say what they mean are added
# afterwards. The file is written as the run goes on: whatever ends it early, what was measured stays.
#
# With MODEL.gguf, pruning is measured on that model, and llama.cpp beside it on the same adapter where LLAMA_BENCH names
# its llama-bench. Without it, models with random weights in the sizes of published ones are measured, which needs no
# download.
#
# PRESETS      the sizes, of those that `secateur bench --help` lists (default: qwen3-0.6b r1-1.5b r1-7b)
# PROMPTS      the lengths of prompts (default: 128,512,2048,8192)
# SEQUENCES    the sequences side by side (default: 1,4,16)
# SECATEUR     a program that is built already (default: it is built, in the profile release)
#
# Needs cargo, python3, and on Linux a Vulkan loader and the driver of the GPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=${1:-auto} model=${2:-}
presets=${PRESETS:-qwen3-0.6b r1-1.5b r1-7b}
prompts=${PROMPTS:-128,512,2048,8192}
sequences=${SEQUENCES:-1,4,16}

if [ -z "${SECATEUR:-}" ]; then
    cargo build --release --bin secateur || exit 1
    SECATEUR=${CARGO_TARGET_DIR:-target}/release/secateur
fi
command -v python3 >/dev/null || { echo "gpu.sh: install python3" >&2; exit 1; }
found=$("$SECATEUR" bench --device "$device" --prompt 1 --decode 1 --repeat 1 --json --quiet) || exit 1
adapter=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["device"]["name"])' <<<"$found")
kind=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["device"]["kind"])' <<<"$found")
if [ "$kind" = software ] && [ "$device" = auto ]; then
    echo "gpu.sh: only $adapter was found, which is no GPU: to measure it all the same, name it as DEVICE" >&2
    exit 1
fi

name=$(tr -cs '[:alnum:]' - <<<"$adapter" | tr '[:upper:]' '[:lower:]')
out=docs/results/$(date +%F)-${name%-}.md
# What an earlier run has measured stays.
again=2
while [ -e "$out" ]; do
    out=docs/results/$(date +%F)-${name%-}-$again.md
    again=$((again + 1))
done
changed=$(git status --porcelain --untracked-files=no | wc -l)
processor=$(grep -m 1 '^model name' /proc/cpuinfo 2>/dev/null | cut -d: -f2- | sed 's/^ *//' || sysctl -n machdep.cpu.brand_string 2>/dev/null)

failed=()
# measure TITLE COMMAND...: runs a command, and adds it and its output to the results.
measure() {
    local title=$1 shown status=0
    shift
    shown="$* "
    shown=${shown//"$SECATEUR"/secateur}
    echo "== $title" >&2
    {
        printf '\n## %s\n\n    %s\n\nLoad of the processor before: %s.\n\n```text\n' "$title" "${shown% }" \
            "$(uptime | sed 's/.*load average[s]*: //')"
        "$@" 2>&1 || status=$?
        printf '```\n'
        [ "$status" = 0 ] || printf '\n**It failed with exit status %s.**\n' "$status"
    } >>"$out"
    [ "$status" = 0 ] || failed+=("$title")
}

{
    printf '# %s: %s\n\n' "$(date +%F)" "$adapter"
    printf 'Commit %s%s; %s; %s processors (%s). Written by `benches/gpu.sh %s`.\n' "$(git rev-parse --short HEAD)" \
        "$([ "$changed" = 0 ] || echo ", with $changed changed files")" "$(uname -sr)" "$(getconf _NPROCESSORS_ONLN)" \
        "${processor:-unknown}" "$*"
} >"$out"

measure "Devices" "$SECATEUR" devices
measure "Conformance" "$SECATEUR" conformance --device "$device"
for preset in $presets; do
    bench=("$SECATEUR" bench --quiet --device "$device" --preset "$preset")
    # In turns, so that a machine that becomes slower slows both.
    for round in 1 2; do
        measure "$preset: launches replayed, round $round" "${bench[@]}" --prompt 512 --decode 256
        measure "$preset: each kernel launched anew, round $round" "${bench[@]}" --prompt 512 --decode 256 --no-replay
    done
    measure "$preset: prompts" "${bench[@]}" --prompt "$prompts" --decode 64
    measure "$preset: side by side" "${bench[@]}" --prompt 128 --decode 64 --sequences "$sequences"
    measure "$preset: kernels" "${bench[@]}" --prompt 512 --decode 64 --kernels
    for weights in q8 q6 q4; do
        measure "$preset: $weights" "${bench[@]}" --prompt 512 --decode 256 --weights "$weights"
    done
done
measure "One kernel after the other" cargo bench --quiet --bench decode -- models/tiny-reasoner "$device"
if [ -n "$model" ]; then
    measure "$model" "$SECATEUR" bench --quiet --device "$device" --model "$model" --prompt 512 --decode 256
    measure "$model: pruning" cargo bench --quiet --bench pruning -- "$model" "$device"
    if [ -n "${LLAMA_BENCH:-}" ]; then
        measure "$model: beside llama.cpp" python3 benches/rivals.py "$model" --llama-bench "$LLAMA_BENCH" \
            --secateur "$SECATEUR" --device "$device" --prompt 512 --decode 256
    else
        printf '\nllama.cpp was not measured: LLAMA_BENCH names no program.\n' >>"$out"
    fi
else
    printf '\nPruning and llama.cpp were not measured: no model was given.\n' >>"$out"
fi

echo "$out" >&2
[ ${#failed[@]} = 0 ] || { printf 'gpu.sh: failed: %s\n' "${failed[@]}" >&2; exit 1; }
