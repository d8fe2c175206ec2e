#!/usr/bin/env bash
# Times one training step of llama-lite against PyTorch eager and torch.compile on the CPU. `--help` tells the flags.
#
#   scripts/bench_cpu.sh --quick                        the harness itself, in about a minute; its figures mean little
#   scripts/bench_cpu.sh --json bench.json              the whole table, on a machine that does nothing else
#
# It needs Linux, Python 3.11 or newer and, for torch.compile, a C++ compiler. Environment:
#   BENCH_VENV    a virtual environment to use, made if absent (default target/bench-venv); pip obeys its own variables,
#                 such as PIP_EXTRA_INDEX_URL for builds of torch without CUDA, which are smaller and no slower here
#   BENCH_BINARY  a built llama-lite (default: cargo builds it)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

venv=${BENCH_VENV:-$root/target/bench-venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import numpy, safetensors, torch' 2>/dev/null; then
    "$venv/bin/pip" install --quiet --constraint "$root/scripts/requirements.txt" numpy safetensors torch
fi

binary=${BENCH_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release --locked --manifest-path "$root/Cargo.toml"
    binary=${CARGO_TARGET_DIR:-$root/target}/release/llama-lite
fi
# exec: signals reach the driver itself, which must not leave stopped processes behind.
exec "$venv/bin/python" "$root/scripts/bench_cpu.py" --binary "$binary" "$@"
