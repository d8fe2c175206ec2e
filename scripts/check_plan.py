#!/usr/bin/env python3
"""Compares what `llama-lite plan --probe` predicts with the runs themselves: time and peak memory, for runs of different shapes.

  python scripts/check_plan.py --binary target/release/llama-lite [--json FILE]

Each run trains on the built-in stories with validations, samples and checkpoints along the way, right after its plan. The time is that of
the run's own clock (times.jsonl), from its first step to its last save; reading the data is in neither number. Exit 1 if a time is off by
more than 10 %. On a machine that does other work meanwhile it will be.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Steps are chosen so that each takes about a minute on two cores.
SHAPES = {
    "0.7 M, short sequences": dict(hidden=128, ffn=384, layers=3, vocab=1024, length=256, micro=8, step=2048, steps=600),
    "6.0 M, accumulation": dict(hidden=256, ffn=704, layers=6, vocab=2048, length=512, micro=2, step=4096, steps=50),
    "18 M, long sequences": dict(hidden=384, ffn=1024, layers=8, vocab=4096, length=1024, micro=2, step=2048, steps=50),
}

CONFIG = """
[model]
hidden_size = {hidden}
intermediate_size = {ffn}
num_hidden_layers = {layers}
num_attention_heads = 8
num_key_value_heads = 4
vocab_size = {vocab}
[data]
source = "stories"
stories = 20000
val_stories = 100
tokenizer = "train"
[train]
sequence_length = {length}
micro_batch_size = {micro}
tokens_per_step = {step}
steps = {steps}
[eval]
every = {every}
[sample]
every = {every}
prompts = ["One day"]
[checkpoint]
every = {every}
"""


def main() -> None:
    """Plans, runs, compares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'run':<24} {'steps':>5} {'predicted':>10} {'measured':>10} {'off by':>7} {'memory predicted':>17} {'measured':>10}")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as tmp:
            config, run = Path(tmp, "plan.toml"), Path(tmp, "run")
            config.write_text(CONFIG.format(**shape, every=max(1, shape["steps"] // 3)))
            said = subprocess.run([args.binary, "plan", "--config", config, "--probe", "--quiet"], check=True, capture_output=True, text=True).stdout
            predicted = float(re.search(r"^time .*\((\d+) s\) in all", said, re.M)[1])
            memory = re.search(r"^peak memory +(.*) measured, (.*) predicted", said, re.M)
            subprocess.run([args.binary, "pretrain", "--config", config, "--out", run, "--quiet"], check=True)
            times = [json.loads(line)["seconds"] for line in Path(run, "times.jsonl").read_text().splitlines()]
        measured = sum(t["step"] if "step" in t else sum(t.values()) for t in times)
        off = predicted / measured - 1
        rows.append(dict(run=name, steps=shape["steps"], predicted_s=predicted, measured_s=measured, off=off, memory_measured=memory[1], memory_predicted=memory[2]))
        print(f"{name:<24} {shape['steps']:>5} {predicted:>8.0f} s {measured:>8.1f} s {100 * off:>+6.1f}% {memory[2]:>17} {memory[1]:>10}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(abs(row["off"]) > 0.1 for row in rows))


if __name__ == "__main__":
    main()
