#!/usr/bin/env bash
# Everything that must hold on a GPU, in two calls of under nine minutes each, on a machine with the driver, CUDA's libraries and PyTorch, but
# without Rust:
#
#   scripts/gpu_check.sh BINARY [--out DIR]                                                    kernels, losses, exact
#   scripts/gpu_check.sh BINARY [--out DIR] --only bench,parts,arms [--micro-batches 16,32]    speed
#
# BINARY is a llama-lite built with the feature cuda; it needs glibc 2.34, and a release build takes 145 MB, which `strip` makes 38 (--help has the
# commands). The libraries are those of the Python environment (nvidia-* wheels) if it has them, else
# the system's. A short table comes last; DIR/gpu_check.json has all of it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
libraries=$(python3 - <<'P'
import glob
import os
try:
    import nvidia
    folders = [folder for path in nvidia.__path__ for folder in sorted(glob.glob(os.path.join(path, "*", "lib")))]
except ImportError:
    folders = []
print(":".join(folders))
P
)
export LD_LIBRARY_PATH="$libraries${libraries:+:}${LD_LIBRARY_PATH:-}"
exec python3 "$here/gpu_check.py" "$@"
