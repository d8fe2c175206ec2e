"""`bench.py cpu`: one training step (forward, backward, clip, AdamW) of llama-lite, PyTorch eager and torch.compile.

How it measures:

* All implementations begin with the same weights and train on the same tokens; the losses of the first steps must agree
  within 1e-4 (relative; bf16: 2e-3), else this says so and exits 1.
* Each is one long-lived process, stopped (SIGSTOP) except in its turns, so exactly one computes at a time. A round gives
  each a turn, in an order that rotates. The step that a stop cut through is discarded: a turn counts only steps that
  began and ended in it. What disturbs the machine for long therefore meets all of them. Where they do not fit into memory
  together, every turn begins with a new process; its first step is not counted.
* Seconds of a step are the implementation's own; the driver's clock beside them must tell the same.
* CPU seconds are utime + stime of all threads (/proc/PID/stat), read when the first and when the last log line of a turn
  appears, over the steps between: whole steps only.
* "tuned" is PyTorch with an allocator set up as well as an expert would; see TUNED.
* Peak memory is VmHWM of the whole process; for PyTorch also less what it holds at rest, after `import torch`.
* The ratio is the median over rounds of (PyTorch's median step / llama-lite's median step).
* bf16 compares PyTorch's autocast with train.precision = "bf16": f32 weights, moments and sums in both.
* Two floors are printed: the time of the matrix products alone, and with the bytes of optimizer and activations added
  (benches/floor.py says which). Rates of products and of a copy are measured before and after each case; the best counts.

Results go to a file per processor, scripts/results/cpu-VENDOR-MODEL.json, after every case. A case is a precision, a shape, a sequence length, tokens
a step and a number of threads; each of these flags takes a list, and --list shows what is left to do. What this program has measured already is not
measured again, so an interrupted table goes on with the same command. `bench.py table FILE` prints the file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median

from benches import processor, results, table
from benches.floor import floors, kept_bytes, parameters, product_flops
from benches.results import Case
from benches.shared import SHAPES, Failed, config_text, machine, shown, torch_command, torch_side
from benches.turns import TICK, Worker

OURS = "llama-lite"
# glibc told to keep freed memory and to ask for huge pages. Measured: a PyTorch step of the 34 M model is 20 % faster
# and takes 45 % more memory. llama-lite keeps its memory by itself, so both PyTorches are shown.
TUNED = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000"
    ":glibc.malloc.top_pad=67108864"
}
# Flags and environment of `bench.py torch train`.
TORCH = {
    "eager": ([], {}),
    "eager-tuned": ([], TUNED),
    "compile": (["--compile", "whole"], {}),
    "compile-tuned": (["--compile", "whole"], TUNED),
}
IMPLEMENTATIONS = [OURS, *TORCH]

CHECKED_STEPS = 10  # losses compared; also the warm-up, never timed
# Fewer of a step that takes seconds: the FLOPs of its products, and how many.
LONG_STEP, FEWER_CHECKED = 4e11, 3
# Relative. Under bf16 every implementation rounds other things.
LOSS_TOLERANCE = {"f32": 1e-4, "bf16": 2e-3}
DATA_TOKENS = 1 << 18  # then from the start again
TURN_SECONDS = 4.0  # aimed at, for the slowest implementation, with 2 to 10 steps; one if it takes more than twice as long
HYPER = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}


# ---------------------------------------------------------------------------------------------------------------------
# One case.


def run_case(case: Case, args: argparse.Namespace) -> dict:
    model = SHAPES[case.shape]
    settings = {"model": model, "sequence_length": case.sequence_length, "tokens_per_step": case.tokens_per_step}
    settings |= HYPER | {"seed": 1, "data_tokens": DATA_TOKENS, "precision": case.precision}
    with tempfile.TemporaryDirectory(prefix="bench-cpu-") as folder:
        work = Path(folder)
        (work / "case.json").write_text(json.dumps(settings))
        result = case._asdict() | {"model": model} | torch_side("prepare", "--dir", work)
        # Twice, because the floors are the best that the machine could do.
        rates = [machine_rates(case)]
        try:
            result |= turns_together(case, settings, work, args)
        except NoRoom as reason:
            print(f"{case}: {reason}; every turn begins with a new process", file=sys.stderr)
            result |= turns_alone(case, settings, work, args)
        rates.append(machine_rates(case))
    result |= {name: [r[name] for r in rates] for name in rates[0]}
    return result | {"loss_difference": loss_difference(result["losses"])} | least_seconds(case, rates) | summary(result)


def turns_together(case: Case, settings: dict, work: Path, args: argparse.Namespace) -> dict:
    """All processes stay in memory, stopped or not, from their first step to the last round."""
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        for implementation in args.implementations:
            check_memory(workers, guess_mb(case))
            worker = start(implementation, settings, work, case.threads, args.binary)
            stack.callback(worker.kill)
            worker.warm_up(checked_steps(case))
            workers.append(worker)
        steps = args.steps or steps_of_turn(max(median(line["seconds"] for line in w.lines[-2:]) for w in workers))
        rounds = [one_round(workers, r, steps) for r in range(args.rounds)]
        found = {w.name: facts(w, case) for w in workers}
    return {"processes": "one for all turns", "steps_per_turn": steps, "rounds": rounds} | by_fact(found)


def turns_alone(case: Case, settings: dict, work: Path, args: argparse.Namespace) -> dict:
    """A process for each turn. Those of torch.compile find the code that the first one has compiled."""
    steps, rounds, found = args.steps or 2, [], {}
    for r in range(args.rounds):
        load, turns, at = os.getloadavg(), {}, r % len(args.implementations)
        for name in args.implementations[at:] + args.implementations[:at]:
            check_memory([], guess_mb(case))
            worker = start(name, settings, work, case.threads, args.binary)
            try:
                # Later turns begin with one step that is not counted; the losses of the first are compared.
                worker.warm_up(checked_steps(case) if r == 0 else 0)
                turns[name] = worker.turn(steps)
                found.setdefault(name, facts(worker, case))
            finally:
                worker.kill()
        rounds.append({"load_average": load, "turns": turns})
    return {"processes": "one for each turn", "steps_per_turn": steps, "rounds": rounds} | by_fact(found)


def facts(worker: Worker, case: Case) -> dict:
    """What is known of a process besides its turns."""
    losses = [line["loss"] for line in worker.lines[: checked_steps(case)]]
    return {"losses": losses, "peak_mb": worker.peak_mb(), "at_rest_mb": worker.start.get("baseline_mb", 0.0), "torch": worker.start.get("torch")}


def by_fact(found: dict[str, dict]) -> dict:
    torch = next((each["torch"] for each in found.values() if each["torch"]), processor.NOT_RECORDED)
    return {key: {name: each[key] for name, each in found.items()} for key in ("losses", "peak_mb", "at_rest_mb")} | {"torch": torch}


def checked_steps(case: Case) -> int:
    flops = product_flops(SHAPES[case.shape], case.sequence_length, case.tokens_per_step)
    return CHECKED_STEPS if flops < LONG_STEP else FEWER_CHECKED


def machine_rates(case: Case) -> dict:
    """Of products in the case's precision and of a copy, with the case's threads."""
    bf16 = ["--bf16"] if case.precision == "bf16" else []
    return torch_side("rates", "--threads", case.threads, *bf16)


def least_seconds(case: Case, rates: list[dict]) -> dict:
    products = 1e9 * max(rate for r in rates for rate in r["gemm_gflops_per_second"].values())
    copy = max(r["copy_bytes_per_second"] for r in rates)
    return floors(SHAPES[case.shape], case.sequence_length, case.tokens_per_step, case.precision, products, copy)


def steps_of_turn(slowest: float) -> int:
    if slowest > 2 * TURN_SECONDS:
        return 1
    return min(10, max(2, round(TURN_SECONDS / slowest)))


def start(name: str, case: dict, work: Path, threads: int, binary: Path) -> Worker:
    stderr = work / f"{name}.stderr"
    if name == OURS:
        config, out = work / "config.toml", work / "run"
        shutil.rmtree(out, ignore_errors=True)  # of the turn before
        config.write_text(llama_lite_config(case, work))
        command = [str(binary), "pretrain", "--config", str(config), "--init-from", str(work / "model")]
        command += ["--out", str(out), "--device", "cpu", "--threads", str(threads), "--quiet"]
        return Worker(name, command, out / "metrics.jsonl", stderr, case["tokens_per_step"], {})
    flags, tuning = TORCH[name]
    env = tuning | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}
    # No pool of compiler processes: they would outlive their use and compute in others' turns.
    env |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    log = work / f"{name}.jsonl"
    log.unlink(missing_ok=True)
    command = torch_command("train", "--dir", work, "--threads", threads, "--log", log)
    flags = flags + (["--bf16"] if case["precision"] == "bf16" else [])
    return Worker(name, command + flags, log, stderr, case["tokens_per_step"], env)


class NoRoom(Failed):
    """One more process does not fit into memory."""


def check_memory(workers: list[Worker], guess: float) -> None:
    """All stay in memory, stopped or not. `guess` is what the next one needs, in MB, or a little more than the largest so far did."""
    need = max([guess, *(1.2 * w.peak_mb() for w in workers)])
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024 / 1e6
    if available < need:
        raise NoRoom(f"{available:,.0f} MB of memory are left, the next process needs about {need:,.0f}")


def guess_mb(case: Case) -> float:
    """Of PyTorch: weights, gradients, moments, twice what backward needs, and three tensors of logits. Within 15 % of eager's in f32 at 1024 tokens."""
    model = SHAPES[case.shape]
    of_token = 2 * kept_bytes(model, "f32") + 3 * 4 * model["vocab_size"]
    return 600 + 1e-6 * (16 * parameters(model) + case.tokens_per_step * of_token)


def llama_lite_config(case: dict, work: Path, **changes: dict) -> str:
    """The configuration of a case, with other keys or other values of some sections."""
    sections = {
        "model": case["model"],
        "data": {
            "train": [str(work / "train.npy")],
            "tokenizer": str(work / "model" / "tokenizer.json"),
            "shuffle": False,
        },
        "train": {
            "sequence_length": case["sequence_length"],
            "micro_batch_size": case["tokens_per_step"] // case["sequence_length"],
            "steps": 1_000_000,
            "precision": case["precision"],
        },
        "optimizer": {key: case[key] for key in HYPER},
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": 0},
        "eval": {"every": 0},
        "sample": {"every": 0},
        # It is stopped while others compute, for minutes if they compile.
        "guard": {"hang_seconds": 100_000},
    }
    return config_text(sections | {name: sections.get(name, {}) | keys for name, keys in changes.items()})


def one_round(workers: list[Worker], number: int, steps: int) -> dict:
    """A turn for each, beginning with another one in every round."""
    load, turns = os.getloadavg(), {}
    at = number % len(workers)
    for worker in workers[at:] + workers[:at]:
        others = [w for w in workers if w is not worker]
        before = sum(w.cpu_seconds() for w in others)
        turns[worker.name] = worker.turn(steps)
        if sum(w.cpu_seconds() for w in others) - before > 2 * TICK:
            raise Failed(f"a stopped process computed in the turn of {worker.name}")
    return {"load_average": load, "turns": turns}


def loss_difference(losses: dict[str, list[float]]) -> float:
    """Largest relative difference between any two at any step; infinite if a loss is not a number."""
    worst = 0.0
    for at_step in zip(*losses.values()):
        if any(x is None or not math.isfinite(x) for x in at_step):
            return math.inf
        worst = max(worst, (max(at_step) - min(at_step)) / max(abs(min(at_step)), 1e-30))
    return worst


def summary(result: dict) -> dict:
    """Medians over the rounds, for each implementation and for each ratio to llama-lite."""
    rounds = [r["turns"] for r in result["rounds"]]
    implementations = {}
    for name in rounds[0]:
        seconds = median(s for turns in rounds for s in turns[name]["seconds"])
        implementations[name] = {
            "seconds": seconds,
            "tokens_per_second": result["tokens_per_step"] / seconds,
            "cpu_seconds": median(turns[name]["cpu_seconds_per_step"] for turns in rounds),
            "peak_mb": result["peak_mb"][name],
            "peak_mb_above_rest": result["peak_mb"][name] - result["at_rest_mb"][name],
            # How far the driver's clock is from the implementation's own.
            "clock_gap": median(t[name]["outside_seconds_per_step"] / mean(t[name]["seconds"]) - 1 for t in rounds),
            "foreign_cores": median(turns[name]["foreign_cores"] for turns in rounds),
        }
    ratios = {}
    for name in [n for n in implementations if n != OURS and OURS in implementations]:
        each = [median(turns[name]["seconds"]) / median(turns[OURS]["seconds"]) for turns in rounds]
        ratios[name] = {"median": median(each), "least": min(each), "most": max(each), "rounds": each}
    return {"implementations": implementations, "ratios": ratios}


# ---------------------------------------------------------------------------------------------------------------------
# The cases, one after the other.


def names(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """The type of a flag that takes a list of these."""

    def parse(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is not among {', '.join(allowed)}")
        return text.split(",")

    return parse


def numbers(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is not a list of numbers of at least 1")
    return [int(part) for part in text.split(",")]


def number(text: str) -> int:
    return numbers(text)[0]


def add_arguments(p: argparse.ArgumentParser) -> None:
    whole = ",".join(name for name in SHAPES if name != "quick")
    p.add_argument("--quick", action="store_true", help="one tiny model, two rounds: a test of the harness; kept only with --json")
    p.add_argument("--precision", type=names(LOSS_TOLERANCE), help="of all implementations (default f32,bf16; of --quick f32)")
    p.add_argument("--shapes", type=names(SHAPES), default=whole, help=f"among {', '.join(SHAPES)} (default %(default)s)")
    p.add_argument("--sequences", type=numbers, default="256,1024", help="sequence lengths (default %(default)s)")
    p.add_argument("--tokens", type=numbers, default="1024,8192", help="tokens a step (default %(default)s)")
    p.add_argument("--threads", type=numbers, default="1,2", help="thread counts (default %(default)s)")
    p.add_argument("--rounds", type=number, default=3, help="turns of each implementation (default %(default)s)")
    p.add_argument("--steps", type=number, help="steps of a turn (default: 1 to 10, about four seconds)")
    usual = f"among {', '.join(IMPLEMENTATIONS)} (default %(default)s)"
    p.add_argument("--implementations", type=names(IMPLEMENTATIONS), default="llama-lite,eager,compile", help=usual)
    p.add_argument("--again", action="store_true", help="measure also what the file has of this program")
    p.add_argument("--list", action="store_true", help="only show the cases and which of them are done")


def resolve(args: argparse.Namespace) -> list[Case]:
    """The cases that the lists make, small models first."""
    if args.quick:
        args.shapes, args.sequences, args.tokens, args.threads, args.rounds, args.steps = ["quick"], [256], [1024], [1], 2, 3
    precisions = args.precision or (["f32"] if args.quick else list(LOSS_TOLERANCE))
    if uneven := [f"{t} of {s}" for t in args.tokens for s in args.sequences if t % s]:
        raise Failed(f"tokens a step are whole sequences, which {uneven[0]} are not\nhint: python3 scripts/bench.py cpu --tokens 1024 --sequences 256")
    return [Case(*values) for values in itertools.product(precisions, args.shapes, args.sequences, args.tokens, args.threads)]


def measure(cases: list[Case], args: argparse.Namespace) -> int:
    cpu, choice = processor.processor(), processor.chosen(args.binary)
    head, version = results.head(cpu, choice), machine(args.binary)["llama_lite"]
    path = args.json or (None if args.quick else results.default_path(head))
    stored = results.load_or_begin(path, head) if path else head | {"cases": []}
    done = {c for c in cases if not args.again and results.is_done(stored, c, version, args.implementations)}
    print("\n".join(table.machine(stored)))
    print(f"{version}: {choice['simd']}, bf16 products {choice['bf16_products']}")
    print(f"done: {len(done)} of {len(cases)}; {f'results go to {shown(path)}' if path else 'no results are kept'}")
    for line in processor.warnings(cpu, choice, sorted({case.precision for case in cases})):
        print(f"WARNING: {line}", flush=True)
    if args.list:
        print("\n".join(f"{'done ' if case in done else 'to do'}  {case}" for case in cases))
        return 0
    wrong = []
    for precision in dict.fromkeys(case.precision for case in cases):
        cells = table.columns(args.implementations, precision)
        left = [case for case in cases if case.precision == precision and case not in done]
        if left:
            print(f"\n**{precision}**\n\n{table.header(cells)}", flush=True)
            wrong += measure_each(left, cells, choice, stored, path, args)
    for line in wrong:
        print(f"bench.py cpu: {line}", file=sys.stderr)
    return 1 if wrong else 0


def measure_each(cases: list[Case], cells: dict, choice: dict, stored: dict, path: Path | None, args: argparse.Namespace) -> list[str]:
    """Prints a row for each and stores it; returns what went wrong. A case that cannot be measured does not end the others."""
    wrong, measured = [], []
    for case in cases:
        about = machine(args.binary)
        try:
            result = run_case(case, args)
        except Failed as error:
            wrong.append(f"{case}: {error}")
            continue
        about = {key: about[key] for key in ("date", "llama_lite", "python", "kernel", "memory_gb")}
        result["measured"] = about | {"torch": result.pop("torch"), "chosen": choice}
        measured.append(result)
        print(table.row(cells, result), flush=True)
        results.add(stored, result)
        if path:
            results.save(path, stored)
        if not result["loss_difference"] <= LOSS_TOLERANCE[case.precision]:
            wrong.append(f"LOSSES DIFFER ({case}): {result['loss_difference']:.1e} relative: {result['losses']}")
    if measured:
        print("\n" + "\n".join(f"* {remark}" for remark in table.remarks(measured)), flush=True)
    return wrong


def ended_by(number: int, _frame: object) -> None:
    print(f"bench.py cpu: ended by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


def run(args: argparse.Namespace, _: argparse.ArgumentParser) -> int:
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, ended_by)
    return measure(resolve(args), args)
