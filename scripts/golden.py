#!/usr/bin/env python3
"""Runs every command on small inputs and compares all that they write with another program's output, or with a record of it.

  python scripts/golden.py PROGRAM --record FILE     write the hash of every output to FILE
  python scripts/golden.py PROGRAM --check FILE      compare with that record; exit 1 and name what differs
  python scripts/golden.py PROGRAM --against OTHER   run both programs and compare
  python scripts/golden.py PROGRAM --keep DIR ...    leave the outputs in DIR, to look at what differs

A change that should not alter behaviour (a rename, a move, a faster way to the same result) leaves every hash as it was. Times, speeds,
the machine, the build and temporary paths are removed before hashing; all else counts. Of commands that must fail the exit code alone
is compared, and of --help the names of the flags, because messages may be reworded. The hashes hold for one family of processors: take
the record on the machine that checks it. It takes a quarter of a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"

# Fields that hold times, speeds or the machine. `spent` and `parts` are the times in a report.
VOLATILE = {"time", "tokens_per_second", "mfu", "data_seconds", "seconds", "stall_seconds", "before", "after", "pid", "spent", "parts"}
# Files that hold nothing but times and process numbers.
SKIPPED = {"times.jsonl", "run.lock", "prepare.lock"}
# Version and commit, as `--version` prints them.
BUILD = re.compile(r"\b\d+\.\d+\.\d+ \([0-9a-f]+(?:, modified)?\)")
# Keys that have another name since the record may have been made.
RENAMED = {"accept_change": "allow_change"}
# What records of older programs do not have, with the one value that it may have here: that of a run in one process, by default.
ADDED_KEYS = {"train.lanes": "1", "log.desync_every": "1000"}
ADDED_FIELDS = {"build": {"ranks"}}
ADDED_FLAGS = {"--ranks"}
# In what is printed: dates, durations, speeds, this machine's memory and disk, and the shares of the time.
VOLATILE_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?|^time  .*$|seconds [\d.e-]+|\d[\d,.]* (?:ms|s|min|h|d|days?|tokens/s)\b"
    r"|of [\d,.]+ [kMGT]i?B (?:here|free)",
    re.M,
)

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

# Name and arguments of each command, in order: later ones read what earlier ones wrote. `table` fills in what is in braces.
COMMANDS = """
pretrain stories      | pretrain --config develop.toml --out stories
pretrain text         | pretrain --config text.toml --out text --set log.sequences=true --set log.layers_every=5
prepare               | data prepare --input docs.jsonl --tokenizer {tokenizer} --out prepared --val-fraction 0.1
prepare dedup         | data prepare --input docs.jsonl text.txt --tokenizer {tokenizer} --out prepared2 --dedup --eot before
prepare parquet       | data prepare --input {fixtures}/sources/ok_snappy.parquet {fixtures}/sources/ok.jsonl.zst --tokenizer gpt2 --out gpt2 --eot after --val-tokens 100 --shard-tokens 300 --min-chars 8 --allow-bad
data verify           | data verify prepared
data inspect          | data inspect gpt2
inspect document      | data inspect prepared --document 12
inspect sequence      | data inspect prepared --sequence 3 --sequence-length 64 --seed 2
pretrain jsonl        | pretrain --config text.toml --out jsonl --set 'data.train=["docs.jsonl"]' --set train.steps=6 --set train.recompute=full
pretrain parquet      | pretrain --config text.toml --out parquet --set 'data.train=["parquet/*.parquet"]' --set train.steps=6 --set train.recompute=selective --set data.shuffle=false
pretrain shards       | pretrain --config text.toml --out shards {shards} --set 'data.train=["prepared"]' --set train.steps=6 --set checkpoint.log_spaced=true
pretrain npy          | pretrain --config text.toml --out npy {shards} --set 'data.train=["tokens.npy"]' --set 'data.val=["val.npy"]' --set train.steps=6 --set schedule.kind=linear
pretrain mixture      | pretrain --config text.toml --out mixture {shards} --set 'data.train=["prepared", "prepared2"]' --set 'data.weights=[0.7, 0.3]' --set data.document_mask=true
pretrain wsd          | pretrain --config develop.toml --out wsd --set optimizer.moments=bf16 --set schedule.kind=wsd --set schedule.decay_steps=5 --set model.tie_word_embeddings=true
pretrain tasks        | pretrain --config develop.toml --out tasks-run --set train.steps=6 --set 'eval.tasks=["piqa"]' --set eval.data_dir=tasks --set eval.limit=5 --set eval.every=3 --set schedule.kind=constant
plan                  | plan --config develop.toml --fit 8GB
plan 1.7b             | plan --config {configs}/llama-1.7b.toml --fit 80GB
print-config 1.7b     | pretrain --config {configs}/llama-1.7b.toml --print-config
print-config 978m     | pretrain --config {configs}/llama-978m.toml --print-config
print-config 124m     | pretrain --config {configs}/llama-124m.toml --print-config
print-config start    | pretrain --config {configs}/quickstart.toml --print-config
sft lora              | sft --config lora.toml --ckpt stories --data alpaca.json --out lora
sft full              | sft --config full.toml --ckpt stories --data alpaca.json --out full
sft chats padded      | sft --config full.toml --ckpt stories --data chats.jsonl --out chats --set sft.packing=false --set sft.template=chatml --set sft.train_on=last_answer
show-data             | sft --config full.toml --ckpt stories --data alpaca.json --show-data 2
extend lora           | resume --ckpt lora --set train.steps=8 --set schedule.decay_steps=9
export merged         | export --ckpt lora --merge-lora --out merged
export bf16           | export --ckpt stories --out exported --dtype bf16
export f16 trimmed    | export --ckpt text --out trimmed --dtype f16 --trim-vocab
pretrain from         | pretrain --config develop.toml --init-from exported --out continued --set train.steps=4
eval data             | eval --ckpt stories --data docs.jsonl --output eval.json
eval shards           | eval --ckpt text --data prepared --output eval-shards.json
eval adapters         | eval --ckpt lora --data docs.jsonl --output eval-lora.json
eval tasks            | eval --ckpt stories --tasks piqa --data-dir tasks --num-fewshot 2 --output piqa.json --log-samples
eval all tasks        | eval --ckpt {fixtures}/eval/model --tasks {tasks} --data-dir {fixtures}/eval/data --output tasks.json --log-samples
eval run              | eval --run stories --tasks piqa --data-dir tasks --limit 4 --output run.json
sample greedy         | sample --ckpt stories --prompt One --greedy --seed 1 --max-tokens 40 --json --logprobs 2
sample drawn          | sample --ckpt merged --prompt One --seed 3 --num-samples 3 --max-tokens 30 --json
sample penalties      | sample --ckpt text --prompt ba --seed 5 --max-tokens 30 --top-k 20 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.2 --frequency-penalty 0.1 --presence-penalty 0.1
sample adapters       | sample --ckpt lora --prompt-file prompts.jsonl --greedy --seed 1 --max-tokens 12 --json
why                   | why stories --step 7
why sequences         | why text --step 9 --full
verify steps          | resume --ckpt stories/checkpoints/step-00000010 --verify 5
extend                | resume --ckpt stories --set train.steps=26
reset                 | resume --ckpt wsd --set train.steps=24 --reset rng,moments --skip 3
fork                  | fork text --branch a:optimizer.lr=2e-3 --branch b:reset=moments --branch c:skip=4 --steps 3 --out forks
report text           | report stories text --text
report page           | report stories lora tasks-run --out report.html
"""

# Commands that must fail: the exit code alone is compared.
REFUSED = """
no arguments          |
no such flag          | pretrain --config develop.toml --outt x
no such key           | pretrain --config develop.toml --out refused --set train.stepz=3
wrong value           | pretrain --config develop.toml --out refused --set optimizer.lr=-1
no such file          | pretrain --config missing.toml --out refused
no data               | pretrain --config text.toml --out refused --set 'data.train=["missing.txt"]'
run exists            | pretrain --config develop.toml --out stories
nothing to resume     | resume --ckpt missing
damaged checkpoint    | resume --ckpt damaged/checkpoints/step-00000020
damaged shards        | data verify damaged-shards
no such task          | eval --ckpt stories --tasks nonsense --data-dir tasks
no such model         | sample --ckpt missing --prompt One
export exists         | export --ckpt stories --out exported
no such step          | why stories --step 4000
no such run           | report missing --text
wrong records         | sft --config full.toml --ckpt stories --data docs.jsonl --out refused
wrong branch          | fork text --branch a:nonsense=2 --steps 3 --out refused
changed data          | resume --ckpt text --set train.steps=30 --set 'data.train=["other.txt"]'
other device          | sample --ckpt stories --prompt One --device cuda:9
"""

HELP = ["", "pretrain", "resume", "sft", "eval", "sample", "data prepare", "data verify", "data inspect", "fork", "why", "plan", "report", "export", "doctor"]


def words(rng: random.Random, count: int) -> str:
    """`count` made-up words with punctuation."""
    syllables = ["ba", "do", "ki", "lu", "men", "ra", "so", "ti", "é", "日"]
    text = [("".join(rng.choices(syllables, k=rng.randint(1, 3)))) + rng.choice(["", "", "", ",", "."]) for _ in range(count)]
    return " ".join(text)


def lines_of_json(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def npy(tokens: list[int]) -> bytes:
    """Token ids as numpy saves an array of 16-bit unsigned integers."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({len(tokens)},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack(f"<{len(tokens)}H", *tokens)


def make_inputs(work: Path) -> None:
    """Texts, records and configurations, the same every time."""
    rng = random.Random(7)
    (work / "text.txt").write_text("\n\n".join(words(rng, 60) for _ in range(60)))
    (work / "docs.jsonl").write_text(lines_of_json([{"text": words(rng, rng.randint(5, 80))} for _ in range(300)]))
    (work / "alpaca.json").write_text(json.dumps([{"instruction": f"Say {i}", "input": "", "output": f"It is {i}, {i}."} for i in range(60)]))
    piqa = work / "tasks/piqa"
    piqa.mkdir(parents=True)
    rows = [{"goal": words(rng, 5), "sol1": words(rng, 4), "sol2": words(rng, 4), "label": i % 2} for i in range(20)]
    for split in ["train", "validation"]:
        (piqa / f"{split}.jsonl").write_text(lines_of_json(rows))
    turns = [("user", 2), ("assistant", 3), ("user", 1), ("assistant", 3)]
    chats = [{"messages": [{"role": role, "content": words(rng, count)} for role, count in turns[: 2 + 2 * (i % 2)]]} for i in range(40)]
    (work / "chats.jsonl").write_text(lines_of_json(chats))
    (work / "prompts.jsonl").write_text(lines_of_json(["Say 1", {"prompt": "Say 2"}]))
    (work / "tokens.npy").write_bytes(npy([rng.randrange(300) for _ in range(6000)]))
    (work / "val.npy").write_bytes(npy([rng.randrange(300) for _ in range(700)]))
    (work / "parquet").mkdir()
    for name in ["ok_snappy", "ok_zstd_dictionary", "ok_delta"]:
        shutil.copy(FIXTURES / f"sources/{name}.parquet", work / "parquet")
    for path in [path for path in work.rglob("*") if path.is_file()]:
        os.utime(path, (1e9, 1e9))  # preparation records the time of its inputs
    write_configurations(work)


def write_configurations(work: Path) -> None:
    develop = (ROOT / "configs/develop.toml").read_text()
    (work / "develop.toml").write_text(develop.replace("num_key_value_heads = 2", "num_key_value_heads = 2\nmax_position_embeddings = 256"))
    text = re.sub(r"\[data\].*?\n\n", '[data]\ntrain = ["text.txt"]\ntokenizer = "train"\nval_fraction = 0.1\n\n', develop, flags=re.S)
    (work / "text.toml").write_text(text)
    (work / "lora.toml").write_text(SFT + "[lora]\nrank = 4\ndropout = 0.1\n")
    (work / "full.toml").write_text(SFT)


def table(text: str) -> list[tuple[str, list[str]]]:
    """Name and arguments of each line of a table above."""
    expected = json.loads((FIXTURES / "eval/expected.json").read_text())
    values = {
        "tokenizer": "text/checkpoints/step-00000020/tokenizer.json",
        "shards": "--set data.tokenizer=prepared/tokenizer.json",
        "fixtures": FIXTURES,
        "configs": ROOT / "configs",
        "tasks": ",".join(task["task"] for task in expected if task["shots"] == 0),
    }
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    rows = [line.split("|") for line in text.strip().splitlines()]
    return [(name.strip(), shlex.split(arguments)) for name, arguments in rows]


def kill_and_resume(program: Path, work: Path) -> None:
    """A run that is killed after its twelfth step and resumed. It goes on long enough that only checkpoints of the resumed part are left."""
    command = [program, "pretrain", "--config", "develop.toml", "--out", "killed", "--quiet", "--threads", "2"]
    command += ["--set", "train.steps=60", "--set", "checkpoint.background=false"]
    process = subprocess.Popen(command, cwd=work, stderr=subprocess.DEVNULL)
    metrics = work / "killed/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step":12,' in metrics.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([program, "resume", "--ckpt", "killed", "--quiet", "--threads", "2"], cwd=work, check=True)


def damage(work: Path) -> None:
    """Copies of a run and of shards in which a byte is wrong, and another text."""
    shutil.copytree(work / "stories", work / "damaged")
    shutil.copytree(work / "prepared", work / "damaged-shards")
    for path in [work / "damaged/checkpoints/step-00000020/model.safetensors", *sorted((work / "damaged-shards").glob("train*"))[:1]]:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    (work / "other.txt").write_text("\n\n".join(words(random.Random(8), 60) for _ in range(60)))


def stable(value: object, work: str) -> object:
    """A JSON value without what changes from run to run."""
    if isinstance(value, dict):
        kept = {key for key, item in value.items() if key not in VOLATILE and (key, item) not in ADDED_KEYS.items()}
        return {key: stable(shortened(key, item), work) for key, item in value.items() if key in kept}
    if isinstance(value, list):
        return [stable(item, work) for item in value]
    if isinstance(value, str):
        return without_added(BUILD.sub("BUILD", value).replace(work, "WORK").replace(str(ROOT), "ROOT"))
    return value


def without_added(text: str) -> str:
    """A text without the lines of a configuration that records of older programs do not have."""
    for key, value in ADDED_KEYS.items():
        name = key.split(".")[1]
        text = re.sub(rf"^{name} = {value}\n", "", text, flags=re.M)
    return text


def shortened(key: str, item: object) -> object:
    """Of the machine and the build only which fields there are, and of a checkpoint's logs, which hold times, only the number of lines."""
    if key == "build" and isinstance(item, dict):
        return sorted(item.keys() - ADDED_FIELDS[key])
    if key == "logs" and isinstance(item, dict):
        return {name: log["lines"] for name, log in item.items()}
    return item


def stable_text(data: bytes, work: Path) -> bytes:
    """Printed text without what changes from run to run."""
    text = data.decode(errors="replace").replace(str(work), "WORK").replace(str(ROOT), "ROOT")
    return without_added(VOLATILE_TEXT.sub("", BUILD.sub("BUILD", text))).encode()


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
    if path.suffix == ".html":
        # The page itself may be reworded; what it shows may not change.
        page = re.search(rb'<script type="application/json" id="data">(.*?)</script>', data, re.S)
        return stable_text(json.dumps(stable(json.loads(page[1]), str(work))).encode(), work)
    data = data.replace(str(work).encode(), b"WORK").replace(str(ROOT).encode(), b"ROOT")
    return without_added(data.decode()).encode() if path.suffix == ".toml" else data


def counts(path: Path) -> bool:
    """Whether a file is hashed at all."""
    if path.name in SKIPPED or path.name.startswith("events.out.") or "replaced" in path.parts:
        return False
    # Where exactly a run was killed is a matter of time.
    return not (path.name == "events.jsonl" and path.parent.name == "killed")


def observe(program: Path, keep: Path | None) -> dict[str, str]:
    """The hash of every output and every file, by name."""
    with contextlib.ExitStack() as stack:
        scratch = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.mkdir(parents=True, exist_ok=True)
        work = scratch.resolve()
        make_inputs(work)
        hashes = {}
        for name, command in table(COMMANDS):
            done = subprocess.run([program, *command, "--quiet", "--threads", "2"], cwd=work, capture_output=True)
            if done.returncode:
                sys.exit(f"{name}: exit {done.returncode}\n{done.stderr.decode()}")
            if keep:
                (work / f"{name}.out").write_bytes(stable_text(done.stdout, work))
            hashes[f"{name}: stdout"] = digest(stable_text(done.stdout, work))
        kill_and_resume(program, work)
        for path in sorted(path for path in work.rglob("*") if path.is_file() and path.suffix != ".out"):
            if counts(path):
                hashes[str(path.relative_to(work))] = digest(content(path, work))
        return hashes | exit_codes(program, work) | flags(program)


def exit_codes(program: Path, work: Path) -> dict[str, str]:
    """How commands fail that must fail."""
    damage(work)
    codes = {}
    for name, command in table(REFUSED):
        done = subprocess.run([program, *command], cwd=work, capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            sys.exit(f"{name}: this command must fail, and did not")
        codes[f"refused: {name}"] = f"exit {done.returncode}"
    return codes


def flags(program: Path) -> dict[str, str]:
    """The names of every command's flags."""
    found = {}
    for command in HELP:
        done = subprocess.run([program, *command.split(), "-h"], capture_output=True, check=True)
        names = re.findall(r"^ +(?:-\w, )?(--[a-z-]+)(?: [<\[][^\n]*?[>\]])?", done.stdout.decode(), re.M)
        found[f"flags: {command or 'llama-lite'}"] = " ".join(sorted(set(names) - ADDED_FLAGS))
    return found


def digest(data: bytes) -> str:
    for old, new in RENAMED.items():
        data = data.replace(old.encode(), new.encode())
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
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty or new directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path)
    what.add_argument("--check", type=Path)
    what.add_argument("--against", type=Path)
    args = parser.parse_args()
    found = observe(args.program.resolve(), args.keep)
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} outputs recorded")
        return 0
    expected = json.loads(args.check.read_text()) if args.check else observe(args.against.resolve(), None)
    return compare(expected, found)


if __name__ == "__main__":
    sys.exit(main())
