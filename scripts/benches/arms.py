"""What gpu_check.py measures against each other, its verdict on losses, and how a step of many micro-batches follows from two shorter ones."""

from __future__ import annotations

from typing import NamedTuple

# Micro-batches of the longer of the two steps that are measured, and of a step of the 1.7B recipe.
MEASURED, RECIPE = 8, 32


class Arm(NamedTuple):
    """A way to train: llama-lite with this configuration and environment, or, if there are options of `bench.py torch train`, PyTorch."""

    name: str
    config: dict = {}
    environment: dict = {}
    torch: list[str] | None = None


LLAMA_LITE = Arm("llama-lite")
OWN_ATTENTION = Arm("llama-lite, own attention", environment={"LLAMA_LITE_ATTENTION": "own"})
DEFAULT_PRODUCTS = Arm("llama-lite, default products", environment={"LLAMA_LITE_PRODUCTS": "default"})
ALL_KEPT = Arm("llama-lite, all kept", {"train": {"recompute": "none"}})
# The workspace of attention's backward pass may stay in the card's cache if it is that of few sequences.
SLICES = [Arm(f"llama-lite, attention of {n}", environment={"LLAMA_LITE_ATTENTION_SLICE": str(n)}) for n in (1, 2, 4)]
BLOCKS_AGAIN = Arm("llama-lite, blocks again", {"train": {"recompute": "full"}})

# Packed products and bf16 throughout are what a GPU likes best; which of these is PyTorch's best is measured, and the best one is compared.
TORCH = Arm("torch, bf16 throughout", torch=["--bf16-model", "--packed", "--compile", "blocks"])
TORCH_AUTOCAST = Arm("torch, autocast", torch=["--bf16", "--packed", "--compile", "blocks"])
TORCH_UNPACKED = Arm("torch, autocast, unpacked", torch=["--bf16", "--compile", "blocks"])
TORCH_WHOLE = Arm("torch, bf16, whole", torch=["--bf16-model", "--packed", "--compile", "whole"])


def of_recipe(one_s: float, several_s: float, tokens: int, flops_per_token: float, peak: float | None) -> dict:
    """Seconds, tokens/s and MFU of a step of RECIPE micro-batches of `tokens` each, from steps of one and of MEASURED: every further micro-batch
    takes as long as those between the two."""
    step_s = one_s + (RECIPE - 1) * (several_s - one_s) / (MEASURED - 1)
    speed = RECIPE * tokens / step_s
    return {
        "steps_s": {1: one_s, MEASURED: several_s, RECIPE: step_s},
        "tokens_per_second": speed,
        "mfu": speed * flops_per_token / peak if peak else None,
    }


def losses_agree(apart: dict[str, float]) -> bool:
    """The verdict on the largest differences of losses: f32 differs by rounding, which 200 steps amplify; bf16 may differ from f32 as much as
    PyTorch's does from its own, with autocast or, as llama-lite, in bf16 throughout."""
    band = max(apart["torch bf16 - torch f32"], apart["torch bf16 throughout - torch f32"])
    return apart["gpu f32 - cpu f32"] < 0.02 and apart["gpu bf16 - gpu f32"] <= 1.5 * band + 1e-3


def describe(row: dict) -> str:
    """A row of `of_recipe`, with its system and micro-batch, as a line."""
    head = f"{row['system']:<25} micro-batch {row['micro_batch']:<3}"
    if "steps_s" not in row:
        return f"{head} {row['error']}"
    steps = ", ".join(f"{n} in {seconds:.3f} s" for n, seconds in row["steps_s"].items())
    mfu = f"{100 * row['mfu']:.1f} %" if row["mfu"] else "-"
    return f"{head} micro-batches a step: {steps}: {row['tokens_per_second']:,.0f} tokens/s, MFU {mfu}"
