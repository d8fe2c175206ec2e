#!/usr/bin/env python3
"""Does gpu_check.py keep what it has found, whatever the program does? `python3 scripts/gpu_check_selftest.py` (under 20 s; needs no GPU, no PyTorch).

A fake program, a fake nvidia-smi and a fake PyTorch stand in for the real ones. In turn each command of the program hangs, is killed, or ends in the
middle of a line, and nvidia-smi hangs or is missing. gpu_check.py must end in time, say which section failed and why, and keep every other result in
a gpu_check.json that can be read. A second call must keep what the first one has found. Exit 0 when all of that holds, else 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gpu_check

# The program: what it writes in a run is what gpu_check.py reads. TROUBLE is COMMAND:KIND.
PROGRAM = r'''#!/bin/bash
command=$1; shift
[ -n "$CALLS" ] && echo "$command" >>"$CALLS"
out= config= ckpt=
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --config) config=$2;; --ckpt) ckpt=$2;; esac
  shift
done
steps=$(sed -n 's/^steps = //p' "$config" 2>/dev/null); steps=${steps:-20}; [ "$steps" -gt 40 ] && steps=40
lines() { for i in $(seq "$steps"); do echo '{"kind": "train", "loss": 2.5, "grad_norm": 1.0, "chain": "c", "tokens_per_second": 5000}'; done; }
save() { mkdir -p "$1/checkpoints/step-00000010" "$1/checkpoints/step-$(printf %08d "$steps")"
  for file in model optimizer; do echo weights >"$1/checkpoints/step-$(printf %08d "$steps")/$file.safetensors"; done; }
fail() {
  case ${TROUBLE#*:} in
    hang) [ "$command" = doctor ] && echo '  rms_norm y, f32   1.0e-7 of 1.0e-5  ok'; sleep 1000 & wait;;
    crash) kill -9 $$;;
    half)
      printf '  rms_norm y, f3'
      [ -n "$out" ] && mkdir -p "$out" && printf '{"kind": "tr' >"$out/metrics.jsonl"
      [ -n "$LLAMA_LITE_OP_TIMES" ] && printf '[{"name": "pro' >"$LLAMA_LITE_OP_TIMES"
      exit 70;;
  esac
}
[ "${TROUBLE%%:*}" = "$command" ] && fail
case $command in
  --version) echo 'llama-lite 0.0.0';;
  doctor) echo 'gpu        NVIDIA H200, 139 GB free'; echo '  rms_norm y, f32   1.0e-7 of 1.0e-5  ok';
    if [ "${TROUBLE}" = error ]; then echo '  attention, bf16   FAILED: no such kernel'; exit 70; fi;;
  pretrain) mkdir -p "$out"; lines >"$out/metrics.jsonl"
    [ -n "$LLAMA_LITE_OP_TIMES" ] && echo '[{"name": "zero", "launches": 3, "median": 0.001, "flops": 0.0}]' >"$LLAMA_LITE_OP_TIMES"
    # A save that never ends: what was measured before it counts.
    [ "$TROUBLE" = save ] && [ -n "$LLAMA_LITE_OP_TIMES" ] && sleep 1000
    save "$out";;
  resume) ;;
  sample) echo '32 tokens, 64.0 tokens/s' >&2;;
  plan) echo '2.0 s a validation';;
esac
'''
NVIDIA_SMI = r'''#!/bin/bash
[ "$TROUBLE" = nvidia-smi:hang ] && sleep 1000
[ -n "$NO_DRIVER" ] && echo 'NVIDIA-SMI has failed' && exit 9
case $1 in *memory.used*) echo 1234;; *) echo 'NVIDIA H200, 580.1, 143771 MiB, 1980 MHz, 700 W';; esac
'''
TORCH = r'''#!/bin/bash
[ "$1" = train ] || exit 0
while [ $# -gt 0 ]; do [ "$1" = --log ] && log=$2; shift; done
for i in $(seq 20); do echo '{"kind": "train", "loss": 2.5, "seconds": 0.1}'; done >"$log"
'''
SECTIONS = list(gpu_check.SECTIONS)
# Which sections a failing command costs. A row, or a part of one, that is lost does not cost the section.
COSTS = {"--version": [], "doctor": ["kernels"], "pretrain": ["losses", "exact", "bench", "parts", "arms"], "resume": ["exact"],
         "sample": ["parts"], "plan": ["parts"], "nvidia-smi": []}


def write_programs(folder: Path) -> None:
    for name, text in [("llama-lite", PROGRAM), ("nvidia-smi", NVIDIA_SMI), ("torch", TORCH)]:
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def start_check() -> int:
    """gpu_check.py in this process, with short limits and the fake PyTorch."""
    programs = Path(os.environ["PROGRAMS"])
    gpu_check.LIMITS.command_s = float(os.environ["SECONDS_A_COMMAND"])
    gpu_check.torch_command = lambda *arguments: [str(programs / "torch"), *map(str, arguments)]
    gpu_check.sys.executable = str(programs / "torch")  # asked for its version
    return gpu_check.main()


class Check:
    """One call of gpu_check.py, or several with the same folder for their results."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder = programs, folder

    def call(self, trouble: str = "", *options: str, **variables: str) -> tuple[int, dict, str]:
        """Its exit status, gpu_check.json and words."""
        environment = dict(os.environ, TROUBLE=trouble, PROGRAMS=str(self.programs), SECONDS_A_COMMAND="1", IS_CHECK="1", **variables)
        environment["PATH"] = f"{self.programs}:{os.environ['PATH']}"
        command = [sys.executable, __file__, str(self.programs / "llama-lite"), "--out", str(self.folder), "--quick", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, json.loads((self.folder / "gpu_check.json").read_text()), done.stdout + done.stderr


def expect(is_so: bool, what: object) -> None:
    if not is_so:
        raise AssertionError(what)


def check_trouble(check: Check, trouble: str) -> None:
    """Only the sections that need the failing command fail, and say why."""
    status, found, words = check.call(trouble, "--only", ",".join(SECTIONS))
    costs = COSTS[trouble.split(":")[0]]
    failed = [name for name in SECTIONS if not found[name]["ok"]]
    expect(failed == costs and status == int(bool(costs)), (trouble, failed, words[-2000:]))
    expect("Traceback" not in words and all(f"{name}: " in words for name in SECTIONS), (trouble, words))
    for name in costs:
        expect(any(word in json.dumps(found[name]) for word in ("exit", "killed", "no step in time", "JSONDecodeError")), (trouble, name, found[name]))
    expect(all(row["mfu"] for row in found["bench"]["rows"] if "step_s" in row), (trouble, "the card is not known"))
    if trouble == "doctor:hang":
        expect(found["kernels"]["compared"][0]["ok"], "what doctor said before it hung")
    if trouble.startswith("pretrain"):
        expect(any("step_s" in row for row in found["bench"]["rows"]), "PyTorch's rows")
    if trouble.startswith("sample"):
        expect(found["parts"]["launches"] and "validation_s" in found["parts"], found["parts"])


def check_others(check: Check) -> None:
    """A call without trouble, one error among the comparisons, and a save that does not end."""
    status, found, words = check.call("", "--only", "kernels,exact")
    expect(status == 0 and found["exact"]["ok"] and "losses" not in found, words)
    status, found, _ = check.call("save", "--only", "parts")
    expect(status == 1 and found["parts"]["launches"][0]["name"] == "zero", found)
    expect(found["kernels"]["ok"] and found["exact"]["ok"], "a second call keeps what the first has found")
    _, found, _ = check.call("error", "--only", "kernels")
    expect(found["kernels"]["failed"] == ["attention, bf16"] and "no such kernel" in json.dumps(found["kernels"]), found["kernels"])
    _, found, _ = check.call("doctor:hang", "--only", "kernels,bench", "--minutes", "0.01")
    expect("no time left" in json.dumps(found["bench"]), found["bench"])
    # Without nvidia-smi the program is asked for the card's name. That it does not answer is an answer.
    calls = check.programs / "calls"
    _, found, _ = check.call("doctor:hang", "--only", "kernels,bench,parts", NO_DRIVER="1", CALLS=str(calls))
    expect(calls.read_text().split().count("doctor") == 1 and found["bench"]["ok"] and found["parts"]["ok"], (calls.read_text(), found))


def main() -> int:
    if os.environ.pop("IS_CHECK", None):
        return start_check()
    begun = time.monotonic()
    troubles = [f"{command}:{kind}" for command in COSTS if command != "nvidia-smi" for kind in ["hang", "crash", "half"]] + ["nvidia-smi:hang"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as pool:
        programs = Path(folder)
        write_programs(programs)
        checks = [Check(programs, programs / f"out-{i}") for i in range(len(troubles) + 1)]
        others = pool.submit(check_others, checks[-1])
        for done in [pool.submit(check_trouble, check, trouble) for check, trouble in zip(checks, troubles)] + [others]:
            done.result()
    print(f"gpu_check.py keeps what it finds through {len(troubles)} troubles ({time.monotonic() - begun:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
