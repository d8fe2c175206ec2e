#!/usr/bin/env python3
"""Proves that the number of ranks does not change a bit of what a run writes.

  python3 scripts/ranks_equal.py PROGRAM                on 1, 2, 4 and 8 ranks; eight minutes on two cores
  python3 scripts/ranks_equal.py PROGRAM --quick        four of the cases on 1 and 4 ranks; a quarter of a minute
  python3 scripts/ranks_equal.py PROGRAM --only TEXT    the cases whose name contains TEXT
  python3 scripts/ranks_equal.py PROGRAM --keep DIR     leave the runs in DIR, to look at what differs

Every case is a list of commands that make one run directory: pretraining with each kind of data and each option of the model, the
optimizer and the loop that could depend on the order of sums or on who computes what, fine-tuning, resumes, refused updates and
rollbacks, evaluation. It is done on one rank, and then on others: by mpiexec, once by `--ranks`, and with another number in each
command. Every file of the directory must have the same bytes, but for the fields that ALLOWED in ranks_shared.py lists with a reason;
exit codes and what is printed on stdout must be equal, too. It needs mpiexec (scripts/mpi.sh). Exits 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranks_shared import PROCESS_FILES, ROOT, command_on_ranks, differences, find_mpiexec

# Saves in the background may leave one out that is due while another is written: which ones is a matter of time.
LANES = "--set train.lanes=8 --set train.tokens_per_step=1024 --set checkpoint.background=false"
PRETRAIN = f"pretrain --config ../inputs/develop.toml --out run {LANES}"
TEXT = f"pretrain --config ../inputs/text.toml --out run {LANES}"
SHARDS = f"{TEXT} --set data.tokenizer=../inputs/prepared/tokenizer.json --set 'data.train=[\"../inputs/prepared\"]'"
MIXTURE = SHARDS.replace('"../inputs/prepared"', '"../inputs/prepared", "../inputs/prepared2"')
SFT = "sft --ckpt ../inputs/base/run --data ../inputs/alpaca.json --out run --config ../inputs"
TASKS = "--set 'eval.tasks=[\"piqa\"]' --set eval.data_dir=../inputs/tasks --set eval.limit=9"

# Name | commands, separated by semicolons. A star marks the cases of --quick.
CASES = f"""
* develop             | {PRETRAIN}
  one query group     | {PRETRAIN} --set model.num_key_value_heads=1 --set model.tie_word_embeddings=true
  no groups, wide     | {PRETRAIN} --set model.num_key_value_heads=4 --set model.hidden_size=48 --set model.intermediate_size=100 --set model.num_hidden_layers=3
  document mask       | {PRETRAIN} --set data.document_mask=true --set log.sequences=true
  bf16 moments        | {PRETRAIN} --set optimizer.moments=bf16 --set log.layers_every=5 --set log.desync_every=3
  recompute full      | {PRETRAIN} --set train.recompute=full --set log.layers_every=1 --set train.steps=6
  recompute selective | {PRETRAIN} --set train.recompute=selective --set train.steps=6 --set log.tensorboard=true
  bf16 products       | {PRETRAIN} --set train.precision=bf16 --set train.steps=6
  one micro-batch     | {PRETRAIN} --set train.micro_batch_size=1 --set train.steps=6 --set log.layers_every=2 --set log.sequences=true
  large micro-batch   | {PRETRAIN} --set train.micro_batch_size=16 --set train.steps=6 --set log.layers_every=2
  no clipping, wsd    | {PRETRAIN} --set optimizer.grad_clip=0 --set schedule.kind=wsd --set schedule.decay_steps=5
  tasks and samples   | {PRETRAIN} {TASKS} --set train.steps=6 --set eval.every=3 --set 'sample.prompts=["One day", "Once", "Tom", "a", "The"]' --set sample.every=2
* all at once         | {PRETRAIN} {TASKS} --set model.tie_word_embeddings=true --set data.document_mask=true --set optimizer.moments=bf16 --set log.layers_every=5 --set log.sequences=true --set log.desync_every=4 --set checkpoint.log_spaced=true --set train.recompute=full --set train.steps=12 --set 'sample.prompts=["One day", "Once", "Tom"]'
  background saves    | {PRETRAIN} --set checkpoint.background=true --set checkpoint.every=30 --set train.steps=60 --set eval.every=30
  many saves          | {PRETRAIN} --set checkpoint.every=2 --set checkpoint.keep_every=8 --set checkpoint.log_spaced=true
  raw text            | {TEXT} --set log.sequences=true
  text not shuffled   | {TEXT} --set data.shuffle=false --set train.steps=6
  shards              | {SHARDS} --set train.steps=6
  mixture             | {MIXTURE} --set 'data.weights=[0.7, 0.3]' --set data.document_mask=true --set train.steps=6 --set log.sequences=true
* fine-tuning, LoRA   | {SFT}/lora.toml
  fine-tuning, full   | {SFT}/full.toml
  fine-tuning, padded | {SFT}/full.toml --set sft.packing=false --set sft.train_on=all
  long LoRA, bf16     | {SFT}/lora.toml --set optimizer.moments=bf16 --set lora.rslora=true --set log.layers_every=2
  pretrain from model | {PRETRAIN} --init-from ../inputs/exported --set train.steps=4
* resumed             | {PRETRAIN} --set train.steps=4 --set schedule.decay_steps=16 --set checkpoint.every=3 ; resume --ckpt run --set train.steps=8 ; resume --ckpt run --set train.steps=12 ; resume --ckpt run --set train.steps=16
  resumed, bf16       | {PRETRAIN} --set optimizer.moments=bf16 --set train.steps=4 --set schedule.decay_steps=12 --set log.layers_every=3 --set log.sequences=true ; resume --ckpt run --set train.steps=8 --skip 3 ; resume --ckpt run --set train.steps=10 --reset moments ; resume --ckpt run --set train.steps=12 --reset rng,data
  resumed LoRA        | {SFT}/lora.toml --set schedule.decay_steps=12 ; resume --ckpt run --set train.steps=8 ; resume --ckpt run --set train.steps=10
  rollbacks, given up | {PRETRAIN} --set optimizer.lr=1 --set schedule.warmup_steps=0 --set guard.spike=skip --set guard.rollbacks=5 --set checkpoint.every=1 --set checkpoint.keep=30
  rollbacks           | {PRETRAIN} --set train.steps=8 --set schedule.decay_steps=100 --set checkpoint.every=2 --set checkpoint.keep=20 ; resume --ckpt run --set train.steps=30 --set optimizer.lr=0.5 --set guard.spike=skip --set guard.rollbacks=9
  not finite          | {PRETRAIN} --init-from ../inputs/huge --set train.steps=8 --set sample.every=0
  eval                | eval --ckpt ../inputs/base/run --data ../inputs/docs.jsonl --tasks piqa --data-dir ../inputs/tasks --output run/eval.json --log-samples
  eval of a run       | eval --run ../inputs/base/run --tasks piqa --data-dir ../inputs/tasks --limit 7 --num-fewshot 2 --output run/eval.json
  verify              | resume --ckpt ../inputs/base/run/checkpoints/step-00000010 --verify 6
"""

SFT_CONFIG = """
[train]
sequence_length = 96
micro_batch_size = 2
tokens_per_step = 1536
lanes = 8
steps = 6
[optimizer]
lr = 1e-2
[checkpoint]
every = 3
background = false
[eval]
every = 3
[sft]
template = "zephyr"
judged_prompts = 5
judged_tokens = 8
neftune_alpha = 2.0
max_truncated = 0.5
"""

# Exit codes that a case may end with: 76 is a run that was given up.
ENDS = {0, 76}


def words(rng: random.Random, count: int) -> str:
    syllables = ["ba", "do", "ki", "lu", "men", "ra", "so", "ti", "é", "日"]
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) + rng.choice(["", "", ",", "."]) for _ in range(count))


def lines_of_json(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_inputs(program: Path, inputs: Path) -> None:
    """Texts, shards, records, tasks, configurations, and a model to fine-tune."""
    rng = random.Random(7)
    (inputs / "base").mkdir(parents=True)
    (inputs / "text.txt").write_text("\n\n".join(words(rng, 60) for _ in range(120)))
    (inputs / "docs.jsonl").write_text(lines_of_json([{"text": words(rng, rng.randint(5, 80))} for _ in range(300)]))
    records = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}, {i}."} for i in range(200)]
    (inputs / "alpaca.json").write_text(json.dumps(records))
    (inputs / "tasks/piqa").mkdir(parents=True)
    rows = [{"goal": words(rng, 5), "sol1": words(rng, 4), "sol2": words(rng, 4), "label": i % 2} for i in range(20)]
    for split in ["train", "validation"]:
        (inputs / f"tasks/piqa/{split}.jsonl").write_text(lines_of_json(rows))
    develop = (ROOT / "configs/develop.toml").read_text()
    (inputs / "develop.toml").write_text(develop)
    own_text = '[data]\ntrain = ["../inputs/text.txt"]\ntokenizer = "train"\nval_fraction = 0.1\n\n'
    (inputs / "text.toml").write_text(re.sub(r"\[data\].*?\n\n", own_text, develop, flags=re.S))
    (inputs / "lora.toml").write_text(SFT_CONFIG + "[lora]\nrank = 4\ndropout = 0.1\n")
    (inputs / "full.toml").write_text(SFT_CONFIG)
    base = inputs / "base/run"
    # Long enough for fine-tuning's rows.
    run(program, inputs / "base", f"{PRETRAIN} --set model.max_position_embeddings=256".replace("../inputs", ".."))
    tokenizer = base / "checkpoints/step-00000020/tokenizer.json"
    for name, options in [("prepared", "--val-fraction 0.1"), ("prepared2", "--dedup --eot before")]:
        run(program, inputs, f"data prepare --input docs.jsonl text.txt --tokenizer {tokenizer} --out {name} {options}")
    run(program, inputs, "export --ckpt base/run --out exported")
    make_huge_weights(inputs / "exported", inputs / "huge")


def make_huge_weights(model: Path, copy: Path) -> None:
    """A copy of a model whose gradients are not finite: the first weights of its head are the largest that f32 has."""
    shutil.copytree(model, copy)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    begin = 8 + length + json.loads(data[8 : 8 + length])["lm_head.weight"]["data_offsets"][0]
    data[begin : begin + 4000] = struct.pack("<f", 3e38) * 1000
    path.write_bytes(data)


def run(program: Path, cwd: Path, command: str) -> None:
    done = subprocess.run([program, *shlex.split(command), "--quiet", "--threads", "2"], cwd=cwd, capture_output=True)
    if done.returncode:
        sys.exit(f"{command}: exit {done.returncode}\n{done.stderr.decode()}")


def commands_of(text: str) -> list[list[str]]:
    return [shlex.split(command) for command in text.split(" ; ")]


def do_case(program: Path, commands: list[list[str]], scratch: Path, ranks: list[int], by: str) -> tuple[list[int | str], list[str]]:
    """Makes a run, with ranks[i] ranks for the command number i, and moves it to `scratch`; exit codes and standard output."""
    kept, scratch = scratch, scratch.parent / "current"  # paths in the files of a run are the same for all
    (scratch / "run").mkdir(parents=True) if commands[0][0] == "eval" else scratch.mkdir(parents=True)
    codes, outputs = [], []
    for i, arguments in enumerate(commands):
        command = command_on_ranks(program, arguments, ranks[i % len(ranks)], by)
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=300)
        except subprocess.TimeoutExpired:
            codes.append("timeout")
            break
        codes.append(done.returncode)
        outputs.append(done.stdout.decode())
        with open(scratch / "stderr", "ab") as log:
            log.write(done.stderr)
        if done.returncode not in ENDS:
            break
    scratch.rename(kept)
    return codes, outputs


def variants(commands: list[list[str]], quick: bool) -> list[tuple[str, list[int], str]]:
    """What a case is done on beside one rank: a label, the ranks of each command, and the launcher."""
    if quick:
        return [("1>4>2>4", [1, 4, 2, 4], "mpiexec")] if len(commands) > 1 else [("4", [4], "mpiexec")]
    several = [("2", [2], "mpiexec"), ("4", [4], "mpiexec"), ("8", [8], "mpiexec"), ("--ranks 4", [4], "--ranks")]
    return several if len(commands) == 1 else several + [("1>4>2>8", [1, 4, 2, 8], "mpiexec"), ("8>1>4>2", [8, 1, 4, 2], "--ranks")]


def selected(quick: bool, only: str) -> list[tuple[str, list[list[str]]]]:
    rows = [row.split("|", 1) for row in CASES.strip("\n").splitlines()]
    rows = [row for row in rows if not quick or row[0].startswith("*")]
    named = [(name.lstrip("* ").strip(), commands_of(text)) for name, text in rows]
    return [(name, commands) for name, commands in named if only in name]


def compare_case(program: Path, name: str, commands: list[list[str]], work: Path, quick: bool) -> list[str]:
    """Prints the row of a case; what differs."""
    started = time.monotonic()
    place = work / re.sub(r"\W+", "-", name)
    place.mkdir()
    (place / "inputs").symlink_to(work / "inputs")
    codes, outputs = do_case(program, commands, place / "one", [1], "")
    if not set(codes) <= ENDS:
        print(f"{name:<20} one rank: exit {codes}: {(place / 'one/stderr').read_text()[-300:]}", flush=True)
        return [f"{name}: one rank ended with {codes}"]
    found, cells = [], []
    for label, ranks, by in variants(commands, quick):
        scratch = place / f"{by.strip('-')}-{re.sub(r'[^0-9]+', '-', label).strip('-')}"
        other_codes, other_outputs = do_case(program, commands, scratch, ranks, by)
        differing = [f"exit codes {codes} and {other_codes}"] if codes != other_codes else []
        differing += [f"stdout: {outputs} and {other_outputs}"] if outputs != other_outputs else []
        differing += ranks_not_told(scratch / "run", ranks, len(commands)) if commands[0][0] != "eval" else []
        if codes == other_codes and (place / "one/run").is_dir():
            differing += differences(place / "one/run", scratch / "run")
        cells.append(f"{label}: {'DIFFERS' if differing else 'equal'}")
        found += [f"{name}, {label}: {line}" for line in differing]
    files = sum(path.is_file() for path in (place / "one/run").rglob("*"))
    print(f"{name:<20} {files:>3} files, exit {codes}  {'  '.join(cells)}  ({time.monotonic() - started:.0f} s)", flush=True)
    return found


def ranks_not_told(run: Path, ranks: list[int], commands: int) -> list[str]:
    """What is wrong with the events about ranks. Without them, runs may be equal because each was made by one process."""
    if not (run / "events.jsonl").exists():
        return []
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    told = [event["ranks"] for event in events if event["kind"] == "ranks"]
    expected = [number for number in (ranks[i % len(ranks)] for i in range(commands)) if number > 1]
    return [] if told == expected else [f"events tell of {told} ranks, not of {expected}"]


def unseen_changes(run: Path, copy: Path) -> list[str]:
    """Changes the last letter or digit of every file of a run, one at a time: those files in which nobody would notice."""
    shutil.copytree(run, copy)
    unseen = []
    for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.name not in PROCESS_FILES):
        data = path.read_bytes()
        # Clocks stand first or in the middle of a line; its end counts. In a manifest it is a checksum that follows from others.
        at = data.rindex(b'"name"') - 1 if path.name == "manifest.json" else data.rindex(b"}") if path.suffix == ".jsonl" else len(data) - 9
        path.write_bytes(data[:at] + b', "planted": 1' + data[at:] if path.suffix == ".jsonl" else data[:at] + b"7" + data[at:])
        with contextlib.suppress(ValueError):  # no JSON any more
            if not differences(run, copy):
                unseen.append(str(path.relative_to(copy)))
        path.write_bytes(data)
    return unseen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty or new directory")
    args = parser.parse_args()
    find_mpiexec()
    with contextlib.ExitStack() as stack:
        work = (args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        make_inputs(args.program.resolve(), work / "inputs")
        cases = selected(args.quick, args.only)
        unseen = unseen_changes(work / "inputs/base/run", work / "planted")
        found = [f"a change planted into {name} is not seen: the comparison is broken" for name in unseen]
        for name, commands in cases:
            found += compare_case(args.program.resolve(), name, commands, work, args.quick)
    for line in found:
        print(f"differs: {line}")
    print(f"{len(cases)} cases, {len(found)} differences")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
