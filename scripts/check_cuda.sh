#!/usr/bin/env bash
# What of the feature `cuda` can be checked without a GPU.
#
#   scripts/check_cuda.sh [--program] [NVCC]
#
# Kernels are compiled for sm_80 and sm_90 with NVCC, or the nvcc on PATH; without any that is left out, and said. The Rust code is linted
# with a stand-in for nvcc, so that nothing of NVIDIA's is needed. --program also links the program, which must start, say what it is and
# need no library of NVIDIA's. Programs made here have no kernels: they lie in a target folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
program= nvcc=
for word in "$@"; do
  case $word in
    --program) program=1 ;;
    -*) echo "usage: scripts/check_cuda.sh [--program] [NVCC]" >&2 && exit 2 ;;
    *) nvcc=$word ;;
  esac
done
nvcc=${nvcc:-$(command -v nvcc || true)}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

if [[ -n $nvcc ]]; then
  for source in src/ops/cuda/*.cu; do
    for arch in 80 90; do
      # Through ptxas, which knows what a GPU has: registers, shared memory, instructions.
      "$nvcc" --cubin -arch="sm_$arch" -O3 -std=c++17 -Werror all-warnings -Xptxas -v -o "$work/kernel.cubin" "$source" >"$work/words" 2>&1 || {
        cat "$work/words" >&2
        echo "error: $source does not compile for sm_$arch" >&2
        exit 1
      }
      if grep -i warning "$work/words" >&2; then
        echo "error: $source compiles for sm_$arch with warnings" >&2
        exit 1
      fi
      awk -v what="$source, sm_$arch" '
        /Compiling entry function/ { split($0, part, "\047"); name = part[2]; kernels++ }
        /bytes spill stores/ && !/ 0 bytes spill stores/ { print what ": " name " spills:" $0 }
        END { print what ": " kernels " kernels" }' "$work/words"
    done
  done
  include=$(cd "$(dirname "$(readlink -f "$nvcc")")/.." && pwd)/include
  if [[ -f $include/cudnn_frontend.h ]]; then
    "${CXX:-c++}" -std=c++17 -fsyntax-only -Wall -Wextra -Werror -isystem "$include" src/ops/cuda/cudnn.cpp
    echo "src/ops/cuda/cudnn.cpp compiles"
  else
    echo "no headers of cuDNN beside nvcc: cudnn.cpp is not compiled (scripts/cuda_toolkit.sh --cudnn DIR)"
  fi
else
  echo "no nvcc: kernels are not compiled (scripts/cuda_toolkit.sh DIR puts a compiler together)"
fi

export LLAMA_LITE_FAKE_NVCC=1 NVCC=$PWD/scripts/lean_nvcc CUDARC_CUDA_VERSION=13000
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/cuda-check
cargo clippy --release --all-targets --features cuda,cudnn --locked -- -D warnings

if [[ -n $program ]]; then
  cargo build --release --features cuda --locked
  built=$CARGO_TARGET_DIR/release/llama-lite
  "$built" --version
  if readelf -d "$built" | grep NEEDED | grep -E 'libcu|libnv'; then
    echo "error: the program does not start without these libraries" >&2
    exit 1
  fi
fi
