"""`bench.py cpu`: one training step (forward, backward, clip, AdamW) of llama-lite, PyTorch eager and torch.compile.

How it measures:

* All implementations begin with the same weights and train on the same tokens; the losses of the first steps must agree
  within 1e-4 (relative; bf16: 2e-3), else this says so and exits 1.
* Each is one long-lived process, stopped (SIGSTOP) except in its turns, so exactly one computes at a time. A round gives
  each a turn, in an order that rotates. The step that a stop cut through is discarded: a turn counts only steps that
  began and ended in it. What disturbs the machine for long therefore meets all of them.
* Seconds of a step are the implementation's own; the driver's clock beside them must tell the same.
* CPU seconds are utime + stime of all threads (/proc/PID/stat), read when the first and when the last log line of a turn
  appears, over the steps between: whole steps only.
* "tuned" is PyTorch with an allocator set up as well as an expert would; see TUNED.
* Peak memory is VmHWM of the whole process; for PyTorch also less what it holds at rest, after `import torch`.
* The ratio is the median over rounds of (PyTorch's median step / llama-lite's median step).
* --precision bf16 compares PyTorch's autocast with train.precision = "bf16": f32 weights, moments and sums in both.
* The GEMM floor is the FLOPs of a step's matrix products, causal attention counted by half, at the best rate of torch's
  own product in that precision (1024 to 2048 cubed) with as many threads: no step that multiplies that fast can be shorter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

from benches.shared import SHAPES, Failed, config_text, machine, torch_command, torch_side, write_json
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
FEWER_CHECKED = {"124m": 3}  # whose steps take up to ten seconds
# Relative. Under bf16 every implementation rounds other things.
LOSS_TOLERANCE = {"f32": 1e-4, "bf16": 2e-3}
DATA_TOKENS = 1 << 18  # then from the start again
TURN_SECONDS = 4.0  # aimed at, for the slowest implementation, with 2 to 10 steps
# 1024 tokens a step: 0.3 to 3 s on two such cores; only the 124m takes longer, and at sequence 1024 it cannot take fewer.
TOKENS_PER_STEP = 1024
HYPER = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}


# ---------------------------------------------------------------------------------------------------------------------
# One case: a shape, a sequence length, a number of threads.


def run_case(name: str, length: int, threads: int, args: argparse.Namespace) -> dict:
    case = {"model": SHAPES[name], "sequence_length": length, "tokens_per_step": TOKENS_PER_STEP}
    case |= HYPER | {"seed": 1, "data_tokens": DATA_TOKENS, "precision": args.precision}
    bf16 = ["--bf16"] if args.precision == "bf16" else []
    checked = FEWER_CHECKED.get(name, CHECKED_STEPS)
    result = {"shape": name, "threads": threads} | {k: case[k] for k in ("sequence_length", "tokens_per_step", "model")}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cpu-")))
        (work / "case.json").write_text(json.dumps(case))
        result |= torch_side("prepare", "--dir", work)
        floor_flops = gemm_flops(case)
        rates = torch_side("gemm", "--threads", threads, *bf16)
        workers = []
        for implementation in args.implementations:
            check_memory(workers, result["parameters"])
            worker = start(implementation, case, work, threads, args.binary)
            stack.callback(worker.kill)
            worker.warm_up(checked)
            workers.append(worker)
        result["losses"] = {w.name: [line["loss"] for line in w.lines[:checked]] for w in workers}
        result["loss_difference"] = loss_difference(result["losses"])
        slowest = max(median(line["seconds"] for line in w.lines[-2:]) for w in workers)
        steps = args.steps or min(10, max(2, round(TURN_SECONDS / slowest)))
        result |= {"steps_per_turn": steps, "rounds": [one_round(workers, r, steps) for r in range(args.rounds)]}
        result["peak_mb"] = {w.name: w.peak_mb() for w in workers}
        result["at_rest_mb"] = {w.name: w.start.get("baseline_mb", 0.0) for w in workers}
        result["torch"] = next((w.start["torch"] for w in workers if "torch" in w.start), None)
        # All are stopped: once more, because the floor is the best that the machine could do.
        again = torch_side("gemm", "--threads", threads, *bf16)
    best = max([*rates.values(), *again.values()])
    result |= {"gemm_gflops_per_second": [rates, again], "gemm_gflop_per_step": floor_flops / 1e9}
    result["gemm_floor_seconds"] = floor_flops / 1e9 / best
    return result | summary(result)


def start(name: str, case: dict, work: Path, threads: int, binary: Path) -> Worker:
    stderr = work / f"{name}.stderr"
    if name == OURS:
        config, out = work / "config.toml", work / "run"
        config.write_text(llama_lite_config(case, work))
        command = [str(binary), "pretrain", "--config", str(config), "--init-from", str(work / "model")]
        command += ["--out", str(out), "--device", "cpu", "--threads", str(threads), "--quiet"]
        return Worker(name, command, out / "metrics.jsonl", stderr, case["tokens_per_step"], {})
    flags, tuning = TORCH[name]
    env = tuning | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}
    # No pool of compiler processes: they would outlive their use and compute in others' turns.
    env |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    log = work / f"{name}.jsonl"
    command = torch_command("train", "--dir", work, "--threads", threads, "--log", log)
    flags = flags + (["--bf16"] if case["precision"] == "bf16" else [])
    return Worker(name, command + flags, log, stderr, case["tokens_per_step"], env)


def check_memory(workers: list[Worker], parameters: int) -> None:
    """All stay in memory, stopped or not. A guess: each needs about what the largest so far did."""
    need = 1.2 * max([w.peak_mb() for w in workers], default=16e-6 * parameters)
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(facts["MemAvailable"].split()[0]) * 1024 / 1e6
    if available < need:
        message = f"{available:,.0f} MB of memory are left, the next process needs about {need:,.0f}"
        raise Failed(f"{message}: give fewer --implementations at a time, or smaller --shapes")


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
    }
    return config_text(sections | {name: sections.get(name, {}) | keys for name, keys in changes.items()})


def gemm_flops(case: dict) -> float:
    """Of a step's matrix products, forward and backward (three times the forward)."""
    m, length = case["model"], case["sequence_length"]
    query, key = m["num_attention_heads"] * m["head_dim"], m["num_key_value_heads"] * m["head_dim"]
    layer = m["hidden_size"] * (2 * query + 2 * key + 3 * m["intermediate_size"])
    weights = m["num_hidden_layers"] * layer + m["vocab_size"] * m["hidden_size"]
    # Scores and their product with the values, T/2 positions on average: 2 * 2 * (T / 2) * query, times three.
    attention = m["num_hidden_layers"] * 6 * length * query
    return case["tokens_per_step"] * (6.0 * weights + attention)


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
# What is printed and stored.


def header(implementations: list[str]) -> str:
    titles = ["model (parameters)", "sequence", "threads"]
    titles += [f"{n} tok/s" + ("" if n == OURS else " (llama-lite's gain)") for n in implementations]
    titles += ["CPU s/step", "peak MB (above rest)", "GEMM floor s (share reached)"]
    return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"


def row(result: dict) -> str:
    """A line of the table. Gains have the least and the most of the rounds; cells of several figures are in the columns' order."""
    made, ratios = result["implementations"], result["ratios"]

    def speed(name: str) -> str:
        r = ratios.get(name)
        gain = f" (**{r['median']:.2f}**, {r['least']:.2f}-{r['most']:.2f})" if r else ""
        return f"{made[name]['tokens_per_second']:,.0f}{gain}"

    def peak(m: dict) -> str:
        above = m["peak_mb_above_rest"]
        return f"{m['peak_mb']:,.0f}" + (f" ({above:,.0f})" if above != m["peak_mb"] else "")

    floor = f"{result['gemm_floor_seconds']:.3f}"
    if OURS in made:
        floor += f" ({result['gemm_floor_seconds'] / made[OURS]['seconds']:.0%})"
    cells = [f"{result['shape']} ({result['parameters']:,})", str(result["sequence_length"]), str(result["threads"])]
    cells += [speed(n) for n in made]
    cells += [" / ".join(f"{m['cpu_seconds']:.3f}" for m in made.values()), " / ".join(map(peak, made.values())), floor]
    return "| " + " | ".join(cells) + " |"


def remarks(results: list[dict]) -> Iterator[str]:
    """What a reader of the table must know besides."""
    for threads in sorted({r["threads"] for r in results}):
        for name in TORCH:
            ratios = [r["ratios"][name]["median"] for r in results if r["threads"] == threads and name in r["ratios"]]
            if ratios:
                text = f"least {min(ratios):.2f}, mean {mean(ratios):.2f} over {len(ratios)} cases"
                yield f"{threads} threads, speed against {name}: {text}"
    rest = [mb for r in results for mb in r["at_rest_mb"].values() if mb]
    if rest:
        yield f"in parentheses: memory above the {median(rest):.0f} MB of a PyTorch process at rest (import torch)"
    every = [m for r in results for m in r["implementations"].values()]
    yield f"{results[0]['tokens_per_step']} tokens a step; losses agree within {max(r['loss_difference'] for r in results):.1e}"
    foreign = max(m["foreign_cores"] for m in every)
    if foreign > 0.05:
        yield f"WARNING: other processes used up to {foreign:.2f} cores meanwhile: measure on an idle machine"
    gap = max(abs(m["clock_gap"]) for m in every)
    if gap > 0.05:
        yield f"WARNING: a step's own seconds differ from the driver's clock by up to {gap:.0%}"


def add_arguments(p: argparse.ArgumentParser) -> None:
    whole = [name for name in SHAPES if name != "quick"]
    p.add_argument("--quick", action="store_true", help="one tiny model, two rounds: a test of the harness")
    p.add_argument("--shapes", default=",".join(whole), help=f"among {', '.join(SHAPES)} (default %(default)s)")
    p.add_argument("--sequences", default="256,1024", help="sequence lengths, divisors of 1024 (default %(default)s)")
    p.add_argument("--threads", default="1,2", help="thread counts (default %(default)s)")
    p.add_argument("--precision", choices=list(LOSS_TOLERANCE), default="f32", help="of all (default %(default)s)")
    p.add_argument("--rounds", type=int, default=7, help="turns of each implementation (default %(default)s)")
    p.add_argument("--steps", type=int, help="steps of a turn (default: 2 to 10, about four seconds)")
    names = ", ".join(IMPLEMENTATIONS)
    usual = ",".join(IMPLEMENTATIONS[:4])
    p.add_argument("--implementations", default=usual, help=f"among {names} (default %(default)s)")


def resolve(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """Turns the lists in the arguments into lists and checks them."""
    if args.quick:
        args.shapes, args.sequences, args.threads, args.rounds, args.steps = "quick", "256", "1", 2, 3
    args.shapes, args.implementations = args.shapes.split(","), args.implementations.split(",")
    args.sequences, args.threads = ([int(n) for n in text.split(",")] for text in (args.sequences, args.threads))
    if not set(args.shapes) <= set(SHAPES) or not set(args.implementations) <= set(IMPLEMENTATIONS):
        p.error(f"shapes are {', '.join(SHAPES)}; implementations are {', '.join(IMPLEMENTATIONS)}")
    fit = all(t > 0 and TOKENS_PER_STEP % t == 0 for t in args.sequences)
    if not fit or min(args.threads) < 1 or args.rounds < 1:
        p.error("sequences must divide 1024; threads and rounds are at least 1")


def measure(args: argparse.Namespace) -> int:
    about, results = machine(args.binary), []
    print(f"{about['processor']}, {about['cores']} cores, {about['llama_lite']}, {about['date']}", file=sys.stderr)
    cases = [(s, t, n) for s in args.shapes for t in args.sequences for n in args.threads]
    print(header(args.implementations), flush=True)
    for name, length, threads in cases:
        result = run_case(name, length, threads, args)
        results.append(result)
        print(row(result), flush=True)
        write_json(args.json, about | {"precision": args.precision, "torch": result["torch"], "cases": results})
    print("\n" + "\n".join(f"* {remark}" for remark in remarks(results)))
    apart = [r for r in results if not r["loss_difference"] <= LOSS_TOLERANCE[args.precision]]
    for r in apart:
        case = f"{r['shape']}, sequence {r['sequence_length']}, {r['threads']} threads"
        print(f"bench.py cpu: LOSSES DIFFER ({case}): {r['loss_difference']:.1e} relative", file=sys.stderr)
        for name, losses in r["losses"].items():
            print(f"  {name:>10}: {losses}", file=sys.stderr)
    return 1 if apart else 0


def ended_by(number: int, _frame: object) -> None:
    print(f"bench.py cpu: ended by {signal.Signals(number).name}", file=sys.stderr)
    sys.exit(128 + number)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended_by)
    resolve(args, parser)
    return measure(args)
