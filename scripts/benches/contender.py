"""`bench.py torch`: PyTorch's side of the benchmarks and of gpu_check.py. All three commands are started by those, which own the clock.

  prepare --dir DIR [--no-weights]   writes what all implementations begin with, as DIR/case.json says: weights in a Hugging Face
                                     directory, a tokenizer, tokens
  train   --dir DIR --log FILE [--steps N] [--device cuda] [--bf16|--bf16-model] [--packed] [--compile whole|blocks] [--fresh]
          [--micro-batch N] [--ranks N]
                                     trains, without --steps until it is killed; writes a line of JSON per step {step, loss, seconds}
  rates   [--bf16]                   prints the rates of large matrix products in GFLOP/s, and of a large copy in bytes per second

--bf16 is autocast: products in bf16, residual stream and weights in f32. --bf16-model is bf16 throughout, as llama-lite's training on a GPU:
weights of products, activations, the residual stream and their gradients are bf16; norms' weights and statistics, the loss, the masters in the
optimizer, the sums of gradients over micro-batches and the moments are f32. --packed takes one product for q, k and v and one for gate and up.
--micro-batch takes a step in micro-batches of N sequences, whose gradients are added up, with one update and one read of the loss.

--fresh draws the weights instead of reading them. `--compile whole` compiles the model in one piece, which takes minutes for many layers;
`blocks` compiles one layer, whose code all of them share, and the loss.

With --ranks, `mpiexec -n N` starts this: DistributedDataParallel over gloo, where each process trains on its part of a step's sequences and
logs their loss. Rank 0 writes FILE, the others FILE.1, FILE.2, ...
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from pytorch_llama import END_OF_TEXT, FastLlama, PackedLlama, markov_tokens, write_byte_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", choices=["prepare", "train", "rates"])
    parser.add_argument("--dir", type=Path, help="the case's directory, with its case.json")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast; rates: of bf16 products")
    parser.add_argument("--bf16-model", action="store_true", help="train: all of the model in bf16, with f32 masters")
    parser.add_argument("--packed", action="store_true", help="train: one product for q, k and v, and one for gate and up")
    parser.add_argument("--micro-batch", type=int, help="train: sequences of a micro-batch (default: all of a step)")
    parser.add_argument("--no-weights", action="store_true", help="prepare: tokenizer and tokens only")
    parser.add_argument("--log", type=Path, help="train: where its lines go")
    parser.add_argument("--steps", type=int, help="train: how many (default: no end)")
    parser.add_argument("--device", default="cpu", help="train: where")
    parser.add_argument("--compile", choices=["whole", "blocks"], help="train: what torch.compile compiles")
    parser.add_argument("--fresh", action="store_true", help="train: draw the weights")
    parser.add_argument("--ranks", type=int, default=1, help="train: how many processes mpiexec has started (default 1)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "rates":
        gemm = gemm_rates(torch.bfloat16 if args.bf16 else torch.float32)
        print(json.dumps({"gemm_gflops_per_second": gemm, "copy_bytes_per_second": copy_bandwidth()}))
        return 0
    if args.dir is None or (args.command == "train" and args.log is None):
        parser.error("--dir (and for train --log) missing")
    if args.bf16 and args.bf16_model:
        parser.error("--bf16 is autocast, --bf16-model is not: one of them")
    if args.ranks > 1 and (args.micro_batch or args.bf16_model):
        parser.error("--micro-batch and --bf16-model are for one process")
    case = SimpleNamespace(**json.loads((args.dir / "case.json").read_text()))
    if args.command == "prepare":
        print(json.dumps(prepare(case, args.dir, weights=not args.no_weights)))
    else:
        train(case, args)
    return 0


def prepare(case: SimpleNamespace, directory: Path, weights: bool) -> dict:
    """Writes model/ (Hugging Face) and train.npy; returns the exact number of parameters, if there are weights."""
    target = directory / "model"
    target.mkdir(parents=True)
    write_byte_tokenizer(target)
    found = {"parameters": write_weights(case, target)} if weights else {}
    rng = np.random.default_rng(case.seed)
    np.save(directory / "train.npy", markov_tokens(rng, case.model["vocab_size"], case.data_tokens + 1))
    return found


def write_weights(case: SimpleNamespace, target: Path) -> int:
    config = case.model | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "torch_dtype": "float32",
    }
    model = FastLlama(SimpleNamespace(**case.model), case.sequence_length)
    draw_weights(sorted(model.named_parameters()), torch.Generator().manual_seed(case.seed))
    save_file(model.state_dict(), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return sum(p.numel() for p in model.parameters())


def draw_weights(named: list[tuple[str, nn.Parameter]], generator: torch.Generator | None) -> None:
    with torch.no_grad():
        for _, p in named:
            if p.dim() == 2:
                p.normal_(0.0, 0.02, generator=generator)


def train(case: SimpleNamespace, args: argparse.Namespace) -> None:
    """Steps, each with the update and a read of its loss."""
    baseline = resident_mb()  # torch is imported, nothing else has been done
    model = make_model(case, args)
    optimizer = Optimizer(model, case, args.bf16_model)
    rank = join(args)
    compute_loss = compiled(model if args.ranks == 1 else data_parallel(model), args.compile)
    batches = read_batches(args.dir / "train.npy", case)
    own = rows_of(rank, case.tokens_per_step // case.sequence_length // args.ranks)
    with log_of(rank, args.log).open("w", buffering=1) as out:
        print(json.dumps({"kind": "start", "baseline_mb": baseline, "torch": torch.__version__}), file=out)
        for step in itertools.count(1) if args.steps is None else range(1, args.steps + 1):
            begun = time.perf_counter()
            inputs, targets = (x[own].to(args.device, non_blocking=True) for x in next(batches))
            optimizer.zero_grad()
            loss = add_gradients(compute_loss, optimizer, inputs, targets, args)
            optimizer.step()
            value = loss.item()
            seconds = time.perf_counter() - begun
            print(json.dumps({"kind": "train", "step": step, "loss": value, "seconds": seconds}), file=out)


def add_gradients(compute_loss: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor, args: argparse.Namespace) -> Tensor:
    """Forward and backward of every micro-batch; the step's mean loss, still on the device."""
    rows, kind = args.micro_batch or len(inputs), args.device.split(":")[0]
    if len(inputs) % rows:
        raise SystemExit(f"--micro-batch {rows}: a step of {len(inputs)} sequences is not a multiple of it")
    share, total = rows / len(inputs), torch.zeros((), device=inputs.device)
    for micro_inputs, micro_targets in zip(inputs.split(rows), targets.split(rows)):
        with torch.autocast(kind, torch.bfloat16, enabled=args.bf16), attention_kernels(kind):
            loss = compute_loss(micro_inputs, micro_targets) * share
        loss.backward()
        optimizer.collect_gradients()
        total += loss.detach()
    return total


class Optimizer:
    """Clipping and AdamW in f32. With `in_bf16` all weights but those of norms become the bf16 roundings of masters that are kept here."""

    def __init__(self, model: nn.Module, case: SimpleNamespace, in_bf16: bool):
        weights = list(model.parameters())
        self.masters = [nn.Parameter(p.detach().clone()) if in_bf16 and p.dim() >= 2 else p for p in weights]
        self.rounded = [(p, master) for p, master in zip(weights, self.masters) if p is not master]
        for p, _ in self.rounded:
            p.data = p.data.bfloat16()
        groups = [
            {"params": [p for p in self.masters if p.dim() >= 2], "weight_decay": case.weight_decay},
            {"params": [p for p in self.masters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=case.lr, betas=tuple(case.betas), eps=case.eps, fused=True)
        self.grad_clip = case.grad_clip

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def collect_gradients(self) -> None:
        """Adds the gradients of weights in bf16 to their masters'. Those of f32 weights are there: autograd adds them up."""
        for p, master in self.rounded:
            if master.grad is None:
                master.grad = p.grad.float()
            else:
                master.grad.add_(p.grad)
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.masters, self.grad_clip)
        self.adamw.step()
        if self.rounded:
            weights, masters = zip(*self.rounded)
            torch._foreach_copy_(weights, masters)


def join(args: argparse.Namespace) -> int:
    """Meets the other processes; returns the number of this one."""
    if args.ranks == 1:
        return 0
    rank = int(os.environ["PMI_RANK"])
    # A file is enough on one machine, and no port can be taken.
    meeting = f"file://{args.log.resolve()}.meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.ranks)
    return rank


def data_parallel(model: nn.Module) -> nn.Module:
    """With views of its buckets as gradients, which saves a copy of them in every step."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def rows_of(rank: int, rows: int) -> slice:
    return slice(rank * rows, (rank + 1) * rows)


def log_of(rank: int, log: Path) -> Path:
    return log if rank == 0 else log.with_name(f"{log.name}.{rank}")


def make_model(case: SimpleNamespace, args: argparse.Namespace) -> FastLlama:
    torch.manual_seed(case.seed)
    torch.set_float32_matmul_precision("highest")
    with torch.device(args.device):
        model = (PackedLlama if args.packed else FastLlama)(SimpleNamespace(**case.model), case.sequence_length)
    if args.fresh:
        draw_weights(list(model.named_parameters()), None)
    else:
        model.load_state_dict(load_file(args.dir / "model" / "model.safetensors"), strict=True)
    return model.to(args.device)


def compiled(model: FastLlama, what: str | None) -> nn.Module:
    """The model as `--compile` wants it."""
    if what == "whole":
        return torch.compile(model, dynamic=False)
    if what == "blocks":
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        model.cross_entropy = torch.compile(model.cross_entropy, dynamic=False)
    return model


def attention_kernels(kind: str) -> contextlib.AbstractContextManager:
    """The best of PyTorch's kernels for attention on Hopper, cuDNN's, before its own; on a CPU there is one."""
    if kind != "cuda":
        return contextlib.nullcontext()
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(backends, set_priority=True)


def read_batches(path: Path, case: SimpleNamespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (B, T) each: windows in file order, from the start again after the last, as llama-lite's."""
    tokens = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))
    length, batch = case.sequence_length, case.tokens_per_step // case.sequence_length
    windows = (len(tokens) - 1) // length
    for first in itertools.count(0, batch):
        starts = [(first + r) % windows * length for r in range(batch)]
        both = torch.stack([tokens[start : start + length + 1] for start in starts])
        yield both[:, :-1].contiguous(), both[:, 1:].contiguous()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


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


def copy_bandwidth() -> float:
    """Bytes read and written per second by a large copy, the best of some."""
    a = torch.rand(64 << 20)
    b, best = torch.empty_like(a), math.inf
    for _ in range(6):
        begun = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - begun)
    return 2 * a.nbytes / best
