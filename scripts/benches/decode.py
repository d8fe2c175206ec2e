"""`bench.py decode`: generation at batch 1 on the CPU, llama-lite beside transformers' `generate` and the memory's speed.

A token reads every weight once, the embedding's rows excepted: its bytes, in f32 or in bf16, are set against the copy bandwidth (a copy's
bytes are counted twice, being read and written), which is measured in each round as well: other programs on the machine take their share
of both. Both sides begin with one random checkpoint, take turns, and in f32 must write the same greedy tokens. In bf16 they round
differently (transformers rounds every activation), and the tokens that agree from the start on are told. The medians of the rounds count.
The prompt's speed is that of a prompt of 512 tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from benches.contender import copy_bandwidth
from benches.shared import SHAPES, Failed, machine, torch_side, write_json
from pytorch_llama import END_OF_TEXT

TOKENS = 64


def ours(binary: Path, model: Path, prompt: str, threads: int, tokens: int, precision: str) -> tuple[list[int], float, float]:
    """(greedy tokens, seconds to the first one, tokens per second after it)"""
    command = [str(binary), "sample", "--ckpt", str(model), "--prompt", prompt, "--max-tokens", str(tokens)]
    command += ["--greedy", "--json", "--threads", str(threads), "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"([\d.]+) tokens/s, first after ([\d.]+) (ms|s)", done.stderr)
    if not found:
        raise Failed(f"no speed in {done.stderr!r}")
    first = float(found[2]) * (1e-3 if found[3] == "ms" else 1)
    return json.loads(done.stdout)["token_ids"], first, float(found[1])


def theirs(model, prompt: torch.Tensor, tokens: int) -> tuple[list[int], float, float]:
    """The same of transformers."""
    _, first = generate(model, prompt, 1)
    out, whole = generate(model, prompt, tokens)
    return out.tolist(), first, (tokens - 1) / (whole - first)


def generate(model, prompt: torch.Tensor, n: int) -> tuple[torch.Tensor, float]:
    """`n` greedy tokens, and the seconds they took."""
    begun = time.perf_counter()
    # llama-lite writes no id that the tokenizer does not know; the case's tokenizer knows 256 bytes and the end of text.
    unknown = list(range(END_OF_TEXT + 1, model.config.vocab_size))
    out = model.generate(prompt, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0, suppress_tokens=unknown)
    return out[0, prompt.shape[1] :], time.perf_counter() - begun


def case(shape: str, threads: int, precision: str, rounds: int, binary: Path) -> dict:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as directory:
        work = Path(directory)
        spec = {"model": SHAPES[shape], "sequence_length": 1024, "seed": 1, "data_tokens": 1 << 12}
        (work / "case.json").write_text(json.dumps(spec))
        torch_side("prepare", "--dir", work)
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype={"f32": torch.float32, "bf16": torch.bfloat16}[precision])
        vocabulary = SHAPES[shape]["vocab_size"] * SHAPES[shape]["hidden_size"]
        read = {"f32": 4, "bf16": 2}[precision] * (sum(p.numel() for p in model.parameters()) - vocabulary)
        short = "Once upon a time"
        long = "Once upon a time " * 31
        short_ids = encode(work / "model", short)
        long_ids = encode(work / "model", long)
        result: dict = {"shape": shape, "threads": threads, "precision": precision, "bytes_per_token": read, "rounds": []}
        for _ in range(rounds):
            our_tokens, _, our_speed = ours(binary, work / "model", short, threads, TOKENS, precision)
            copy = copy_bandwidth()
            their_tokens, _, their_speed = theirs(model, short_ids, TOKENS)
            prompt_seconds = [ours(binary, work / "model", long, threads, 2, precision)[1], theirs(model, long_ids, 2)[1]]
            equal = agreeing(our_tokens, their_tokens)
            result["rounds"].append({"ours": our_speed, "theirs": their_speed, "copy": copy, "equal": equal, "prompt": prompt_seconds})
        result["tokens"] = len(our_tokens)
        result["prompt_tokens"] = long_ids.shape[1]
    for what in ("ours", "theirs", "copy"):
        result[what] = median(r[what] for r in result["rounds"])
    # Of each round, whose copy was measured beside it.
    result["of_bandwidth"] = median(r["ours"] * read / r["copy"] for r in result["rounds"])
    result["prompt_seconds"] = [median(r["prompt"][i] for r in result["rounds"]) for i in (0, 1)]
    return result


def agreeing(a: list[int], b: list[int]) -> int:
    """How many tokens agree from the start on."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def encode(directory: Path, text: str) -> torch.Tensor:
    """Ids (1, T)."""
    from tokenizers import Tokenizer

    return torch.tensor([Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids])


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--shapes", default="30m,124m", help=f"among {', '.join(SHAPES)} (default %(default)s)")
    p.add_argument("--threads", default="1,2", help="thread counts (default %(default)s)")
    p.add_argument("--precisions", default="f32,bf16", help="types of the weights (default %(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="turns of each (default %(default)s)")


def run(args: argparse.Namespace, _: argparse.ArgumentParser) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    cases = []
    print("| model | precision | threads | llama-lite tok/s | of the copy bandwidth | transformers tok/s | ratio | prompt tok/s, both |\n|---|---|---|---|---|---|---|---|")
    for shape in args.shapes.split(","):
        for threads, precision in itertools.product(map(int, args.threads.split(",")), args.precisions.split(",")):
            c = case(shape, threads, precision, args.rounds, args.binary)
            cases.append(c)
            prompt = " / ".join(f"{c['prompt_tokens'] / s:,.0f}" for s in c["prompt_seconds"])
            ratio = c["ours"] / c["theirs"]
            speeds = f"{c['ours']:.1f} | {c['of_bandwidth']:.0%} | {c['theirs']:.1f} | {ratio:.2f} | {prompt}"
            print(f"| {shape} | {precision} | {threads} | {speeds} |", flush=True)
            write_json(args.json, machine(args.binary) | {"torch": torch.__version__, "cases": cases})
    apart = [c for c in cases if c["precision"] == "f32" and any(r["equal"] < c["tokens"] for r in c["rounds"])]
    for c in apart:
        print(f"bench.py decode: GREEDY TOKENS DIFFER ({c['shape']}, {c['threads']} threads)", file=sys.stderr)
    return 1 if apart else 0
