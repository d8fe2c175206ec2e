#!/usr/bin/env python3
"""Is what bench.py says besides seconds true? `python3 scripts/bench_selftest.py` (half a minute; measures nothing).

Bytes and FLOPs of a step are compared with numbers worked out by hand, with the parameters of PyTorch's model and with the tensors that its autograd
keeps, in f32 and under autocast. PyTorch's own ways to train must agree: packed, in micro-batches, in bf16 throughout. Processors, what `llama-lite
doctor` says, warnings, and files of results: what may be merged, what is done already. docs/benchmarks.md must show what its files hold. Exit 0
when all of that holds, else 1.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from bench import use_environment_with

if __name__ == "__main__":
    use_environment_with(["numpy", "safetensors", "torch"])

import torch
from benches import cpu, floor, processor, results, table
from benches.checks import equal, expect
from benches.contender_selftest import TESTS as CONTENDER_TESTS
from benches.results import Case
from benches.shared import SHAPES, Failed, cpuinfo
from pytorch_llama import FastLlama

AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu avx2 fma avx512f avx512_bf16

processor\t: 1
model name\t: another
"""
INTEL = """vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
flags\t\t: avx2 fma avx512f avx512_bf16 amx_bf16 amx_tile amx_int8
"""
OLD = INTEL.replace("avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", "")
DOCTORS = [
    "llama-lite 0.1.0\ncpu        2 threads, AVX-512\n" + line + "\ngpu        not in this build\n"
    for line in (
        "products   f32, bf16 ({})",
        "products   f32 190 GFLOP/s, bf16 380 GFLOP/s (2.0 times as fast), 2 threads; bf16: {}",
        "bf16 products   {}",
    )
]
OLD_DOCTOR = "llama-lite 0.1.0\ncpu        2 threads, AVX-512, bf16 products: {}\ngpu        not in this build\n"
TOY = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
TOY |= {"head_dim": 4, "vocab_size": 32, "tie_word_embeddings": False}


def refused(action: Callable[[], object]) -> str:
    """The message of a refusal."""
    try:
        action()
    except Failed as error:
        return str(error)
    raise AssertionError("not refused")


# ---------------------------------------------------------------------------------------------------------------------
# The floors.


def counts_by_hand() -> None:
    # q, o: 8 x 8; k, v: 8 x 4; gate, up, down: 8 x 16.
    matrices = 2 * 64 + 2 * 32 + 3 * 128
    equal(floor.parameters(TOY), matrices + 3 * 8 + 2 * 32 * 8)
    # Two FLOPs for a multiply-add, three products for a weight; two tokens; attention: 4 x T/2 x 8, times three.
    equal(floor.product_flops(TOY, 2, 2), 2 * (6 * (matrices + 32 * 8) + 3 * 4 * 1 * 8))
    equal(floor.optimizer_bytes(TOY), 28 * floor.parameters(TOY))
    equal(floor.gradient_bytes(TOY), 8 * floor.parameters(TOY))
    # Three norms: input, statistic, output; q, k, v; attention's output and statistics; gate, up, their product.
    norms, others, statistics = 3 * (8 + 8), 8 + 4 + 4 + 8 + 3 * 16, 3 + 2
    equal(floor.kept_bytes(TOY, "f32"), 4 * (norms + others + statistics))
    equal(floor.kept_bytes(TOY, "bf16"), 4 * 3 * 8 + 2 * 3 * 8 + 2 * others + 4 * statistics)
    equal(floor.activation_bytes(TOY, 5, "bf16"), 2 * 5 * floor.kept_bytes(TOY, "bf16"))


def floors_by_hand() -> None:
    found = floor.floors(TOY, 2, 2, "f32", 1e3, 1e6)
    moved = 36 * floor.parameters(TOY) + 4 * floor.kept_bytes(TOY, "f32")
    equal(sum(found["bytes_per_step"].values()), moved)
    expect(abs(found["gemm_floor_seconds"] - floor.product_flops(TOY, 2, 2) / 1e3) < 1e-9, found)
    expect(abs(found["combined_floor_seconds"] - found["gemm_floor_seconds"] - moved / 1e6) < 1e-9, found)


def parameters_are_pytorchs() -> None:
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = FastLlama(SimpleNamespace(**shape), 64)
        equal((name, floor.parameters(shape)), (name, sum(p.numel() for p in model.parameters())))


def activations_are_autograds() -> None:
    """What PyTorch keeps, less what a step need not keep, to the byte."""
    batch, length, shape = 3, 64, SHAPES["quick"]
    tokens, hidden, layers = batch * length, shape["hidden_size"], shape["num_hidden_layers"]
    for precision, size in floor.OPERAND.items():
        normalised = 4 * tokens * hidden * (2 * layers + 1)  # eager keeps x / rms as well
        silu = size * tokens * shape["intermediate_size"] * layers
        logits = 4 * tokens * shape["vocab_size"] + 4  # log-softmax, and the number of targets
        copies = 3 * layers * size * tokens * hidden if precision == "bf16" else 0  # autocast rounds an input for k, v and up again
        needless = normalised + silu + logits + copies + 8 * tokens  # ids
        equal((precision, kept_by_autograd(batch, length, shape, precision) - needless), (precision, tokens * floor.kept_bytes(shape, precision)))


def kept_by_autograd(batch: int, length: int, shape: dict, precision: str) -> int:
    """Bytes of the tensors kept for backward, without weights, their copies in bf16, and the tables of RoPE."""
    model = FastLlama(SimpleNamespace(**shape), length)
    weights = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape[::-1]) for p in model.parameters()}
    tables = {b.untyped_storage().data_ptr() for b in model.buffers()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in tables and tuple(tensor.shape) not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, shape["vocab_size"], (batch, length))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(ids, ids)
    expect(bool(loss.isfinite()), loss)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# ---------------------------------------------------------------------------------------------------------------------
# Processors.


def processors_by_name() -> None:
    amd, intel = (processor.processor(cpuinfo(text)) for text in (AMD, INTEL))
    equal(processor.slug(amd), "amd-epyc-family25-model17")
    equal(processor.slug(intel), "intel-xeon-platinum-8481c-family6-model143")
    equal(processor.slug(amd | {"name": "AMD EPYC 9B14 96-Core Processor"}), "amd-epyc-9b14-family25-model17")
    equal([f for f, is_there in amd["features"].items() if not is_there], ["amx_tile", "amx_bf16"])
    expect(all(intel["features"].values()), intel)
    expect("without amx_tile, amx_bf16" in processor.describe(amd), processor.describe(amd))
    arm = processor.processor(cpuinfo("processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"))
    equal(processor.slug(arm), "0x41-unknown-familyunknown-model0xd40")


def doctors_old_and_new() -> None:
    kernels = {"AMX": "AMX", "AVX512_BF16": "AVX512_BF16", "rounded to bf16, multiplied in f32": None}
    for doctor, (said, kernel) in itertools.product(DOCTORS, kernels.items()):
        choice = processor.read_doctor(doctor.format(said))
        equal((choice, processor.bf16_kernel(choice)), ({"simd": "AVX-512", "bf16_products": said}, kernel))
    for said, kernel in {"yes": "AVX512_BF16", "no": None}.items():
        choice = processor.read_doctor(OLD_DOCTOR.format(said))
        equal((choice, processor.bf16_kernel(choice)), ({"simd": "AVX-512", "bf16_products": said}, kernel))
    equal(processor.bf16_kernel(processor.read_doctor("nothing that is known")), None)


def warnings_where_another_precision_is_faster() -> None:
    without_amx = INTEL.replace("amx_bf16 amx_tile amx_int8", "")
    amd, intel, old, no_amx = (processor.processor(cpuinfo(text)) for text in (AMD, INTEL, OLD, without_amx))
    amx, bf16, neither = ({"bf16_products": said} for said in ("AMX", "AVX512_BF16", "rounded to bf16, multiplied in f32"))
    for cpu_, choice, measured, wanted in [
        (intel, amx, ["f32"], ["--precision bf16"]),
        (amd, bf16, ["f32"], ["--precision bf16"]),
        (old, neither, ["bf16"], ["--precision f32"]),
        (intel, bf16, ["bf16"], ["has AMX"]),
        (amd, neither, ["bf16"], ["--precision f32", "has AVX512_BF16"]),
        (amd, amx, ["bf16"], ["emulates"]),
        (intel, amx, ["bf16"], []),
        (amd, bf16, ["bf16", "f32"], []),
        (old, neither, ["f32"], []),
        (no_amx, neither, ["bf16", "f32"], []),
    ]:
        found = processor.warnings(cpu_, choice, measured)
        is_right = len(found) == len(wanted) and all(part in line and "\n" not in line for part, line in zip(wanted, found))
        expect(is_right, (choice, measured, found))


# ---------------------------------------------------------------------------------------------------------------------
# Files of results.


def head_of(text: str) -> dict:
    return results.head(processor.processor(cpuinfo(text)), {processor.SIMD: None})


def result_of(case: Case, version: str = "one", tokens_per_second: float = 1.0) -> dict:
    """As little of a result as the file needs."""
    made = dict.fromkeys(["llama-lite", "eager"], {"tokens_per_second": tokens_per_second})
    return case._asdict() | {"parameters": floor.parameters(SHAPES[case.shape]), "implementations": made, "measured": {"llama_lite": version}}


def files_of_other_machines_are_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.json")
        mine = head_of(AMD)
        results.save(path, results.load_or_begin(path, mine))
        equal(results.load_or_begin(path, mine)["cases"], [])
        more = mine | {"threads": 64}
        no_bf16 = head_of(AMD.replace("avx512_bf16", ""))
        forbidden = mine | {processor.SIMD: "avx2"}
        for other, what in [(head_of(INTEL), "vendor"), (more, "threads"), (no_bf16, "avx512_bf16"), (forbidden, processor.SIMD)]:
            message = refused(lambda other=other: results.load_or_begin(path, other))
            expect(what in message.splitlines()[0] and message.splitlines()[1].startswith("hint: python3 scripts/bench.py cpu"), message)
        path.write_text("[]")
        expect("not a table" in refused(lambda: results.load_or_begin(path, mine)), "a list")
    expect(results.default_path(head_of(AMD)) != results.default_path(forbidden), forbidden)


def one_file_has_both_precisions() -> None:
    small, large = Case("f32", "10m", 256, 1024, 1), Case("f32", "124m", 256, 1024, 1)
    bf16 = small._replace(precision="bf16")
    stored = head_of(AMD) | {"cases": []}
    for case in (bf16, large, small):
        results.add(stored, result_of(case))
    results.add(stored, result_of(small, "two", 2.0))
    equal([results.case_of(r) for r in stored["cases"]], [small, large, bf16])
    equal(stored["cases"][0]["implementations"]["eager"]["tokens_per_second"], 2.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.json")
        results.save(path, stored)
        equal(json.loads(path.read_text()), stored)
        equal([file.name for file in Path(folder).iterdir()], [path.name])


def what_is_done_is_not_measured_again() -> None:
    case = Case("f32", "10m", 256, 1024, 1)
    stored = head_of(AMD) | {"cases": [result_of(case)]}
    expect(results.is_done(stored, case, "one", ["llama-lite", "eager"]), "the same")
    expect(not results.is_done(stored, case, "two", ["llama-lite"]), "another program")
    expect(not results.is_done(stored, case, "one", ["llama-lite", "compile"]), "another implementation")
    expect(not any(results.is_done(stored, case._replace(**{field: 8192}), "one", []) for field in Case._fields[2:]), "another case")


def turns_are_not_too_long() -> None:
    equal([cpu.steps_of_turn(seconds) for seconds in (0.01, 0.5, 1.9, 7.0, 60.0)], [10, 8, 2, 2, 1])


def the_page_shows_its_files() -> None:
    page = table.PAGE.read_text()
    expect(table.BLOCK.search(page) is not None, "no table")
    expect(table.filled(page) == page, "docs/benchmarks.md is not what its files hold: bench.py table --page")
    named = {found[1] for found in table.BLOCK.finditer(page)}
    equal(named, {f"scripts/results/{path.name}" for path in results.FOLDER.glob("cpu-*.json")})
    path = next(iter(results.FOLDER.glob("cpu-*.json")))
    stored = results.load(path)
    changed = copy.deepcopy(stored)
    changed["cases"][0]["implementations"]["llama-lite"]["tokens_per_second"] *= 1.5
    expect(list(table.lines(changed)) != list(table.lines(stored)), "another speed is not shown")


TESTS = [
    counts_by_hand,
    floors_by_hand,
    parameters_are_pytorchs,
    activations_are_autograds,
    *CONTENDER_TESTS,
    processors_by_name,
    doctors_old_and_new,
    warnings_where_another_precision_is_faster,
    files_of_other_machines_are_refused,
    one_file_has_both_precisions,
    what_is_done_is_not_measured_again,
    turns_are_not_too_long,
    the_page_shows_its_files,
]


def main() -> int:
    failed = 0
    for test in TESTS:
        try:
            test()
        except AssertionError as error:
            failed += 1
            print(f"FAILED {test.__name__}: {error}")
        else:
            print(f"ok     {test.__name__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
