#!/usr/bin/env python3
"""What a change of hardware in mid-run does to a run: a small model trains on 4 ranks, is moved to 2, to 1 and back to 4, and is compared
with the same run that stayed where it was.

  scripts/mpi.sh
  python3 scripts/experiment_hardware.py --binary target/release/llama-lite --out DIR [--seeds 3] [--json scripts/results/hardware.json]
  python3 scripts/experiment_hardware.py --binary target/release/llama-lite --out DIR --quick        tries the script; its figures mean little

Every move ends the processes and resumes their checkpoint with another number of ranks. The arms differ in what changes with that number:

  lanes kept      nothing: train.lanes = 4 throughout. The weights and moments at the end must be those of the run that stayed, bit for bit
  own sums        train.lanes = the number of ranks: a gradient is summed in an order that depends on that number, as elsewhere
  micro-batch     train.micro_batch_size: 4 sequences on 4 ranks, 2 on 2, 1 on 1; the lanes are kept
  precision       train.precision: f32 on 4 ranks, bf16 on 2 and on 1
  smaller steps   train.tokens_per_step: a rank's part of a step stays what it is, so that fewer ranks make smaller steps, and the run
                  ends with less data; other trainers do so unless they are told otherwise. Only its last validation can be compared
  bf16, ...       the first two arms of a run that is in bf16 from its start, compared with such a run that stayed

The arms with bf16 need a processor with AVX512_BF16 and are left out on others.

Excess is an arm's loss minus that of the run that stayed, at the same step and on the same data: at the first step after the first move, at
the second (the first one whose weights are updates of the other hardware), at the 100th, and at the last; and the largest of all steps, whatever
its sign. Beside it stands the noise: the standard deviation of the final validation losses of runs that stayed, and differ in their seed (weights
at the start) alone. "Of the noise" is the largest final excess of the seeds over that deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path

LANES = 4
TOKENS = 1024
# Ranks, and the step at which they stop.
QUARTERS = [4, 2, 1, 4]
SWITCHES = {
    "lanes kept": lambda ranks: {},
    "own sums": lambda ranks: {"train.lanes": ranks},
    "micro-batch": lambda ranks: {"train.micro_batch_size": ranks},
    "precision": lambda ranks: {"train.precision": "f32" if ranks == LANES else "bf16"},
    "smaller steps": lambda ranks: {"train.lanes": ranks, "train.tokens_per_step": ranks * TOKENS // LANES},
}
# Arms by the precision in which the run begins.
ARMS = {"f32": ["lanes kept", "own sums", "micro-batch", "precision", "smaller steps"], "bf16": ["lanes kept", "own sums"]}

CONFIG = """
[model]
hidden_size = 64
intermediate_size = 192
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 512
rope_theta = 10000.0
tie_word_embeddings = true
initializer_range = 0.06
[data]
source = "stories"
tokenizer = "train"
stories = 3500
val_stories = 200
[train]
sequence_length = 64
micro_batch_size = 4
tokens_per_step = {tokens}
lanes = {lanes}
steps = {steps}
precision = "{precision}"
[optimizer]
lr = 3e-3
betas = [0.9, 0.95]
[schedule]
warmup_steps = 30
decay_steps = {steps}
[checkpoint]
every = 0
keep = 2
[eval]
every = {quarter}
"""


class Experiment:
    """The runs of one call of this script, in a directory of their own."""

    def __init__(self, args: argparse.Namespace):
        self.binary, self.out, self.steps = args.binary.resolve(), args.out, 40 if args.quick else 600
        self.quarter = self.steps // len(QUARTERS)
        # The program finds mpiexec on PATH.
        self.env = os.environ | {"PATH": f"{args.mpi / 'bin'}:{os.environ['PATH']}"}
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, command: str, ranks: int, *arguments: object) -> None:
        # One rank has the processors alone.
        threads = max(1, (os.cpu_count() or 1) // ranks)
        base = [self.binary, "--quiet", "--device", "cpu", "--threads", threads, command, "--ranks", ranks]
        subprocess.run([*map(str, base), *map(str, arguments)], check=True, env=self.env)

    def start(self, run: Path, ranks: int, precision: str, seed: int, until: int) -> None:
        config = self.out / f"{precision}.toml"
        text = CONFIG.format(lanes=LANES, tokens=TOKENS, steps=self.steps, quarter=self.quarter, precision=precision)
        config.write_text(text, encoding="utf-8")
        sets = {"train.seed": seed, "train.steps": until}
        self.run("pretrain", ranks, "--config", config, "--out", run, *as_flags(sets))

    def stay(self, precision: str, seed: int) -> Path:
        """The run that is not moved."""
        run = self.out / f"{precision}-{seed}-stayed"
        self.start(run, 1, precision, seed, self.steps)
        return run

    def first_quarter(self, precision: str, seed: int) -> Path:
        """What all arms of a seed begin with."""
        run = self.out / f"{precision}-{seed}-first"
        self.start(run, QUARTERS[0], precision, seed, self.quarter)
        return run

    def move(self, first: Path, arm: str) -> Path:
        """The run that goes on after `first` on other numbers of ranks."""
        run = first.with_name(f"{first.name.removesuffix('-first')}-{arm.replace(' ', '-')}")
        shutil.copytree(first, run)
        for number, ranks in list(enumerate(QUARTERS))[1:]:
            sets = {"train.steps": (number + 1) * self.quarter} | SWITCHES[arm](ranks)
            self.run("resume", ranks, "--ckpt", run, *as_flags(sets))
        return run

    def last_tensors(self, run: Path) -> dict[str, bytes]:
        files = (run / "checkpoints" / f"step-{self.steps:08}").rglob("*.safetensors")
        return {file.name: file.read_bytes() for file in files}

    def compare(self, moved: Path, stayed: Path) -> dict[str, float | bool]:
        train, val = losses(moved)
        expected, expected_val = losses(stayed)
        excess = {step: train[step] - expected[step] for step in range(self.quarter + 1, self.steps + 1)}
        tensors = self.last_tensors(stayed)
        return {
            "same_bits": bool(tensors) and self.last_tensors(moved) == tensors and not any(excess.values()),
            "first_step": excess[self.quarter + 1],
            "second_step": excess[self.quarter + 2],
            "step_100": excess[min(self.quarter + 100, self.steps)],
            "last_step": excess[self.steps],
            "largest": max(excess.values(), key=abs),
            "final_validation": val - expected_val,
        }


def as_flags(sets: dict[str, object]) -> list[str]:
    return [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]


def losses(run: Path) -> tuple[dict[int, float], float]:
    """Training losses by step, and the last validation loss."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {r["step"]: r["loss"] for r in records if r["kind"] == "train"}, [r["loss"] for r in records if r["kind"] == "val"][-1]


def multiplies_bf16() -> bool:
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def noise_of(finals: list[float]) -> dict[str, float | list[float]]:
    deviation = statistics.stdev(finals) if len(finals) > 1 else 0.0
    return {"final_validation": finals, "mean": statistics.mean(finals), "deviation": deviation, "range": max(finals) - min(finals)}


def table(found: dict[str, list[dict]], noise: dict[str, dict]) -> str:
    """For docs/dynamics.md: of every quantity the value of the seed that is farthest from 0."""
    titles = ["what changes with the ranks", "same bits", "first step", "second step", "100th step", "last step", "largest of all"]
    titles += ["validation at the end", "of the noise"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, rows in found.items():
        cells = [f"{sum(row['same_bits'] for row in rows)} of {len(rows)}"]
        for key in ("first_step", "second_step", "step_100", "last_step", "largest"):
            cells.append("other data" if arm == "smaller steps" else cell([row[key] for row in rows]))
        cells.append(cell([row["final_validation"] for row in rows]))
        deviation = noise["bf16" if arm.startswith("bf16") else "f32"]["deviation"]
        most = max(abs(row["final_validation"]) for row in rows)
        cells.append(f"{most / deviation:.2g}" if most and deviation else "0")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    """The one that is farthest from 0, with a sign if all have the same."""
    most = max(values, key=abs)
    if not most:
        return "0"
    agree = all(value > 0 for value in values) or all(value < 0 for value in values)
    return f"{most:+.1e}" if agree else f"±{abs(most):.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="for the runs; must not have them yet")
    parser.add_argument("--mpi", type=Path, default=Path(__file__).resolve().parent.parent / "target/mpi", help="where scripts/mpi.sh has put MPICH")
    parser.add_argument("--seeds", type=int, default=3, help="seeds with moves (default %(default)s)")
    parser.add_argument("--noise-seeds", type=int, default=6, help="seeds of runs that stay (default %(default)s)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="40 steps, one seed with moves, two that stay")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.noise_seeds = 1, 2
    experiment = Experiment(args)
    found: dict[str, list[dict]] = {}
    noise: dict[str, dict] = {}
    for precision in ["f32", "bf16"] if multiplies_bf16() else ["f32"]:
        arms = [arm for arm in ARMS[precision] if arm != "precision" or multiplies_bf16()]
        finals = []
        for seed in range(1, max(args.seeds, args.noise_seeds) + 1):
            stayed = experiment.stay(precision, seed)
            finals.append(losses(stayed)[1])
            if seed > args.seeds:
                continue
            first = experiment.first_quarter(precision, seed)
            for arm in arms:
                name = arm if precision == "f32" else f"{precision}, {arm}"
                found.setdefault(name, []).append(experiment.compare(experiment.move(first, arm), stayed))
            print(f"{precision}, seed {seed} done", flush=True)
        noise[precision] = noise_of(finals)
    print(table(found, noise))
    for precision, of in noise.items():
        count = len(of["final_validation"])
        print(f"final validation of {count} seeds that stayed, {precision}: {of['mean']:.4f}, deviation {of['deviation']:.4f}, range {of['range']:.4f}")
    if args.json:
        result = {"steps": experiment.steps, "ranks": QUARTERS, "lanes": LANES, "noise": noise, "arms": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not all(row["same_bits"] for arm, rows in found.items() if arm.endswith("lanes kept") for row in rows):
        raise SystemExit("a run that kept its lanes is not the run that stayed")


if __name__ == "__main__":
    main()
