#!/usr/bin/env python3
"""Would compare_pytorch.py see a mistake? `python scripts/compare_pytorch_selftest.py DIR` (a few minutes).

A second implementation (transformers' model; AdamW, clipping and schedule written out from their formulas) must agree
with compare_pytorch's loop, and the same with any one of a list of typical mistakes must not: each has to show in the
losses or the gradient norms, not only in the logged rate. Works in DIR. Exit 0 when all of that holds, else 1.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from compare_pytorch import TOLERANCES, Hyper, differences, make, read_hyper, read_tokens, train
from pytorch_llama import load_plain, load_transformers

# Each is one thing a trainer gets wrong, made in `by_hand`.
# fmt: off
MISTAKES = [
    "norms are decayed", "embeddings are not decayed", "decay added to the gradient (L2)", "schedule one step late",
    "warm-up it/warmup", "cosine over decay_steps from the warm-up's end", "no bias correction", "beta2 0.999",
    "eps inside the root", "no clipping", "clipping each micro-batch", "norm after clipping",
    "gradients summed, not averaged", "one micro-batch left out", "windows T+1 apart", "targets not shifted",
    "loss after the update",
]
# fmt: on


def by_hand(model: nn.Module, tokens: np.ndarray, h: Hyper, steps: int, mistake: str | None) -> list[dict]:
    """The loop a second time, AdamW, clipping and schedule from their formulas, with one mistake if asked."""
    named = list(model.named_parameters())
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in named}
    windows = hand_windows(tokens, h, mistake)
    records = []
    for it in range(steps):
        batch = [next(windows) for _ in range(h.micro_batches)]
        loss = hand_gradients(model, batch, h, mistake)
        norm = math.sqrt(sum(p.grad.double().pow(2).sum().item() for _, p in named))
        scale = min(1.0, h.grad_clip / norm) if mistake not in ("no clipping", "clipping each micro-batch") else 1.0
        rate = hand_rate(h, it, mistake)
        with torch.no_grad():
            for name, p in named:
                hand_adamw(name, p, p.grad * scale, *moments[name], it + 1, rate, h, mistake)
        if mistake == "loss after the update":
            loss = hand_gradients(model, batch, h, mistake)
        logged_norm = norm * scale if mistake == "norm after clipping" else norm
        records.append({"kind": "train", "step": it + 1, "loss": loss, "grad_norm": logged_norm, "lr": rate})
    return records


def hand_windows(tokens: np.ndarray, h: Hyper, mistake: str | None) -> Iterator[Tensor]:
    """Micro-batches of whole windows, (B, T+1)."""
    t, position = h.sequence_length, 0
    stride = t + 1 if mistake == "windows T+1 apart" else t
    while True:
        rows = []
        for _ in range(h.micro_batch_size):
            if position + t + 1 > len(tokens):
                position = 0
            rows.append(tokens[position : position + t + 1])
            position += stride
        yield torch.tensor(np.array(rows))


def hand_gradients(model: nn.Module, batch: list[Tensor], h: Hyper, mistake: str | None) -> float:
    """Fills `.grad` with the mean gradient of the step; returns its mean loss."""
    model.zero_grad()
    share = 1.0 if mistake == "gradients summed, not averaged" else 1.0 / len(batch)
    total = 0.0
    for window in batch[1:] if mistake == "one micro-batch left out" else batch:
        targets = window[:, :-1] if mistake == "targets not shifted" else window[:, 1:]
        log_p = model(window[:, :-1]).log_softmax(-1)
        loss = -log_p.gather(-1, targets[..., None]).mean()
        (loss * share).backward()
        total += loss.item() / len(batch)
        if mistake == "clipping each micro-batch":
            torch.nn.utils.clip_grad_norm_(model.parameters(), h.grad_clip)
    return total


def hand_rate(h: Hyper, it: int, mistake: str | None) -> float:
    it += mistake == "schedule one step late"
    if it < h.warmup_steps:
        return h.lr * (it + (mistake != "warm-up it/warmup")) / h.warmup_steps
    span = h.decay_steps - (0 if mistake == "cosine over decay_steps from the warm-up's end" else h.warmup_steps)
    x = min(1.0, (it - h.warmup_steps) / span)
    return h.min_lr + (h.lr - h.min_lr) * (1 + math.cos(math.pi * x)) / 2


def hand_adamw(name, p, g, m, v, t, rate, h: Hyper, mistake: str | None) -> None:
    b1, b2 = h.betas[0], 0.999 if mistake == "beta2 0.999" else h.betas[1]
    decay = 0.0 if "norm" in name and mistake != "norms are decayed" else h.weight_decay
    if mistake == "embeddings are not decayed" and ("embed" in name or "lm_head" in name):
        decay = 0.0
    if mistake == "decay added to the gradient (L2)":
        g, decay = g + decay * p, 0.0
    m.copy_(b1 * m + (1 - b1) * g)
    v.copy_(b2 * v + (1 - b2) * g * g)
    c1, c2 = (1.0, 1.0) if mistake == "no bias correction" else (1 - b1**t, 1 - b2**t)
    root = torch.sqrt(v / c2 + h.eps) if mistake == "eps inside the root" else torch.sqrt(v / c2) + h.eps
    p.copy_(p - rate * decay * p - rate * (m / c1) / root)


def self_test(directory: Path) -> bool:
    """Whether the right second implementation agrees and each wrong one differs."""
    make(directory, vocab=2048)
    h, tokens = read_hyper(directory / "config.toml"), read_tokens([directory / "train.npy"])
    reference = train(load_plain(directory / "model"), tokens, h, h.steps)
    clipped = sum(r["grad_norm"] > h.grad_clip for r in reference)
    if not 0 < clipped < h.steps:
        print(f"{clipped} of {h.steps} steps are clipped: some should be, and not all")
        return False
    results = []
    for mistake in [None, *MISTAKES]:
        records = by_hand(load_transformers(directory / "model"), tokens, h, h.steps, mistake)
        loss, norm, _ = (max(column) for column in zip(*map(differences, reference, records)))
        agrees = loss <= TOLERANCES[0] and norm <= TOLERANCES[1]
        results.append(agrees == (mistake is None))
        print(f"{'ok  ' if results[-1] else 'FAIL'} {mistake or 'no mistake':<52} loss {loss:.1e}  norm {norm:.1e}")
    return all(results) and verdicts(directory, reference)


def verdicts(directory: Path, reference: list[dict]) -> bool:
    """The command's own verdict on metrics that are right, and spoiled in one value or one line."""
    right = [{"kind": "train"} | r for r in reference]
    last = right[-1]
    cases = {
        "right": (0, right),
        "loss off by 2e-4": (1, right[:-1] + [last | {"loss": last["loss"] * 1.0002}]),
        "norm off by 2e-3": (1, right[:-1] + [last | {"grad_norm": last["grad_norm"] * 0.998}]),
        "rate off by 2e-6": (1, right[:-1] + [last | {"lr": last["lr"] * 1.000002}]),
        "null loss": (1, right[:-1] + [last | {"loss": None}]),
        "a step absent": (1, right[:5] + right[6:]),
        "a step twice": (2, right + [last]),
        "no steps": (1, [{"kind": "val", "step": 0, "loss": 1.0}]),
    }
    command = [sys.executable, str(Path(__file__).resolve().with_name("compare_pytorch.py"))]
    command += ["--ckpt", "model", "--data", "train.npy", "--config", "config.toml", "--rust-metrics", "metrics.jsonl"]
    fine = True
    for name, (expected, lines) in cases.items():
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        status = subprocess.run(command, cwd=directory, capture_output=True).returncode
        fine &= status == expected
        print(f"{'ok  ' if status == expected else 'FAIL'} metrics {name}: exit {status}")
    return fine


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if self_test(Path(sys.argv[1])) else 1)
