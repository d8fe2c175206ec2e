"""`bench.py decode`: generation at batch 1 in f32 on the CPU, llama-lite beside transformers' `generate` and the memory's speed.

A token reads every weight once, the embedding's rows excepted: no implementation can be faster than the copy bandwidth over these bytes
(a copy's bytes are counted twice, being read and written). Both begin with one random checkpoint, take turns, and must write the same
greedy tokens; the medians of the rounds count. The prompt's speed is that of a prompt of 512 tokens.
"""

from __future__ import annotations

import argparse
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
from benches.shared import SHAPES, Failed, machine, torch_side, write_json
from pytorch_llama import END_OF_TEXT

TOKENS = 64


def bandwidth() -> float:
    """Bytes read and written per second by a large copy, the best of some."""
    a = torch.rand(64 << 20)
    b, best = torch.empty_like(a), 1e9
    for _ in range(6):
        begun = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - begun)
    return 2 * a.nbytes / best


def ours(binary: Path, model: Path, prompt: str, threads: int, tokens: int) -> tuple[list[int], float, float]:
    """(greedy tokens, seconds to the first one, tokens per second after it)"""
    command = [str(binary), "sample", "--ckpt", str(model), "--prompt", prompt, "--max-tokens", str(tokens)]
    done = subprocess.run([*command, "--greedy", "--json", "--threads", str(threads)], capture_output=True, text=True, check=True)
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


def case(shape: str, threads: int, rounds: int, binary: Path) -> dict:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="bench-decode-") as directory:
        work = Path(directory)
        spec = {"model": SHAPES[shape], "sequence_length": 1024, "seed": 1, "data_tokens": 1 << 12}
        (work / "case.json").write_text(json.dumps(spec))
        torch_side("prepare", "--dir", work)
        model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
        vocabulary = SHAPES[shape]["vocab_size"] * SHAPES[shape]["hidden_size"]
        read = 4 * (sum(p.numel() for p in model.parameters()) - vocabulary)
        short = "Once upon a time"
        long = "Once upon a time " * 31
        short_ids = encode(work / "model", short)
        long_ids = encode(work / "model", long)
        result: dict = {"shape": shape, "threads": threads, "bytes_per_token": read, "copy": bandwidth(), "rounds": []}
        for _ in range(rounds):
            our_tokens, _, our_speed = ours(binary, work / "model", short, threads, TOKENS)
            their_tokens, _, their_speed = theirs(model, short_ids, TOKENS)
            prompt_seconds = [ours(binary, work / "model", long, threads, 2)[1], theirs(model, long_ids, 2)[1]]
            equal = our_tokens == their_tokens[: len(our_tokens)]
            result["rounds"].append({"ours": our_speed, "theirs": their_speed, "equal": equal, "prompt": prompt_seconds})
        result["prompt_tokens"] = long_ids.shape[1]
    for who in ("ours", "theirs"):
        result[who] = median(r[who] for r in result["rounds"])
    result["of_bandwidth"] = result["ours"] * read / result["copy"]
    result["prompt_seconds"] = [median(r["prompt"][i] for r in result["rounds"]) for i in (0, 1)]
    return result


def encode(directory: Path, text: str) -> torch.Tensor:
    """Ids (1, T)."""
    from tokenizers import Tokenizer

    return torch.tensor([Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text).ids])


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--shapes", default="30m,124m", help=f"among {', '.join(SHAPES)} (default %(default)s)")
    p.add_argument("--threads", default="1,2", help="thread counts (default %(default)s)")
    p.add_argument("--rounds", type=int, default=5, help="turns of each (default %(default)s)")


def run(args: argparse.Namespace, _: argparse.ArgumentParser) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    cases = []
    print("| model | threads | llama-lite tok/s | of the copy bandwidth | transformers tok/s | ratio | prompt tok/s, both |\n|---|---|---|---|---|---|---|")
    for shape in args.shapes.split(","):
        for threads in map(int, args.threads.split(",")):
            c = case(shape, threads, args.rounds, args.binary)
            cases.append(c)
            prompt = " / ".join(f"{c['prompt_tokens'] / s:,.0f}" for s in c["prompt_seconds"])
            ratio = c["ours"] / c["theirs"]
            print(f"| {shape} | {threads} | {c['ours']:.1f} | {c['of_bandwidth']:.0%} | {c['theirs']:.1f} | {ratio:.2f} | {prompt} |", flush=True)
            write_json(args.json, machine(args.binary) | {"torch": torch.__version__, "cases": cases})
    apart = [c for c in cases if not all(r["equal"] for r in c["rounds"])]
    for c in apart:
        print(f"bench.py decode: GREEDY TOKENS DIFFER ({c['shape']}, {c['threads']} threads)", file=sys.stderr)
    return 1 if apart else 0
