"""`bench.py ranks`: one training step of two ranks with a thread each, beside one rank with two threads and PyTorch's
DistributedDataParallel over gloo, of two processes with a thread each.

It measures as `bench.py cpu` does (long-lived processes in turns, equal losses a condition), but for this:

* All llama-lites but "one-lane" have train.lanes = 2. The losses of two ranks and of one must be the same bits; PyTorch's,
  averaged over its processes, must agree within 1e-4. "one-lane" is the program of those who have one process alone.
* Seconds of a step are the driver's clock over the whole steps of a turn: what happens between steps counts as well.
* mpiexec starts PyTorch's processes, too; they meet by a file and log their losses by themselves, so that gloo moves gradients alone.
* Memory is the sum over the processes; what they share is counted for each.
* The ratio is the median over rounds of (the other's seconds / those of two ranks), so more than 1 means that two ranks are faster.
* The bytes that a rank sends in a step are the program's own count, from the difference of two runs, beside
  2 x 4 bytes x parameters x (ranks - 1) / ranks; they are also counted for 4 ranks.
* "tuned" is PyTorch with an allocator set up as an expert would (`bench.py cpu`); give it in a run of its own if memory is short.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from benches.cpu import CHECKED_STEPS, DATA_TOKENS, HYPER, TUNED, check_memory, llama_lite_config, loss_difference, one_round
from benches.shared import BENCH, SHAPES, Failed, machine, torch_command, torch_side, write_json
from benches.turns import Team, Worker

RANKS = 2
TWO_RANKS, ONE_RANK, ONE_LANE = "2x1", "1x2", "one-lane"
# Flags and environment of `bench.py torch train`.
TORCH = {
    "ddp": ([], {}),
    "ddp-compile": (["--compile", "whole"], {}),
    "ddp-tuned": ([], TUNED),
    "ddp-compile-tuned": (["--compile", "whole"], TUNED),
}
OURS = [TWO_RANKS, ONE_RANK, ONE_LANE]
IMPLEMENTATIONS = [*OURS, *TORCH]
# Least speed of two ranks, as a multiple of the others'.
BARS = {ONE_RANK: 0.95, "ddp": 1.1, "ddp-compile": 1.1}

# (shape, sequence, tokens of a step): every rank has a sequence at least.
CASES = [("10m", 256, 1024), ("10m", 1024, 2048), ("34m", 256, 1024)]
QUICK = [("quick", 64, 512)]
LOSS_TOLERANCE = 1e-4
TURN_SECONDS = 5.0
# Steps of the two runs whose difference is what a step sends.
COUNTED_STEPS = (4, 12)


# ---------------------------------------------------------------------------------------------------------------------
# One case.


def run_case(name: str, length: int, tokens: int, args: argparse.Namespace) -> dict:
    case = {"model": SHAPES[name], "sequence_length": length, "tokens_per_step": tokens}
    case |= HYPER | {"seed": 1, "data_tokens": DATA_TOKENS, "precision": "f32"}
    result = {"shape": name, "sequence_length": length, "tokens_per_step": tokens, "model": SHAPES[name]}
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ranks-")))
        (work / "case.json").write_text(json.dumps(case))
        result |= torch_side("prepare", "--dir", work)
        result["bytes"] = [count_bytes(ranks, case, work, args, result["parameters"]) for ranks in (2, 4)]
        workers = []
        for implementation in args.implementations:
            check_memory(workers, 16e-6 * result["parameters"])
            worker = start(implementation, case, work, args)
            stack.callback(worker.kill)
            worker.warm_up(CHECKED_STEPS)
            workers.append(worker)
        slowest = max(median(line["seconds"] for line in w.lines[-2:]) for w in workers)
        steps = args.steps or min(20, max(3, round(TURN_SECONDS / slowest)))
        result |= {"steps_per_turn": steps, "rounds": [one_round(workers, r, steps) for r in range(args.rounds)]}
        # Only now: of two processes one may have been stopped before it has logged the step that the other one has.
        result["losses"] = {w.name: losses(w) for w in workers}
        result["peak_mb"] = {w.name: w.peak_mb() for w in workers}
        result["torch"] = next((w.start["torch"] for w in workers if "torch" in w.start), None)
        result["parts"] = {name: parts_of_step(work / name / "times.jsonl") for name in args.implementations if name in OURS}
    return result | summary(result)


def start(name: str, case: dict, work: Path, args: argparse.Namespace) -> Worker:
    log, stderr = work / f"{name}.jsonl", work / f"{name}.stderr"
    launcher = [str(args.mpiexec), "-n", str(RANKS)]
    if name in OURS:
        command, log = our_command(name, case, work, args), work / name / "metrics.jsonl"
        if name == TWO_RANKS:
            return Team(name, launcher + command, log, stderr, case["tokens_per_step"], {})
        return Worker(name, command, log, stderr, case["tokens_per_step"], {})
    flags, tuning = TORCH[name]
    env = tuning | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL")}
    env |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
    command = torch_command("train", "--dir", work, "--threads", 1, "--ranks", RANKS, "--log", log, *flags)
    return Team(name, launcher + command, log, stderr, case["tokens_per_step"], env)


def our_command(name: str, case: dict, work: Path, args: argparse.Namespace) -> list[str]:
    lanes = 1 if name == ONE_LANE else RANKS
    return pretrain(name, case, work, args, lanes, 1 if name == TWO_RANKS else 2, steps=1_000_000)


def pretrain(name: str, case: dict, work: Path, args: argparse.Namespace, lanes: int, threads: int, steps: int) -> list[str]:
    """The command of a run in `work / name`: a lane is one micro-batch, as large as what a process of PyTorch has."""
    sequences = case["tokens_per_step"] // case["sequence_length"]
    train = {"lanes": lanes, "tokens_per_step": case["tokens_per_step"], "micro_batch_size": sequences // lanes, "steps": steps}
    text = llama_lite_config(case, work, train=train)
    config = work / f"{name}.toml"
    config.write_text(text)
    command = [str(args.binary), "pretrain", "--config", str(config), "--init-from", str(work / "model")]
    return command + ["--out", str(work / name), "--device", "cpu", "--threads", str(threads), "--quiet"]


def losses(worker: Worker) -> list[float]:
    """Of the first steps: the mean over the processes, where each logs its own."""
    each = [[line["loss"] for line in worker.lines[:CHECKED_STEPS]]]
    if worker.name in TORCH:
        for rank in range(1, RANKS):
            lines = worker.log.with_name(f"{worker.log.name}.{rank}").read_text().splitlines()
            records = [json.loads(line) for line in lines[: CHECKED_STEPS + 1]]
            each.append([record["loss"] for record in records if record["kind"] == "train"][:CHECKED_STEPS])
    return [mean(at_step) for at_step in zip(*each, strict=True)]


def count_bytes(ranks: int, case: dict, work: Path, args: argparse.Namespace, parameters: int) -> dict:
    """What rank 0 sends in a step: by the program's count, and by the formula."""
    sent = []
    sequences = case["tokens_per_step"] // case["sequence_length"]
    longer = case | {"tokens_per_step": case["sequence_length"] * max(sequences, ranks)}
    for steps in COUNTED_STEPS:
        name = f"bytes-{ranks}-{steps}"
        command = [str(args.mpiexec), "-n", str(ranks), *pretrain(name, longer, work, args, ranks, 1, steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"{ranks} ranks ended with {done.returncode}:\n{done.stderr[-2000:]}")
        events = [json.loads(line) for line in (work / name / "events.jsonl").read_text().splitlines()]
        sent.append(next(event["bytes_sent"] for event in events if event["kind"] == "finish"))
    counted = (sent[1] - sent[0]) / (COUNTED_STEPS[1] - COUNTED_STEPS[0])
    return {"ranks": ranks, "counted": counted, "formula": 2 * 4 * parameters * (ranks - 1) / ranks}


def parts_of_step(times: Path) -> dict[str, float]:
    """Median milliseconds of each part of a step, on rank 0."""
    records = [json.loads(line)["seconds"] for line in times.read_text().splitlines()[:-1]]
    steps = [record for record in records if "step" in record][CHECKED_STEPS:]
    return {part: 1000 * median(record[part] for record in steps) for part in steps[0]}


def summary(result: dict) -> dict:
    """Medians over the rounds, for each implementation and for each ratio to two ranks."""
    rounds = [r["turns"] for r in result["rounds"]]
    implementations = {}
    for name in rounds[0]:
        seconds = median(turns[name]["outside_seconds_per_step"] for turns in rounds)
        implementations[name] = {
            "seconds": seconds,
            "tokens_per_second": result["tokens_per_step"] / seconds,
            "cpu_seconds": median(turns[name]["cpu_seconds_per_step"] for turns in rounds),
            "peak_mb": result["peak_mb"][name],
            "foreign_cores": median(turns[name]["foreign_cores"] for turns in rounds),
        }
    ratios = {}
    for name in [n for n in implementations if n != TWO_RANKS and TWO_RANKS in implementations]:
        each = [turns[name]["outside_seconds_per_step"] / turns[TWO_RANKS]["outside_seconds_per_step"] for turns in rounds]
        ratios[name] = {"median": median(each), "least": min(each), "most": max(each), "rounds": each}
    lanes = [n for n in (TWO_RANKS, ONE_RANK) if n in implementations]
    return {
        "implementations": implementations,
        "ratios": ratios,
        "same_bits": len({tuple(result["losses"][n]) for n in lanes}) == 1,
        "loss_difference": loss_difference(result["losses"]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What is printed.


def header(implementations: list[str]) -> str:
    titles = ["model (parameters)", "sequence", "tokens a step"]
    titles += [f"{n} tok/s" + ("" if n == TWO_RANKS else f" ({TWO_RANKS}'s gain)") for n in implementations]
    titles += ["peak MB", f"exchange ms of {TWO_RANKS}", "same bits", "bytes of a step, counted / formula"]
    return "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"


def row(result: dict) -> str:
    made, ratios = result["implementations"], result["ratios"]

    def speed(name: str) -> str:
        r = ratios.get(name)
        gain = f" (**{r['median']:.2f}**, {r['least']:.2f}-{r['most']:.2f})" if r else ""
        return f"{made[name]['tokens_per_second']:,.0f}{gain}"

    cells = [f"{result['shape']} ({result['parameters']:,})", str(result["sequence_length"]), str(result["tokens_per_step"])]
    cells += [speed(n) for n in made] + [" / ".join(f"{m['peak_mb']:,.0f}" for m in made.values())]
    parts = result["parts"].get(TWO_RANKS)
    cells += [f"{parts['exchange']:.1f} of {parts['step']:.1f}" if parts else "", "yes" if result["same_bits"] else "NO"]
    cells += ["; ".join(f"{b['ranks']} ranks {b['counted']:,.0f} / {b['formula']:,.0f}" for b in result["bytes"])]
    return "| " + " | ".join(cells) + " |"


def complaints(results: list[dict]) -> list[str]:
    """What is wrong, beginning with what makes the comparison void."""
    found = []
    for r in results:
        where = f"{r['shape']}, sequence {r['sequence_length']}"
        if not r["same_bits"]:
            found.append(f"{where}: two ranks and one have other losses")
        if not r["loss_difference"] <= LOSS_TOLERANCE:
            found.append(f"{where}: losses differ by {r['loss_difference']:.1e} relative: {r['losses']}")
        # Lengths of messages and of norms of pieces come on top of gradients and weights; shards are cut at pieces.
        found += [f"{where}: {b}" for b in r["bytes"] if not math.isclose(b["counted"], b["formula"], rel_tol=0.02, abs_tol=2e5)]
    return found


def remarks(results: list[dict], quick: bool) -> list[str]:
    found = [f"losses agree within {max(r['loss_difference'] for r in results):.1e}"]
    for name, bar in BARS.items():
        each = [r["ratios"][name]["median"] for r in results if name in r["ratios"]]
        if each and not quick:
            found.append(f"{TWO_RANKS} beside {name}: least {min(each):.2f}, mean {mean(each):.2f}; the bar is {bar}")
    foreign = max(m["foreign_cores"] for r in results for m in r["implementations"].values())
    if foreign > 0.05:
        found.append(f"WARNING: other processes used up to {foreign:.2f} cores meanwhile: measure on an idle machine")
    return found


def find_mpiexec() -> Path:
    """That of scripts/mpi.sh, or the one on PATH."""
    own = Path(os.environ.get("CARGO_TARGET_DIR", BENCH.parent.parent / "target")) / "mpi/bin/mpiexec"
    found = own if own.exists() else shutil.which("mpiexec")
    if not found:
        raise Failed("there is no mpiexec: scripts/mpi.sh installs one")
    return Path(found)


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--quick", action="store_true", help="one tiny model, two rounds: a test of the harness")
    p.add_argument("--shapes", help="only the cases of these, among 10m, 34m")
    p.add_argument("--rounds", type=int, default=7, help="turns of each implementation (default %(default)s)")
    p.add_argument("--steps", type=int, help="steps of a turn (default: 3 to 20, about five seconds)")
    p.add_argument("--mpiexec", type=Path, metavar="FILE", help="starts the ranks (default: that of scripts/mpi.sh, or the one on PATH)")
    usual = ",".join(IMPLEMENTATIONS[:5])
    p.add_argument("--implementations", default=usual, help=f"among {', '.join(IMPLEMENTATIONS)} (default %(default)s)")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    args.implementations = args.implementations.split(",")
    if not set(args.implementations) <= set(IMPLEMENTATIONS):
        parser.error(f"implementations are {', '.join(IMPLEMENTATIONS)}")
    args.mpiexec = (args.mpiexec or find_mpiexec()).resolve()
    if args.quick:
        args.rounds, args.steps = 2, 3
    wanted = args.shapes.split(",") if args.shapes else None
    cases = QUICK if args.quick else [case for case in CASES if wanted is None or case[0] in wanted]
    about, results = machine(args.binary), []
    print(f"{about['processor']}, {about['cores']} cores, {about['llama_lite']}, {about['date']}", file=sys.stderr)
    print(header(args.implementations), flush=True)
    for case in cases:
        results.append(run_case(*case, args))
        print(row(results[-1]), flush=True)
        write_json(args.json, about | {"torch": results[-1]["torch"], "cases": results})
    print("\n" + "\n".join(f"* {remark}" for remark in remarks(results, args.quick)))
    wrong = complaints(results)
    for line in wrong:
        print(f"bench.py ranks: {line}", file=sys.stderr)
    return 1 if wrong else 0
