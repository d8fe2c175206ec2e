#!/usr/bin/env python3
"""What each piece of a run's state is for: a small model is interrupted in mid-run and goes on without it, with `llama-lite fork`.

  python scripts/experiment_resume.py --binary target/release/llama-lite --out DIR [--seeds 3] [--json scripts/results/resume.json]

For every seed: a run of STEPS steps on the built-in stories, and branches from its checkpoint at AT that each go on for the rest:

  exact           everything restored
  weights         weights alone: moments and AdamW's step count are 0
  moments         moments restored, step count 0 (bias correction begins anew)
  rewarm          weights alone, and the learning rate warms up again
  stretched       everything restored, the cosine stretched to twice its length, as a rate computed from a new horizon is
  data            everything restored, but the data begin anew

Excess loss is the branch's training loss minus the exact run's at the same step: on the same data for all but the last arm. Printed for each
arm: the mean excess over the first 10 steps, the largest excess of one step, steps until the excess of a 10-step mean is below 0.01 for
good, and the gap in validation loss at the end; each as mean and range over the seeds. The exact arm must be 0 by bits.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

STEPS, AT = 600, 300
ARMS = {
    "exact": "",
    "weights": "reset=optimizer",
    "moments": "reset=optimizer_step",
    "rewarm": "reset=optimizer+schedule",
    "stretched": f"schedule.decay_steps={2 * STEPS}",
    "data": "reset=data",
}

CONFIG = f"""
[model]
hidden_size = 96
intermediate_size = 288
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 1024
rope_theta = 10000.0
tie_word_embeddings = true
initializer_range = 0.06
[data]
source = "stories"
tokenizer = "train"
val_stories = 200
[train]
sequence_length = 128
micro_batch_size = 8
tokens_per_step = 2048
steps = {STEPS}
[optimizer]
lr = 3e-3
betas = [0.9, 0.95]
[schedule]
warmup_steps = 30
[checkpoint]
every = {AT}
keep = 2
[eval]
every = 100
"""


def losses(run: Path) -> tuple[dict[int, float], float]:
    """Training losses by step, and the last validation loss."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = {r["step"]: r["loss"] for r in records if r["kind"] == "train"}
    return train, [r["loss"] for r in records if r["kind"] == "val"][-1]


def main() -> None:
    """Runs all arms of all seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.toml").write_text(CONFIG, encoding="utf-8")
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(1, args.seeds + 1):
        run, forks = args.out / f"seed-{seed}", args.out / f"seed-{seed}-forks"
        quiet = [args.binary, "--quiet", "--device", "cpu"]
        sets = ["--set", f"train.seed={seed}", "--set", f"data.seed={seed}"]
        subprocess.run([*quiet, "pretrain", "--config", args.out / "config.toml", "--out", run, *sets], check=True)
        branches = [part for arm, changes in ARMS.items() for part in ("--branch", f"{arm}: {changes}")]
        ckpt = run / "checkpoints" / f"step-{AT:08}"
        subprocess.run([*quiet, "fork", ckpt, "--steps", str(STEPS - AT), "--out", forks, *branches], check=True)
        whole, end = losses(run)
        weights = (run / "checkpoints" / f"step-{STEPS:08}" / "model.safetensors").read_bytes()
        for arm in ARMS:
            train, last = losses(forks / arm)
            excess = [train[step] - whole[step] for step in range(AT + 1, STEPS + 1)]
            means = [statistics.mean(excess[max(0, i - 9) : i + 1]) for i in range(len(excess))]
            above = [i for i, mean in enumerate(means) if mean >= 0.01]
            same = (forks / arm / "checkpoints" / f"step-{STEPS:08}" / "model.safetensors").read_bytes() == weights
            found[arm].append(
                {
                    "first_10": statistics.mean(excess[:10]),
                    "largest": max(excess),
                    "recovery": above[-1] + 1 if above else 0,
                    "final_gap": last - end,
                    "same_bits": same,
                }
            )
        print(f"seed {seed} done", flush=True)
    print("| state given up | same bits | excess of the first 10 steps | largest of one step | steps to recover | gap at the end |\n|---|---|---|---|---|---|")
    for arm, rows in found.items():

        def cell(key: str, digits: int) -> str:
            values = [row[key] for row in rows]
            return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

        bits = f"{sum(row['same_bits'] for row in rows)} of {len(rows)}"
        cells = [cell("first_10", 3), cell("largest", 3), cell("recovery", 0), cell("final_gap", 4)]
        print(f"| {arm} | {bits} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"steps": STEPS, "at": AT, "arms": found}, indent=1) + "\n", encoding="utf-8")
    if not all(row["same_bits"] for row in found["exact"]):
        raise SystemExit("the exact arm is not the run itself")


if __name__ == "__main__":
    main()
