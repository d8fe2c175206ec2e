#!/usr/bin/env python3
"""PyTorch's side of gpu_check.py: the model of bench_llama_torch.py on a GPU, compiled, in bf16 autocast, with the fused AdamW.

  prepare --dir DIR [--no-weights]   weights and tokenizer (Hugging Face) and tokens, of DIR/case.json
  train   --dir DIR --steps N --log FILE [--device cuda] [--bf16] [--compile whole|blocks] [--fresh]

train writes one JSON line per step {step, loss, seconds}; --fresh draws weights instead of reading them. "whole" compiles the model in one piece,
which takes minutes for many layers; "blocks" compiles a layer, the same code for all of them, and the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace

import bench_llama_torch
import numpy as np
import torch
from bench_llama_torch import Llama, markov_tokens, prepare, read_batches, write_byte_tokenizer
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel


def main() -> None:
    """Both commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "train"])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--no-weights", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", choices=["whole", "blocks"])
    for flag in ["--bf16", "--fresh"]:
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    case = SimpleNamespace(**json.loads((args.dir / "case.json").read_text()))
    if args.command == "train":
        train(case, args)
    elif args.no_weights:
        (args.dir / "model").mkdir(parents=True)
        write_byte_tokenizer(args.dir / "model")
        np.save(args.dir / "train.npy", markov_tokens(np.random.default_rng(case.seed), case.model["vocab_size"], case.data_tokens + 1))
    else:
        prepare(case, args.dir)


def attention() -> contextlib.AbstractContextManager:
    """The best of PyTorch's kernels for attention on Hopper, cuDNN's, before its own; on a CPU there is one."""
    if not torch.cuda.is_available():
        return contextlib.nullcontext()
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends, set_priority=True)


def train(case: SimpleNamespace, args: argparse.Namespace) -> None:
    """Steps, each with the update and a read of its loss."""
    torch.manual_seed(case.seed)
    torch.set_float32_matmul_precision("highest")
    with torch.device(args.device):
        model = Llama(SimpleNamespace(**case.model), case.sequence_length)
    if args.fresh:
        for p in model.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, 0.0, 0.02)
    else:
        model.load_state_dict(load_file(args.dir / "model" / "model.safetensors"), strict=True)
    model.to(args.device)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": case.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=case.lr, betas=tuple(case.betas), eps=case.eps, fused=True)
    loss_of = torch.compile(model, dynamic=False) if args.compile == "whole" else model
    if args.compile == "blocks":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        bench_llama_torch.F.cross_entropy = torch.compile(torch.nn.functional.cross_entropy, dynamic=False)
    batches = read_batches(args.dir / "train.npy", case)
    with args.log.open("w", buffering=1) as out:
        print(json.dumps({"kind": "start", "torch": torch.__version__}), file=out)
        for step in range(1, args.steps + 1):
            begun = time.perf_counter()
            inputs, targets = (x.to(args.device, non_blocking=True) for x in next(batches))
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16), attention():
                loss = loss_of(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, case.grad_clip)
            optimizer.step()
            value = loss.item()
            print(json.dumps({"kind": "train", "step": step, "loss": value, "seconds": time.perf_counter() - begun}), file=out)


if __name__ == "__main__":
    main()
