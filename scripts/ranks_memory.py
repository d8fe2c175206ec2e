#!/usr/bin/env python3
"""Measures how much memory each rank takes, beside what arithmetic says: moments are shared out, all else is not.

  python3 scripts/ranks_memory.py PROGRAM          1, 2 and 4 ranks, 51 million parameters; two minutes on two cores
  python3 scripts/ranks_memory.py PROGRAM --lanes 1,2,4      how many lanes there are with 1, 2 and 4 ranks; default 4 each

Every number of ranks trains some steps twice: once without a save, and once with two in the background. Each row is the peak of the
resident memory (VmHWM) of the process that has the most, and of rank 0, which alone copies what is saved; and the sum of what must be
there: weights and gradients, 4 bytes a parameter each, moments, 8 bytes shared out over ranks, log2 of the lanes of a rank many partial
sums of gradients, and, for rank 0, the copy of weights and moments that is saved. The rest, measured less that sum, is activations,
logits, code, and the buffers of exchanges. It needs mpiexec (scripts/mpi.sh).
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranks_shared import command_on_ranks, events, find_mpiexec, kill_all, rank_of, ranks_with, wait_until_gone

CONFIG = """
[model]
hidden_size = 512
intermediate_size = 1408
num_hidden_layers = 8
num_attention_heads = 8
vocab_size = 50257
tie_word_embeddings = true
[data]
source = "stories"
stories = 2000
val_stories = 20
[train]
sequence_length = 128
micro_batch_size = 1
tokens_per_step = 1024
steps = 1000
[eval]
every = 0
val_tokens = 1024
"""

STEPS = 5


def measure(program: Path, work: Path, ranks: int, lanes: int, saves: bool) -> dict[int, dict[str, float]]:
    """The largest memory of each rank in MB, in STEPS steps; the run is then ended."""
    out = work / f"run-{ranks}-{lanes}-{saves}"
    sets = [f"train.lanes={lanes}", f"checkpoint.every={2 if saves else 0}"]
    arguments = ["pretrain", "--config", str(work / "config.toml"), "--out", str(out), *[word for key in sets for word in ("--set", key)]]
    process = subprocess.Popen(command_on_ranks(program, arguments, ranks, "mpiexec"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peaks: dict[int, dict[str, float]] = {}
    pids: dict[int, int] = {}
    while not has_done(out, saves):
        if process.poll() is not None:
            sys.exit(f"{ranks} ranks have ended with {process.returncode}")
        if len(pids) < ranks:
            pids = {pid: rank_of(pid) or 0 for pid in ranks_with(str(out), program)}
        for pid, rank in pids.items():
            add_peak(peaks.setdefault(rank, {}), pid)
        time.sleep(0.05)
    kill_all(pids)
    process.wait()
    wait_until_gone(str(out), 10)
    return peaks


def has_done(out: Path, saves: bool) -> bool:
    metrics = out / "metrics.jsonl"
    steps = metrics.read_text().count('"kind":"train"') if metrics.exists() else 0
    return steps >= STEPS and (not saves or sum(event["kind"] == "save" for event in events(out)) >= 2)


def add_peak(peak: dict[str, float], pid: int) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    for name in ("VmHWM", "RssShmem"):
        found = re.search(rf"^{name}:\s*(\d+) kB", status, re.M)
        peak[name] = max(peak.get(name, 0), int(found[1]) * 1024 / 1e6 if found else 0)


def expected(parameters: int, ranks: int, lanes: int) -> dict[str, float]:
    """MB of each kind that a rank must have."""
    unit = parameters / 1e6
    sums = int(math.log2(lanes // ranks))
    return {"weights": 4 * unit, "gradients": 4 * unit, "moments": 8 * unit / ranks, "lane sums": 4 * unit * sums}


def parameters_of() -> int:
    """Weights of CONFIG."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    hidden, layers, inner, vocabulary = (int(re.search(rf"^{name} = (\d+)", CONFIG, re.M)[1]) for name in names)
    return vocabulary * hidden + layers * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden) + hidden


COLUMNS = ["ranks", "lanes", "saves", "weights", "gradients", "moments", "lane sums", "copy", "rank 0", "rest", "others", "rest", "shared"]


def print_row(cells: list) -> None:
    texts = [f"{cell:.0f}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("  ".join(text.rjust(len(column)) for text, column in zip(texts, COLUMNS)), flush=True)


def row(parameters: int, ranks: int, lanes: int, saves: bool, peaks: dict[int, dict[str, float]]) -> list:
    """What is expected and what was measured of one run, for the columns above."""
    parts = expected(parameters, ranks, lanes)
    total = sum(parts.values())
    copy = 12 * parameters / 1e6 if saves else 0.0
    first = peaks[0]["VmHWM"]
    others = max((peak["VmHWM"] for rank, peak in peaks.items() if rank), default=None)
    shared = max(peak["RssShmem"] for peak in peaks.values())
    of_others = ["", ""] if others is None else [others, others - total]
    return [ranks, lanes, "yes" if saves else "no", *parts.values(), copy, first, first - total - copy, *of_others, shared]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--lanes", default="4,4,4")
    args = parser.parse_args()
    find_mpiexec()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "config.toml").write_text(CONFIG)
        print(f"{parameters_of() / 1e6:.1f} million parameters; MB; 'rest' is what was measured less the parts before it")
        print_row(COLUMNS)
        for ranks, lanes in zip((1, 2, 4), map(int, args.lanes.split(","))):
            for saves in (False, True):
                peaks = measure(args.program.resolve(), work, ranks, lanes, saves)
                print_row(row(parameters_of(), ranks, lanes, saves, peaks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
