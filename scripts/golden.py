#!/usr/bin/env python3
"""Runs a dozen small commands and compares what they wrote with what another program, or a record, says.

  python scripts/golden.py PROGRAM --record FILE     write the hashes of every output
  python scripts/golden.py PROGRAM --check FILE      compare with them; exit 1 and the names of what differs
  python scripts/golden.py PROGRAM --against OTHER   run both programs and compare

A change that should leave behaviour alone (a rename, a move, a faster way) leaves every hash alone. Clocks, speeds, the machine, the
build and temporary paths are left out of the hashes, all else counts. The hashes hold for one processor family: take the record where
it is checked. Takes about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Fields that hold clocks, speeds, the machine or the build.
VOLATILE = {"time", "tokens_per_second", "mfu", "data_seconds", "seconds", "stall_seconds", "build", "before", "after", "pid"}
# Files that hold nothing but times and process numbers.
SKIPPED = {"times.jsonl", "run.lock", "prepare.lock"}

SFT = """
[train]
sequence_length = 96
micro_batch_size = 2
tokens_per_step = 384
steps = 6
[optimizer]
lr = 1e-2
[checkpoint]
every = 3
[eval]
every = 3
[sft]
template = "zephyr"
judged_prompts = 2
judged_tokens = 8
neftune_alpha = 2.0
max_truncated = 0.5
"""


def words(rng: random.Random, count: int) -> str:
    """`count` made-up words with punctuation."""
    syllables = ["ba", "do", "ki", "lu", "men", "ra", "so", "ti", "é", "日"]
    text = [("".join(rng.choices(syllables, k=rng.randint(1, 3)))) + rng.choice(["", "", "", ",", "."]) for _ in range(count)]
    return " ".join(text)


def make_inputs(work: Path) -> None:
    """Texts, records and configurations, the same every time."""
    rng = random.Random(7)
    (work / "text.txt").write_text("\n\n".join(words(rng, 60) for _ in range(60)))
    (work / "docs.jsonl").write_text("".join(json.dumps({"text": words(rng, rng.randint(5, 80))}) + "\n" for _ in range(300)))
    alpaca = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}, {i}."} for i in range(60)]
    (work / "alpaca.json").write_text(json.dumps(alpaca))
    piqa = work / "tasks/piqa"
    piqa.mkdir(parents=True)
    rows = [{"goal": words(rng, 5), "sol1": words(rng, 4), "sol2": words(rng, 4), "label": i % 2} for i in range(20)]
    for split in ["train", "validation"]:
        (piqa / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    develop = (ROOT / "configs/develop.toml").read_text()
    (work / "develop.toml").write_text(develop.replace("num_key_value_heads = 2", "num_key_value_heads = 2\nmax_position_embeddings = 256"))
    text = re.sub(r"\[data\].*?\n\n", '[data]\ntrain = ["text.txt"]\ntokenizer = "train"\nval_fraction = 0.1\n\n', develop, flags=re.S)
    (work / "text.toml").write_text(text)
    for name in ["text.txt", "docs.jsonl"]:
        os.utime(work / name, (1e9, 1e9))  # preparation records the time of its inputs
    (work / "lora.toml").write_text(SFT + "[lora]\nrank = 4\ndropout = 0.1\n")
    (work / "full.toml").write_text(SFT)


def commands() -> list[tuple[str, list[str]]]:
    """Name and words of each command, in order: later ones read what earlier ones wrote."""
    shards = ["--set", 'data.train=["prepared", "prepared2"]', "--set", "data.weights=[0.7, 0.3]", "--set", "data.document_mask=true"]
    moments = ["--set", "optimizer.moments=bf16", "--set", "schedule.kind=wsd", "--set", "schedule.decay_steps=5", "--set", "model.tie_word_embeddings=true"]
    lines = [
        ("pretrain stories", "pretrain --config develop.toml --out stories"),
        ("pretrain text", "pretrain --config text.toml --out text --set log.sequences=true --set log.layers_every=5"),
        ("prepare", "data prepare --input docs.jsonl --tokenizer text/checkpoints/step-00000020/tokenizer.json --out prepared --val-fraction 0.1"),
        ("prepare with dedup", "data prepare --input docs.jsonl text.txt --tokenizer text/checkpoints/step-00000020/tokenizer.json --out prepared2 --dedup --eot before"),
        ("verify", "data verify prepared"),
        ("plan", "plan --config develop.toml"),
        ("print-config 1.7b", f"pretrain --config {ROOT}/configs/llama-1.7b.toml --print-config"),
        ("sft lora", "sft --config lora.toml --ckpt stories --data alpaca.json --out lora"),
        ("sft full", "sft --config full.toml --ckpt stories --data alpaca.json --out full"),
        ("show-data", "sft --config full.toml --ckpt stories --data alpaca.json --show-data 2"),
        ("export merged", "export --ckpt lora --merge-lora --out merged"),
        ("export bf16", "export --ckpt stories --out exported --dtype bf16"),
        ("eval data", "eval --ckpt stories --data docs.jsonl --output eval.json"),
        ("eval tasks", "eval --ckpt stories --tasks piqa --data-dir tasks --num-fewshot 2 --output piqa.json --log-samples"),
        ("sample greedy", "sample --ckpt stories --prompt One --greedy --seed 1 --max-tokens 40 --json --logprobs 2"),
        ("sample drawn", "sample --ckpt merged --prompt One --seed 3 --num-samples 3 --max-tokens 30 --json"),
        ("why", "why stories --step 7"),
        ("verify steps", "resume --ckpt stories/checkpoints/step-00000010 --verify 5"),
        ("extend", "resume --ckpt stories --set train.steps=26"),
        ("fork", "fork text --branch a:optimizer.lr=2e-3 --branch b:reset=moments --steps 3 --out forks"),
    ]
    made = [(name, line.split()) for name, line in lines]
    by_name = dict(made)
    mixture = ["pretrain", "--config", "text.toml", "--out", "mixture", *shards, "--set", "data.tokenizer=prepared/tokenizer.json"]
    wsd = ["pretrain", "--config", "develop.toml", "--out", "wsd", *moments]
    at = list(by_name).index("verify") + 1
    return [*made[:at], ("pretrain mixture", mixture), ("pretrain wsd", wsd), *made[at:]]


def killed_and_resumed(program: Path, work: Path) -> None:
    """A run that dies after its twelfth step and is resumed."""
    command = [program, "pretrain", "--config", "develop.toml", "--out", "killed", "--quiet", "--threads", "2"]
    process = subprocess.Popen(command, cwd=work, stderr=subprocess.DEVNULL)
    metrics = work / "killed/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step":12,' in metrics.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([program, "resume", "--ckpt", "killed", "--quiet", "--threads", "2"], cwd=work, check=True)


def stable(value: object, work: str) -> object:
    """A JSON value without what changes from run to run."""
    if isinstance(value, dict):
        return {key: stable(item, work) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [stable(item, work) for item in value]
    return value.replace(work, "WORK") if isinstance(value, str) else value


def content(path: Path, work: Path) -> bytes:
    """What counts of a file."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        return json.dumps([stable(json.loads(line), str(work)) for line in data.splitlines()]).encode()
    if path.name == "manifest.json":
        # The trainer state names the machine and the build, so that its hash is not the same twice.
        kept = [file for file in json.loads(data)["files"] if file["name"] not in ("trainer_state.json", "adapter_config.json")]
        return json.dumps(kept).encode()
    if path.suffix == ".json":
        return json.dumps(stable(json.loads(data), str(work))).encode()
    return data.replace(str(work).encode(), b"WORK")


def observe(program: Path) -> dict[str, str]:
    """The hash of every output and every file, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch).resolve()
        make_inputs(work)
        hashes = {}
        for name, command in commands():
            done = subprocess.run([program, *command, "--quiet", "--threads", "2"], cwd=work, capture_output=True)
            if done.returncode:
                sys.exit(f"{name}: exit {done.returncode}\n{done.stderr.decode()}")
            hashes[f"{name}: stdout"] = digest(re.sub(rb"\d[\d,.]* (s|ms|min|h|d|days?|GB|tokens/s)\b", b"", done.stdout.replace(scratch.encode(), b"WORK")))
        killed_and_resumed(program, work)
        for path in sorted(path for path in work.rglob("*") if path.is_file()):
            if path.name not in SKIPPED and not path.name.startswith("events.out."):
                if path.name == "events.jsonl" and path.parent.name == "killed":
                    continue  # where exactly it was killed is a matter of time
                if "replaced" in path.parts:
                    continue
                hashes[str(path.relative_to(work))] = digest(content(path, work))
        return hashes


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def compare(expected: dict[str, str], found: dict[str, str]) -> int:
    """Prints what differs; the exit code."""
    differing = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    for name in differing:
        print("differs" if name in expected and name in found else "gone" if name in expected else "new", name)
    print(f"{len(differing)} of {len(expected)} outputs differ")
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path)
    what.add_argument("--check", type=Path)
    what.add_argument("--against", type=Path)
    args = parser.parse_args()
    found = observe(args.program.resolve())
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} outputs recorded")
        return 0
    expected = json.loads(args.check.read_text()) if args.check else observe(args.against.resolve())
    return compare(expected, found)


if __name__ == "__main__":
    sys.exit(main())
