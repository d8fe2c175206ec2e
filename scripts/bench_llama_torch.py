#!/usr/bin/env python3
"""PyTorch's side of bench_cpu.py: the fastest plain Llama step found, the run's inputs, and the machine's GEMM rate.

Three commands, all started by bench_cpu.py, which owns the clock and the turns:

  prepare  writes what all implementations begin with: weights in a Hugging Face directory, a tokenizer, tokens
  train    runs steps until it is killed; one JSON line per step {step, loss, seconds}
  gemm     prints the matrix product rate in GFLOP/s

Choices that were measured (CPU seconds, one thread, torch 2.15) and not only assumed are marked so below; the slower
spellings are those of most tutorials and would flatter llama-lite.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plain_llama
import torch
import torch.nn.functional as F
from plain_llama import read_hf_config, rope_tables
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

END_OF_TEXT = 256  # of the byte tokenizer

# ---------------------------------------------------------------------------------------------------------------------
# The model.


class Attention(plain_llama.Attention):
    """The same weights, through the fused product. One product per matrix: measured, packed q-k-v and gate-up are 3-8 % slower
    here, their halves being strided."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = rotate(self.q_proj(x).view(b, t, self.heads, self.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).view(b, t, self.kv_heads, self.head_dim), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        # Measured: enable_gqa is 5-15 % faster than repeating or expanding k and v.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Layer(plain_llama.Layer):
    """The plain layer. Its RMSNorm stays as it is: measured, F.rms_norm has no fused kernel on CPU and makes an eager step 2-3 %
    slower; compiled they are equal."""

    def __init__(self, c: SimpleNamespace):
        super().__init__(c)
        self.self_attn = Attention(c)


class Llama(nn.Module):
    """`forward(ids (B, T), targets (B, T)) -> mean loss`, under Hugging Face's parameter names."""

    def __init__(self, c: SimpleNamespace, length: int):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.model.norm = plain_llama.RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        cos, sin = rope_tables(length, c.head_dim, c.rope_theta)
        half = c.head_dim // 2
        signed_sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)
        # (T, 1, D): the same for all heads.
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("signed_sin", signed_sin[:, None], persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, self.cos, self.signed_sin)
        # Measured: the chunked F.linear_cross_entropy of torch 2.15 is 5 % (vocabulary 4096) to 150 % (50304) slower.
        return F.cross_entropy(self.lm_head(self.model.norm(x)).flatten(0, 1), targets.flatten())


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """RoPE, half-split, of (B, T, H, D). Measured: a roll and a fused multiply-add are as fast as anything."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


# ---------------------------------------------------------------------------------------------------------------------
# prepare: what all implementations begin with.


def prepare(case: SimpleNamespace, directory: Path) -> dict:
    """Writes model/ (Hugging Face) and train.npy into `directory`; returns the exact number of parameters."""
    c = case.model
    config = c | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "torch_dtype": "float32",
    }
    model = Llama(SimpleNamespace(**c), case.sequence_length)
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            if p.dim() == 2:
                p.normal_(0.0, 0.02, generator=generator)
    target = directory / "model"
    target.mkdir(parents=True)
    save_file(model.state_dict(), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_byte_tokenizer(target)
    rng = np.random.default_rng(case.seed)
    np.save(directory / "train.npy", markov_tokens(rng, c["vocab_size"], case.data_tokens + 1))
    return {"parameters": sum(p.numel() for p in model.parameters())}


def write_byte_tokenizer(directory: Path) -> None:
    """A byte-level BPE without merges: llama-lite wants a tokenizer, and here only ids matter, so the smallest will do."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in letters)
    letters |= {b: chr(256 + i) for i, b in enumerate(others)}
    end = {"id": END_OF_TEXT, "content": "<|endoftext|>", "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end | {"single_word": False, "lstrip": False, "rstrip": False}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {letters[b]: i for i, b in enumerate(sorted(letters))}, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer) + "\n")


def markov_tokens(rng: np.random.Generator, vocab: int, count: int) -> np.ndarray:
    """Tokens with something to learn: the next one is mostly a fixed function of the last, else Zipf's."""
    chains = 64  # side by side, so that the loop is short
    length = -(-count // chains)
    out = np.minimum(rng.zipf(1.3, (length, chains)) - 1, vocab - 1)
    follow = rng.random((length, chains)) < 0.6
    for i in range(1, length):
        out[i] = np.where(follow[i], (out[i - 1] * 31 + 7) % vocab, out[i])
    return out.T.reshape(-1)[:count].astype(np.uint16)


# ---------------------------------------------------------------------------------------------------------------------
# train: the loop.


def train(case: SimpleNamespace, directory: Path, compiled: bool, bf16: bool, log: Path) -> None:
    baseline = resident_mb()  # torch is imported, nothing else has been done
    config = read_hf_config(directory / "model")
    model = Llama(config, case.sequence_length)
    model.load_state_dict(load_file(directory / "model" / "model.safetensors"), strict=True)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": case.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=case.lr, betas=tuple(case.betas), eps=case.eps, fused=True)
    loss_of = torch.compile(model, dynamic=False) if compiled else model
    batches = read_batches(directory / "train.npy", case)
    with log.open("w", buffering=1) as out:
        print(json.dumps({"kind": "start", "baseline_mb": baseline, "torch": torch.__version__}), file=out)
        for step in itertools.count(1):
            begun = time.perf_counter()
            inputs, targets = next(batches)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(inputs, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, case.grad_clip)
            optimizer.step()
            value = loss.item()
            seconds = time.perf_counter() - begun
            print(json.dumps({"kind": "train", "step": step, "loss": value, "seconds": seconds}), file=out)


def read_batches(path: Path, case: SimpleNamespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (B, T) each: windows in file order, from the start again after the last, as llama-lite's."""
    tokens = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))
    length, batch = case.sequence_length, case.tokens_per_step // case.sequence_length
    windows = (len(tokens) - 1) // length
    for first in itertools.count(0, batch):
        rows = [(first + r) % windows * length for r in range(batch)]
        both = torch.stack([tokens[at : at + length + 1] for at in rows])
        yield both[:, :-1].contiguous(), both[:, 1:].contiguous()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# ---------------------------------------------------------------------------------------------------------------------


def gemm_rates(dtype: torch.dtype, sizes: tuple[int, ...] = (1024, 1536, 2048), repeats: int = 4) -> dict:
    """GFLOP/s of square products, the best of some each: a ceiling, so interruptions must not count."""
    rates = {}
    for n in sizes:
        a, b, out = (torch.rand(n, n).to(dtype) for _ in range(3))
        seconds = []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - begun)
        rates[str(n)] = 2e-9 * n**3 / min(seconds[1:])
    return rates


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=["prepare", "train", "gemm"])
    p.add_argument("--dir", type=Path, help="the case's directory, with its case.json")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--compile", action="store_true", help="torch.compile the model and its loss")
    p.add_argument("--bf16", action="store_true", help="autocast to bf16; gemm: bf16 products")
    p.add_argument("--log", type=Path, help="where train writes its lines")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "gemm":
        print(json.dumps(gemm_rates(torch.bfloat16 if args.bf16 else torch.float32)))
        return 0
    if args.dir is None or (args.command == "train" and args.log is None):
        p.error("--dir (and for train --log) missing")
    case = SimpleNamespace(**json.loads((args.dir / "case.json").read_text()))
    if args.command == "prepare":
        print(json.dumps(prepare(case, args.dir)))
    else:
        train(case, args.dir, args.compile, args.bf16, args.log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
