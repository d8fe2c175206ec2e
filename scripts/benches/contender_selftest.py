"""bench_selftest.py's tests of PyTorch's side: its ways to train agree with each other, and what gpu_check.py works out from their times."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from pytorch_llama import FastLlama, Llama, PackedLlama

from benches import arms, contender
from benches.checks import equal, expect
from benches.shared import SHAPES


def small_case(sequences: int) -> SimpleNamespace:
    hyper = {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
    return SimpleNamespace(model=SHAPES["quick"], sequence_length=32, tokens_per_step=32 * sequences, data_tokens=4096, seed=1, **hyper)


def drawn(model: Llama, weights: dict | None = None) -> Llama:
    """With these weights, or drawn ones."""
    if weights:
        model.load_state_dict(weights, strict=True)
    else:
        contender.draw_weights(list(model.named_parameters()), torch.Generator().manual_seed(5))
    return model


def packed_products_are_the_separate_ones() -> None:
    case = small_case(2)
    made = [kind(SimpleNamespace(**case.model), case.sequence_length) for kind in (FastLlama, PackedLlama)]
    plain = drawn(made[0])
    packed = drawn(made[1], plain.state_dict())
    equal(packed.state_dict().keys(), drawn(made[1], packed.state_dict()).state_dict().keys())
    ids = torch.randint(0, case.model["vocab_size"], (2, case.sequence_length + 1), generator=torch.Generator().manual_seed(1))
    losses = [model(ids[:, :-1], ids[:, 1:]) for model in (plain, packed)]
    expect(abs(losses[0] - losses[1]) < 1e-6, losses)
    for loss in losses:
        loss.backward()
    for layer, other in zip(plain.model.layers, packed.model.layers):
        for names, whole in [("qkv", other.self_attn.qkv_proj), (["gate", "up"], other.mlp.gate_up_proj)]:
            parts = [getattr(layer.self_attn if names == "qkv" else layer.mlp, f"{name}_proj").weight for name in names]
            expect(torch.equal(torch.cat(parts), whole.weight), "weights")
            apart = (torch.cat([p.grad for p in parts]) - whole.weight.grad).abs().max() / whole.weight.grad.abs().max()
            expect(apart < 1e-5, (names, apart))
    incomplete = {name: w for name, w in plain.state_dict().items() if not name.endswith("layers.1.mlp.up_proj.weight")}
    try:
        drawn(made[1], incomplete)
    except (KeyError, RuntimeError):
        return
    raise AssertionError("a missing matrix is not noticed")


def trained(folder: str, case: SimpleNamespace, *flags: str) -> list[float]:
    """Losses of six steps."""
    parser, log = argparse.ArgumentParser(), Path(folder, "log.jsonl")
    contender.add_arguments(parser)
    args = parser.parse_args(["train", "--dir", folder, "--log", str(log), "--steps", "6", *flags])
    contender.train(case, args)
    return [record["loss"] for record in map(json.loads, log.read_text().splitlines()) if record["kind"] == "train"]


def ways_to_train_agree() -> None:
    """Packed or not, in one batch or several micro-batches: to rounding. In bf16 throughout: as near as bf16 is, and not equal."""
    case = small_case(4)
    with tempfile.TemporaryDirectory() as folder:
        contender.prepare(case, Path(folder), weights=True)
        plain = trained(folder, case)
        expect(plain[0] - plain[-1] > 0.05, plain)
        for flags, least, most in [
            (["--packed"], 0, 1e-5),
            (["--micro-batch", "1"], 0, 1e-5),
            (["--micro-batch", "2", "--packed"], 0, 1e-5),
            (["--bf16"], 1e-6, 5e-3),
            (["--bf16-model"], 1e-6, 5e-3),
            (["--bf16-model", "--packed", "--micro-batch", "1"], 1e-6, 5e-3),
        ]:
            apart = max(abs(a - b) for a, b in zip(plain, trained(folder, case, *flags), strict=True))
            expect(least <= apart <= most, (flags, apart))
        try:
            trained(folder, case, "--micro-batch", "3")
        except SystemExit as error:
            expect("3" in str(error), error)
        else:
            raise AssertionError("a step that is no multiple of its micro-batch is not refused")


def masters_are_what_is_updated() -> None:
    """An update too small for a weight in bf16 is in its master; the norms' weights stay in f32."""
    case = small_case(1)
    case.lr = 1e-6
    model = drawn(FastLlama(SimpleNamespace(**case.model), case.sequence_length))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = contender.Optimizer(model, case, in_bf16=True)
    ids = torch.zeros(1, case.sequence_length, dtype=torch.long)
    for _ in range(2):
        model(ids, ids).backward()
        optimizer.collect_gradients()
    optimizer.step()
    for (name, p), master in zip(model.named_parameters(), optimizer.masters, strict=True):
        equal((name, p.dtype), (name, torch.float32 if p.dim() < 2 else torch.bfloat16))
        expect(torch.equal(master.to(p.dtype), p), name)
        moved = (master - before[name]).abs().max()
        expect(0 < moved < 1e-5, (name, moved))


def a_step_of_the_recipe_by_hand() -> None:
    # An update of 2 s, micro-batches of 3 s each.
    found = arms.of_recipe(5.0, 26.0, 100, 7.0, 1000.0)
    equal(found["steps_s"], {1: 5.0, 8: 26.0, 32: 98.0})
    equal(found["tokens_per_second"], 3200 / 98.0)
    equal(found["mfu"], 3200 / 98.0 * 7.0 / 1000.0)
    equal(arms.of_recipe(5.0, 26.0, 100, 7.0, None)["mfu"], None)
    line = arms.describe({"system": "llama-lite", "micro_batch": 16} | found)
    expect("8 in 26.000 s, 32 in 98.000 s: 33 tokens/s, MFU 22.9 %" in line, line)
    expect("no time left" in arms.describe({"system": "torch", "micro_batch": 16, "error": "no time left"}), "an error")


def losses_agree_within_pytorchs_own_band() -> None:
    names = ["gpu f32 - cpu f32", "gpu bf16 - gpu f32", "torch bf16 - torch f32", "torch bf16 throughout - torch f32"]
    for apart, agree in [
        ([0.019, 0.015, 0.01, 0.0], True),
        ([0.019, 0.015, 0.0, 0.01], True),
        ([0.019, 0.017, 0.01, 0.01], False),
        ([0.021, 0.0, 0.01, 0.01], False),
        ([0.0, 0.0009, 0.0, 0.0], True),
    ]:
        equal((apart, arms.losses_agree(dict(zip(names, apart)))), (apart, agree))


def every_arm_is_one_that_pytorchs_side_takes() -> None:
    parser = argparse.ArgumentParser()
    contender.add_arguments(parser)
    found = [arm for arm in vars(arms).values() if isinstance(arm, arms.Arm)]
    equal(len({arm.name for arm in [*found, *arms.SLICES]}), len(found) + len(arms.SLICES))
    torch_arms = [arm for arm in found if arm.torch]
    # gpu_check.py tells the systems apart by the first letters of their names.
    expect(len(torch_arms) > 2 and all(arm.name.startswith("torch" if arm.torch else "llama-lite") for arm in found), found)
    for arm in torch_arms:
        args = parser.parse_args(["train", "--micro-batch", "16", *arm.torch])
        expect(args.compile and args.bf16 != args.bf16_model, arm)


TESTS = [
    packed_products_are_the_separate_ones,
    ways_to_train_agree,
    masters_are_what_is_updated,
    a_step_of_the_recipe_by_hand,
    losses_agree_within_pytorchs_own_band,
    every_arm_is_one_that_pytorchs_side_takes,
]
