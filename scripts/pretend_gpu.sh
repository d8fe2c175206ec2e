#!/usr/bin/env bash
# Runs a program that was built with the feature cuda on a pretended GPU: its own kernels emulated, the driver, cuBLAS and NCCL played by
# src/ops/cuda/pretend. What candle and cudarc do with the driver is then the real thing; speed is not.
#
#   scripts/pretend_gpu.sh PROGRAM ARGUMENTS...
#
# The libraries are made in target/pretend-gpu when their sources change.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
made=${CARGO_TARGET_DIR:-$here/target}/pretend-gpu
sources=$here/src/ops/cuda
mkdir -p "$made"
digest=$(cat "$sources"/*.cu "$sources"/*.cuh "$sources"/emulated.h "$sources"/pretend/* "$0" | sha256sum)
if [[ "$(cat "$made/digest" 2>/dev/null)" != "$digest" ]]; then
  library() { "${CXX:-c++}" -std=c++17 -O3 -U_FORTIFY_SOURCE -shared -fPIC "$@"; }
  for source in "$sources"/*.cu; do
    library -DLLAMA_LITE_EMULATED -x c++ "$source" -o "$made/kernels_$(basename "$source" .cu).so"
  done
  library "$sources/pretend/candle.cpp" -o "$made/kernels_candle.so"
  library -Wl,-soname,libcuda.so.1 "$sources/pretend/driver.cpp" -o "$made/libcuda.so.1" -ldl
  library -Wl,-soname,libcublas.so.13 "$sources/pretend/blas.cpp" "$made/libcuda.so.1" -o "$made/libcublas.so.13"
  library -Wl,-soname,libnccl.so.2 "$sources/pretend/nccl.cpp" "$made/libcuda.so.1" -o "$made/libnccl.so.2" -lrt
  for name in libcublasLt.so.13 libcurand.so.10; do ln -sf libcublas.so.13 "$made/$name"; done
  echo "$digest" >"$made/digest"
fi
LLAMA_LITE_PRETEND_KERNELS=$(printf '%s:' "$made"/kernels_*.so | sed 's/:$//')
export LLAMA_LITE_PRETEND_KERNELS LD_LIBRARY_PATH="$made:${LD_LIBRARY_PATH:-}"
exec "$@"
