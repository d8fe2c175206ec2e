#!/usr/bin/env python3
"""Measures llama-lite's speed beside that of other programs. Recorded results are in scripts/results/.

  python3 scripts/bench.py cpu --quick                   test the harness itself, in about a minute; its figures mean little
  python3 scripts/bench.py cpu                           a training step on the CPU beside PyTorch eager and torch.compile, in turns
  python3 scripts/bench.py table FILE                    what a file of results of `cpu` holds, as docs/benchmarks.md shows it
  python3 scripts/bench.py decode --json FILE            generation beside transformers' `generate`, in turns
  python3 scripts/bench.py prepare --text FILE.jsonl     `data prepare` beside tiktoken and Hugging Face's tokenizers
  python3 scripts/bench.py ranks --json FILE             two ranks beside one rank with two threads and PyTorch's DDP, in turns
  python3 scripts/bench.py indicators                    what log.layers_every costs
  python3 scripts/bench.py torch ...                     PyTorch's side alone; cpu, decode, ranks and gpu_check.py start it

`bench.py NAME --help` tells how a benchmark measures and lists its flags. Measure on Linux, on a machine that does nothing else. Needs Python 3.11
and, for torch.compile, a C++ compiler. Environment:

  BENCH_VENV    a virtual environment for the packages that this Python lacks, made if absent (default target/bench-venv); pip obeys its own
                variables, such as PIP_EXTRA_INDEX_URL for builds of torch without CUDA, which are smaller and no slower here
  BENCH_BINARY  a built llama-lite (default: cargo builds it)
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# The module of each benchmark, and what it imports besides the standard library. Programs that start `torch` have that environment already.
BENCHMARKS = {
    "cpu": ("benches.cpu", ["numpy", "safetensors", "torch"]),
    "decode": ("benches.decode", ["numpy", "safetensors", "tokenizers", "torch", "transformers"]),
    "indicators": ("benches.indicators", []),
    "prepare": ("benches.prepare", ["numpy", "tiktoken", "tokenizers"]),
    "ranks": ("benches.ranks", ["numpy", "safetensors", "torch"]),
    "table": ("benches.table", []),
    "torch": ("benches.contender", []),
}
# These measure nothing of llama-lite's.
WITHOUT_PROGRAM = ["table", "torch"]


def use_environment_with(packages: list[str]) -> None:
    """Starts this command again in the virtual environment if packages are missing, and installs them there."""
    if all(importlib.util.find_spec(package) for package in packages):
        return
    python = Path(os.environ.get("BENCH_VENV", ROOT / "target/bench-venv")) / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    imports = "; ".join(f"import {package}" for package in packages)
    if subprocess.run([python, "-c", imports], stderr=subprocess.DEVNULL).returncode != 0:
        install = ["-m", "pip", "install", "--quiet", "--constraint", str(HERE / "requirements.txt"), *packages]
        subprocess.run([str(python), *install], check=True)
    # exec: signals reach the driver itself, which must not leave stopped processes behind.
    os.execv(python, [str(python), *sys.argv])


def built_program() -> Path:
    """BENCH_BINARY, or what cargo builds."""
    if binary := os.environ.get("BENCH_BINARY"):
        return Path(binary)
    manifest = str(ROOT / "Cargo.toml")
    subprocess.run(["cargo", "build", "--release", "--locked", "--manifest-path", manifest], check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/llama-lite"


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        wants_help = sys.argv[1:2] in (["-h"], ["--help"])
        print(__doc__, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    name = sys.argv[1]
    module, packages = BENCHMARKS[name]
    use_environment_with(packages)
    benchmark = importlib.import_module(module)
    parser = argparse.ArgumentParser(
        prog=f"bench.py {name}", description=benchmark.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name not in WITHOUT_PROGRAM:
        parser.add_argument("--binary", type=Path, metavar="FILE", help="llama-lite (default: BENCH_BINARY, or what cargo builds)")
        parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go, every number of them")
    benchmark.add_arguments(parser)
    args = parser.parse_args(sys.argv[2:])
    if name not in WITHOUT_PROGRAM:
        args.binary = (args.binary or built_program()).resolve()
    return run(name, benchmark, args, parser)


def run(name: str, benchmark: ModuleType, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from benches.shared import Failed

    try:
        return benchmark.run(args, parser)
    except Failed as error:
        print(f"bench.py {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bench.py {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
