#!/usr/bin/env bash
# Runs the tests with each set of vector instructions forbidden in turn, and with AMX: the processor's own, or an emulation that traps its
# instructions and carries them out (the feature emulated-amx).
#
#   scripts/check_simd.sh [--quick] [LEVEL...]      LEVEL: amx avx512bf16 avx512 avx2 (default: all of them)
#
# --quick runs only the tests of products, ops, models, training and resuming. A level is some minutes on two cores; AMX is built once more.
set -euo pipefail
cd "$(dirname "$0")/.."
filter=()
if [[ ${1:-} == --quick ]]; then
    shift
    filter=(-- ops:: model:: train:: training:: resume:: simd:: generation::)
fi
levels=("$@")
[[ $# -gt 0 ]] || levels=(amx avx512bf16 avx512 avx2)
for level in "${levels[@]}"; do
    features=()
    [[ $level != amx ]] || grep -qw amx_bf16 /proc/cpuinfo || features=(--features emulated-amx)
    echo "== LLAMA_LITE_SIMD=$level ${features[*]}"
    LLAMA_LITE_SIMD=$level cargo test --release --locked "${features[@]}" "${filter[@]}" 2>&1 | grep -E '^(test result|failures:|error|    [a-z_:]+$)|FAILED|panicked'
done
