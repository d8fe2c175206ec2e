#!/usr/bin/env python3
"""Compares the error of gradients in bf16 with that of PyTorch's autocast.

  python scripts/compare_bf16.py [PROGRAM] [--work DIR]      PROGRAM: a built llama-lite (default target/release/llama-lite)

llama-lite takes the first step of the run of compare_pytorch.py --make twice, with train.precision = "f32" and "bf16"; the gradient of each
parameter is its first moment after that step, divided by 1 - beta1. Plain PyTorch computes the same gradients without and with bf16
autocast. Both pairs are compared by |difference| / |f32 gradient|, for each parameter and for all of them together.

Exit 0 if llama-lite's f32 gradients are PyTorch's (1e-4), and its error in bf16 is no larger than autocast's over all parameters and at most
1.5 times autocast's in each of them; else 1.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from compare_pytorch import make, micro_batches, read_hyper, read_tokens
from pytorch_llama import load_plain
from safetensors.torch import load_file

Gradients = dict[str, torch.Tensor]


def by_llama_lite(program: Path, work: Path, precision: str) -> Gradients:
    out = work / f"run-{precision}"
    settings = [f"train.precision={precision}", "optimizer.grad_clip=0", "checkpoint.every=1", "checkpoint.keep=99"]
    command = [program, "--device", "cpu", "pretrain", "--config", work / "config.toml", "--init-from", work / "model"]
    subprocess.run([*command, "--out", out, "--quiet", *itertools.chain(*(["--set", s] for s in settings))], check=True)
    h = read_hyper(work / "config.toml")
    state = load_file(out / "checkpoints" / "step-00000001" / "optimizer.safetensors")
    ending = ".exp_avg"
    return {name.removesuffix(ending): x / (1 - h.betas[0]) for name, x in state.items() if name.endswith(ending)}


def by_pytorch(work: Path, autocast: bool) -> Gradients:
    model = load_plain(work / "model")
    h = read_hyper(work / "config.toml")
    for inputs, targets in itertools.islice(micro_batches(read_tokens([work / "train.npy"]), h), h.micro_batches):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten()) / h.micro_batches
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def error(found: Gradients, exact: Gradients, names: list[str]) -> float:
    difference = sum((found[name] - exact[name]).double().square().sum().item() for name in names)
    return math.sqrt(difference / sum(exact[name].double().square().sum().item() for name in names))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program", nargs="?", type=Path, default=Path("target/release/llama-lite"))
    p.add_argument("--work", type=Path, help="a directory to keep (default: a temporary one)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        make(work, vocab=4096)
        exact, rounded = by_llama_lite(args.program, work, "f32"), by_llama_lite(args.program, work, "bf16")
        torch_exact, torch_rounded = by_pytorch(work, False), by_pytorch(work, True)
    names = sorted(exact)
    assert names == sorted(torch_exact), "the parameters are other ones"
    print(f"{'parameter':<50} llama-lite   autocast")
    worst = 0.0
    for name in names:
        ours, theirs = error(rounded, exact, [name]), error(torch_rounded, torch_exact, [name])
        worst = max(worst, ours / theirs)
        print(f"{name:<50} {ours:>10.2e} {theirs:>10.2e}")
    ours, theirs = error(rounded, exact, names), error(torch_rounded, torch_exact, names)
    same = error(exact, torch_exact, names)
    print(f"{'all':<50} {ours:>10.2e} {theirs:>10.2e}")
    print(f"largest ratio of a parameter's errors {worst:.2f}; f32 gradients differ by {same:.1e}")
    agree = same <= 1e-4 and 0 < ours <= theirs and worst <= 1.5
    print("WITHIN" if agree else "OUTSIDE")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
