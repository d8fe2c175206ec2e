#!/usr/bin/env python3
"""Trains like llama-lite in plain PyTorch, f32, and compares every step with a run's metrics.jsonl.

Three commands, end to end:

  python scripts/compare_pytorch.py --make DIR
  llama-lite --device cpu pretrain --config DIR/config.toml --init-from DIR/model --out DIR/run
  python scripts/compare_pytorch.py --ckpt DIR/model --data DIR/train.npy --config DIR/run/config.toml \\
      --steps 20 --rust-metrics DIR/run/metrics.jsonl

The run must read its shards in file order ([data] shuffle = false) and compute in f32. Give the run's own config.toml:
it is the resolved configuration, and this script refuses to guess a key that is absent. Exit 0 when every loss agrees
within 1e-4, every gradient norm within 1e-3 and every learning rate within 1e-6 (relative), else 1; 2 for wrong usage.

--make writes hyper-parameters far sharper than any recipe (high rate and decay, short warm-up, clipping on some steps
only), because with the recipe's own numbers twenty steps cannot tell, say, whether norms are decayed;
compare_pytorch_selftest.py shows that the comparison then sees what it should.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_llama import END_OF_TEXT, Llama, load_plain, load_transformers, markov_tokens, randomise, write_byte_tokenizer

# What is compared, and the largest relative difference allowed in each.
FIELDS = ("loss", "grad_norm", "lr")
TOLERANCES = (1e-4, 1e-3, 1e-6)

GPT2_VOCAB = 50257
BYTE_VOCAB = END_OF_TEXT + 1


# ---------------------------------------------------------------------------------------------------------------------
# What a configuration says.


@dataclass
class Hyper:
    """The keys of llama-lite's configuration that decide the numbers of a step."""

    sequence_length: int
    micro_batch_size: int
    tokens_per_step: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip: float
    schedule: str
    warmup_steps: int
    decay_steps: int
    min_lr: float
    steps: int

    @property
    def micro_batches(self) -> int:
        return self.tokens_per_step // (self.micro_batch_size * self.sequence_length)


def read_hyper(path: Path) -> Hyper:
    raw = tomllib.loads(path.read_text())
    absent: list[str] = []

    def key(section: str, name: str):
        if name not in raw.get(section, {}):
            absent.append(f"{section}.{name}")
        return raw.get(section, {}).get(name)

    hyper = Hyper(
        sequence_length=key("train", "sequence_length"),
        micro_batch_size=key("train", "micro_batch_size"),
        tokens_per_step=key("train", "tokens_per_step"),
        lr=key("optimizer", "lr"),
        betas=key("optimizer", "betas"),
        eps=key("optimizer", "eps"),
        weight_decay=key("optimizer", "weight_decay"),
        grad_clip=key("optimizer", "grad_clip"),
        schedule=key("schedule", "kind"),
        warmup_steps=key("schedule", "warmup_steps"),
        decay_steps=key("schedule", "decay_steps"),
        min_lr=key("schedule", "min_lr"),
        steps=key("train", "steps"),
    )
    if absent:
        usage(f"{path}: {', '.join(absent)} not set; give the run's own config.toml, which is complete")
    if raw.get("data", {}).get("shuffle", True):
        usage(f"{path}: data.shuffle is not false; only windows in file order can be compared")
    if raw["train"].get("precision", "f32") == "bf16":
        usage(f"{path}: train.precision is bf16; this comparison is for f32")
    if hyper.tokens_per_step != hyper.micro_batches * hyper.micro_batch_size * hyper.sequence_length:
        usage(f"{path}: train.tokens_per_step is no multiple of micro_batch_size x sequence_length")
    return hyper


def learning_rate(h: Hyper, it: int) -> float:
    """Rate of the update number `it`, counted from 0 (step it + 1 of the log)."""
    if it < h.warmup_steps:
        return h.lr * (it + 1) / h.warmup_steps
    if h.schedule == "constant":
        return h.lr
    start, end = h.warmup_steps, h.decay_steps
    if h.schedule == "wsd":
        start, end = h.steps - h.decay_steps, h.steps
    if it < start:
        return h.lr
    if it >= end:
        return h.min_lr
    progress = (it - start) / (end - start)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if h.schedule == "cosine" else 1 - progress
    return h.min_lr + share * (h.lr - h.min_lr)


def read_tokens(paths: list[Path]) -> np.ndarray:
    shards = [np.load(p, allow_pickle=False) for p in paths]
    if any(s.ndim != 1 or s.dtype not in (np.uint16, np.uint32) for s in shards):
        usage("--data: one-dimensional .npy of uint16 or uint32")
    return np.concatenate(shards).astype(np.int64)


def micro_batches(tokens: np.ndarray, h: Hyper) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (B, T) each: window i is tokens[iT .. iT+T], and after the last one comes the first."""
    t, b = h.sequence_length, h.micro_batch_size
    windows = (len(tokens) - 1) // t
    if windows == 0:
        usage(f"--data: {len(tokens)} tokens are fewer than sequence_length + 1 = {t + 1}")
    for first in itertools.count(0, b):
        rows = [tokens[i * t : i * t + t + 1] for i in ((first + r) % windows for r in range(b))]
        batch = torch.from_numpy(np.stack(rows))
        yield batch[:, :-1], batch[:, 1:]


# ---------------------------------------------------------------------------------------------------------------------
# The loop, as anyone would write it in PyTorch.


def train(model: nn.Module, tokens: np.ndarray, h: Hyper, steps: int) -> list[dict]:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": h.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=h.lr, betas=tuple(h.betas), eps=h.eps)
    batches = micro_batches(tokens, h)
    records = []
    for it in range(steps):
        optimizer.zero_grad()
        loss_sum = 0.0
        for inputs, targets in itertools.islice(batches, h.micro_batches):
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()) / h.micro_batches
            loss.backward()
            loss_sum += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, h.grad_clip if h.grad_clip > 0 else math.inf)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(h, it)
        optimizer.step()
        records.append({"step": it + 1, "loss": loss_sum, "grad_norm": norm.item(), "lr": learning_rate(h, it)})
    return records


# ---------------------------------------------------------------------------------------------------------------------
# The comparison.


def read_metrics(path: Path) -> dict[int, dict]:
    records: dict[int, dict] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        record = json.loads(line)
        if record.get("kind") != "train":
            continue
        if record["step"] in records:
            usage(f"{path}:{number}: step {record['step']} a second time")
        records[record["step"]] = record
    return records


def compare(reference: Iterable[dict], other: dict[int, dict]) -> bool:
    """Prints the table; whether all steps of `reference` are in `other` within the tolerances."""
    print("step         lr    loss torch   loss rust  rel diff    norm torch   norm rust  rel diff")
    worst = [0.0] * len(FIELDS)
    for ours in reference:
        theirs = other.get(ours["step"], {})
        diffs = differences(ours, theirs)
        worst = [max(pair) for pair in zip(worst, diffs)]
        bad = [f for f, d, t in zip(FIELDS, diffs, TOLERANCES) if d > t]
        print(
            f"{ours['step']:>4} {ours['lr']:>10.4g}",
            f"{ours['loss']:>13.6f} {number(theirs.get('loss'))} {diffs[0]:>9.1e}",
            f"{ours['grad_norm']:>13.6f} {number(theirs.get('grad_norm'))} {diffs[1]:>9.1e}",
            "  <-- " + ", ".join(bad) if bad else "",
        )
    figures = [f"{f} {w:.1e} (allowed {t:.0e})" for f, w, t in zip(FIELDS, worst, TOLERANCES)]
    print("largest relative difference:", ", ".join(figures))
    agree = all(w <= t for w, t in zip(worst, TOLERANCES))
    print("AGREE" if agree else "DIFFER")
    return agree


def differences(ours: dict, theirs: dict) -> list[float]:
    """Relative difference of each field; infinite where theirs is absent or not a number."""
    out = []
    for field in FIELDS:
        x = theirs.get(field)
        known = x is not None and math.isfinite(x)
        out.append(abs(x - ours[field]) / max(abs(ours[field]), 1e-30) if known else math.inf)
    return out


def number(x: float | None) -> str:
    return f"{x:>11.6f}" if x is not None else f"{'absent':>11}"


# ---------------------------------------------------------------------------------------------------------------------
# --make: a checkpoint, tokens and a configuration to compare with.

CONFIG = """\
# For scripts/compare_pytorch.py. Rates and decay are far above a recipe's so that every rule of the step shows.
[model]
hidden_size = {c.hidden_size}
intermediate_size = {c.intermediate_size}
num_hidden_layers = {c.num_hidden_layers}
num_attention_heads = {c.num_attention_heads}
num_key_value_heads = {c.num_key_value_heads}
head_dim = {c.head_dim}
vocab_size = {c.vocab_size}
max_position_embeddings = {c.max_position_embeddings}
rms_norm_eps = {c.rms_norm_eps}
rope_theta = {c.rope_theta}
tie_word_embeddings = {tied}

[data]
train = ["{dir}/train.npy"]
val = ["{dir}/val.npy"]
tokenizer = "{tokenizer}"
shuffle = false

[train]
sequence_length = 64
micro_batch_size = 4
tokens_per_step = 512
steps = 20
precision = "f32"

[optimizer]
lr = 4e-3
betas = [0.9, 0.95]
eps = 1e-8
weight_decay = 1.0
grad_clip = 1.25

[schedule]
kind = "cosine"
warmup_steps = 5
decay_steps = 16
min_lr = 4e-4

[checkpoint]
every = 10

[eval]
every = 0
val_tokens = 4096
"""


def make(directory: Path, vocab: int = GPT2_VOCAB, tied: bool = False, text: Path | None = None, seed: int = 1) -> None:
    """Writes model/, train.npy, val.npy and config.toml into `directory`."""
    if not BYTE_VOCAB <= vocab <= 65536:
        usage(f"--vocab: {BYTE_VOCAB} to 65536 (tokens are stored as uint16)")
    # The configuration names a tokenizer that fits: the built-in GPT-2, or, below its size, bytes and an end of text.
    end_of_text = GPT2_VOCAB - 1 if vocab >= GPT2_VOCAB else END_OF_TEXT
    model = make_model(directory / "model", vocab, tied, end_of_text, seed)
    tokenizer = "gpt2"
    if vocab < GPT2_VOCAB:
        write_byte_tokenizer(directory / "model")
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        settings |= {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}
        (directory / "model" / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        tokenizer = (directory / "model" / "tokenizer.json").resolve().as_posix()
    tokens = byte_tokens(text) if text else markov_tokens(np.random.default_rng(seed), vocab, 40_000)
    split = len(tokens) * 3 // 4
    np.save(directory / "train.npy", tokens[:split])
    np.save(directory / "val.npy", tokens[split:])
    filled = CONFIG.format(c=model.c, dir=directory.resolve().as_posix(), tied=str(tied).lower(), tokenizer=tokenizer)
    (directory / "config.toml").write_text(filled)
    count = sum(p.numel() for p in model.parameters())
    print(f"{directory}: model of {count:,} parameters, {split:,} training tokens, config.toml")


def make_model(directory: Path, vocab: int, tied: bool, end_of_text: int, seed: int) -> Llama:
    # fmt: off
    config = SimpleNamespace(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=48, intermediate_size=128,
        num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=8, vocab_size=vocab,
        max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=tied, hidden_act="silu",
        attention_bias=False, mlp_bias=False, attention_dropout=0.0, initializer_range=0.02,
        bos_token_id=end_of_text, eos_token_id=end_of_text, use_cache=True, torch_dtype="float32",
        # transformers 4 reads the first and would silently take 10000 without it; 5 reads the second
        rope_theta=500000.0, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    # fmt: on
    model = Llama(config)
    randomise(model, seed)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(vars(config), indent=2) + "\n")
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return model


def byte_tokens(text: Path) -> np.ndarray:
    """A text's bytes, as ids. Not the GPT-2 encoding of it: here only equal numbers matter."""
    return np.frombuffer(text.read_bytes(), dtype=np.uint8)[:400_000].astype(np.uint16)


# ---------------------------------------------------------------------------------------------------------------------


def usage(message: str):
    print(f"compare_pytorch: {message}", file=sys.stderr)
    sys.exit(2)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ckpt", type=Path, help="Hugging Face Llama directory the run began from (--init-from)")
    p.add_argument("--data", type=Path, nargs="+", help="token shards (.npy), in the order the run reads them")
    p.add_argument("--config", type=Path, help="the run's config.toml")
    p.add_argument("--steps", type=int, default=20, help="steps to compare, from step 1 (default 20)")
    p.add_argument("--rust-metrics", type=Path, help="the run's metrics.jsonl; without it, print PyTorch's own")
    p.add_argument("--implementation", choices=["plain", "transformers"], default="plain", help="of the model")
    p.add_argument("--make", type=Path, metavar="DIR", help="write a random checkpoint, tokens and config.toml")
    p.add_argument("--vocab", type=int, default=GPT2_VOCAB, help="with --make: rows of the embedding")
    p.add_argument("--tied", action="store_true", help="with --make: the head is the embedding")
    p.add_argument("--text", type=Path, help="with --make: tokens are this file's bytes instead of random")
    p.add_argument("--seed", type=int, default=1, help="with --make (default 1)")
    args = p.parse_args()
    absent = [n for n in ("ckpt", "data", "config") if getattr(args, n) is None]
    if args.make is None and absent:
        p.error(f"--{' --'.join(absent)} missing (or --make DIR)")
    return args


def main() -> int:
    args = arguments()
    if args.make:
        make(args.make, args.vocab, args.tied, args.text, args.seed)
        return 0
    h, tokens = read_hyper(args.config), read_tokens(args.data)
    load = load_plain if args.implementation == "plain" else load_transformers
    reference = train(load(args.ckpt), tokens, h, args.steps)
    if args.rust_metrics is None:
        for record in reference:
            print(json.dumps({"kind": "train"} | record))
        return 0
    return 0 if compare(reference, read_metrics(args.rust_metrics)) else 1


if __name__ == "__main__":
    sys.exit(main())
