"""`bench.py indicators`: what log.layers_every costs. Runs with a record at every step take turns with runs without; a fiftieth of the
difference is the cost of the default.

Whole processes are timed, without validations and samples; the smallest time of the rounds counts, because other work on the machine only
adds. Exit 1 if the default cadence of 50 costs more than 2 %.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from benches.shared import write_json

CADENCE = 50
SHAPES = {
    "0.7 M, 2,048 tokens a step": dict(tokenizer="train", hidden=128, ffn=384, layers=3, vocab=1024, length=256, micro=8, step=2048, steps=60),
    "6.0 M, 2,048 tokens a step": dict(tokenizer="train", hidden=256, ffn=704, layers=6, vocab=2048, length=512, micro=4, step=2048, steps=20),
    "74 M, 1,024 tokens a step": dict(tokenizer="gpt2", hidden=512, ffn=1408, layers=8, vocab=50304, length=512, micro=2, step=1024, steps=8),
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
stories = 2000
val_stories = 2
tokenizer = "{tokenizer}"
[train]
sequence_length = {length}
micro_batch_size = {micro}
tokens_per_step = {step}
steps = {steps}
[eval]
every = 0
val_tokens = 512
[log]
layers_every = {every}
"""


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--rounds", type=int, default=5, help="turns of each (default %(default)s)")


def run(args: argparse.Namespace, _: argparse.ArgumentParser) -> int:
    rows = []
    print(f"{'run':<28} {'none':>9} {'every step':>11} {'cost of a record':>17} {'at the default':>15}")
    for name, shape in SHAPES.items():
        seconds = {0: [], 1: []}
        for _ in range(args.rounds):
            for every in seconds:
                seconds[every].append(step_seconds(args.binary, shape, every))
        without, with_all = min(seconds[0]), min(seconds[1])
        record = (with_all - without) / without
        rows.append(dict(run=name, none_s=without, every_step_s=with_all, record=record, default=record / CADENCE))
        print(f"{name:<28} {without:>7.3f} s {with_all:>9.3f} s {100 * record:>15.1f} % {100 * record / CADENCE:>13.2f} %", flush=True)
    write_json(args.json, rows)
    return int(any(row["default"] > 0.02 for row in rows))


def step_seconds(binary: Path, shape: dict, every: int) -> float:
    """Seconds of a step of a run, its records included: from the difference of a short and a long run, so that the start is in neither."""
    times = []
    for steps in [2, 2 + shape["steps"]]:
        with tempfile.TemporaryDirectory() as tmp:
            Path(tmp, "run.toml").write_text(CONFIG.format(**{**shape, "steps": steps}, every=every))
            begun = time.monotonic()
            subprocess.run([binary, "pretrain", "--config", "run.toml", "--quiet"], check=True, cwd=tmp)
            times.append(time.monotonic() - begun)
    return (times[1] - times[0]) / shape["steps"]
