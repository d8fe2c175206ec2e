#!/usr/bin/env python3
"""The checks of gpu_check.sh, which sets the libraries up and tells the arguments.

The binary comes from a machine with Rust, for x86-64 Linux with glibc 2.34 or newer; a card's machine needs no Rust. A release build has line tables
and takes 145 MB; stripped, it takes 24 to 38 MB:

  cargo build --profile dist --features cuda,cudnn --locked        target/dist/llama-lite: stripped, minutes of link-time optimisation
  strip -o llama-lite target/release/llama-lite                    or the same of a release build

Each call takes at most --minutes, so there are two. The second one keeps what the first has found in gpu_check.json:

  scripts/gpu_check.sh ./llama-lite --only kernels,losses,exact
  scripts/gpu_check.sh ./llama-lite --only bench,parts,arms --micro-batches 16,32

The sections:

  kernels  llama-lite doctor: every kernel's values and gradients against the CPU's, in f32 and bf16
  losses   200 steps of a small model: CPU f32, GPU f32, GPU bf16, and PyTorch in f32 and bf16 from the same weights and data
  exact    the same run twice has the same bits (by the same algorithms of products, which each run measures for itself), and so has one that was
           stopped and resumed
  bench    the 1.7B model at several micro-batches, llama-lite and PyTorch in turns on the same card, with peak memory; MFU by the convention
           6 N + 12 L T d of the parameters in products, of the card's dense bf16 peak. Then the fastest of each with 8 micro-batches a step: what
           a step of the recipe's 32 takes follows, as t(1) + 31 (t(8) - t(1)) / 7
  parts    the same model: time of every kernel and product of a step, against the least that its operations and bytes can take; of every product by
           the measured algorithm and by cuBLAS's choice; tokens/s of validation and of decoding
  arms     the same again with the algorithms that cuBLAS itself chooses for products instead of the measured ones, with our own attention instead of
           cuDNN's, with attention's gradient of 1, 2 and 4 sequences at a time, with activations all kept or blocks computed again, and with
           PyTorch compiled in one piece or with separate products for q, k, v, gate and up

A micro-batch that does not fit is a row of the table, and so is what the time did not suffice for: what matters most comes first. PyTorch runs
both with autocast, whose residual stream is f32, and in bf16 throughout, as llama-lite does; its fastest arm is what llama-lite is compared with.
llama-lite's gradients have a fixed order of sums, PyTorch's have not. `--quick` takes a tiny model and few steps: it checks this script, with
--device cpu even where there is no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import benches.arms as kinds
from benches.shared import config_text, torch_command

SMALL = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
             vocab_size=4096, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=1024)
LARGE = dict(hidden_size=2048, intermediate_size=5120, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
             vocab_size=50304, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=1024)
# Bytes a second that a copy reaches.
BANDWIDTHS = {"H200": 4.3e12, "H100": 3.0e12, "A100": 1.7e12, "4090": 0.9e12}
PEAKS = {"H100": 989.5e12, "H200": 989.5e12, "A100": 312e12, "4090": 165.2e12}
# Seconds that a command may take, and when the last one must have ended.
LIMITS = SimpleNamespace(command_s=150.0, deadline=math.inf)
HYPER = dict(lr=1e-3, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1, grad_clip=1.0)


def main() -> int:
    """Runs the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--only", default="kernels,losses,exact", help="sections, in this order (default: %(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--micro-batches", default="16,32")
    parser.add_argument("--minutes", type=float, default=8.5, help="everything has ended after so many (default: %(default)s)")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    args.deadline = LIMITS.deadline = time.monotonic() + args.minutes * 60
    args.only = args.only.split(",")
    args.machine = machine(args)
    print(", ".join(f"{k} {v}" for k, v in args.machine.items()), flush=True)
    result = earlier_sections(args) | {"machine": args.machine, "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    failed = [name for name in args.only if not run_section(args, result, name)]
    print_table(result)
    return int(bool(failed))


def run_section(args: argparse.Namespace, result: dict, name: str) -> bool:
    """Runs a section and writes down what it finds; whatever becomes of it, the others are not concerned."""
    begun = time.monotonic()
    result[name] = {"ok": False}

    def keep(found: dict) -> None:
        result[name] = found
        save(args, result)

    args.save = keep
    try:
        with tempfile.TemporaryDirectory(dir=scratch(), ignore_cleanup_errors=True) as tmp:
            result[name] = SECTIONS[name](args, Path(tmp))
    except Exception as error:
        # What was found before is kept.
        result[name] = result[name] | {"ok": False, "error": f"{type(error).__name__}: {error}"}
    result[name]["seconds"] = time.monotonic() - begun
    save(args, result)
    ok = result[name].get("ok", True)
    print(f"{name}: {'ok' if ok else 'FAILED'} in {result[name]['seconds']:.0f} s", flush=True)
    return ok


def save(args: argparse.Namespace, result: dict) -> None:
    """What is known so far: the machine may go at any moment. A full disk must not cost the measurements that are still printed."""
    path = args.out / "gpu_check.json"
    try:
        path.with_suffix(".tmp").write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".tmp").replace(path)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr, flush=True)


def earlier_sections(args: argparse.Namespace) -> dict:
    """What earlier calls have found with the same program on the same machine."""
    try:
        found = json.loads((args.out / "gpu_check.json").read_text())
        is_same = found["machine"] == args.machine
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: found[name] for name in SECTIONS if is_same and name in found}


def scratch() -> str | None:
    """Memory or disk, whichever has more room: a checkpoint of the large model takes 20.6 GB."""
    places = [p for p in ["/dev/shm", os.environ.get("TMPDIR", "/tmp"), str(Path.cwd())] if Path(p).is_dir()]
    return max(places, key=lambda p: shutil.disk_usage(p).free, default=None)


def run_to_end(command: list[str], timeout: float | None = None, environment: dict | None = None) -> subprocess.CompletedProcess:
    """A command to its end, or until its time is over: then it is killed, and what it has said until then is all there is. Its exit status is then
    negative, as of any process that a signal has ended."""
    left_s = min(timeout or math.inf, LIMITS.command_s, LIMITS.deadline - time.monotonic())
    if left_s <= 0:
        raise RuntimeError("no time left")
    # In files: whoever holds the other end of a pipe could keep it open after the kill.
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as words:
        environment = dict(os.environ, **(environment or {}))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=words, env=environment, start_new_session=True)
        over = wait_or_kill(process, left_s)
        out.seek(0), words.seek(0)
        said = words.read() + (f"\nkilled: no end within {left_s:.0f} s" if over else "")
        return subprocess.CompletedProcess(command, -signal.SIGKILL if over else process.returncode, out.read(), said)


def wait_or_kill(process: subprocess.Popen, seconds: float) -> bool:
    """Waits for the end of a process and kills it, with those that it has started, if there is none within `seconds`; whether that was so."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        kill(process)
        return True


def kill(process: subprocess.Popen) -> None:
    """Ends a process and those that it has started. One that hangs in the driver may not even end then: it is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass


def run_command(command: list[str], check: bool = True, timeout: float | None = None, environment: dict | None = None) -> subprocess.CompletedProcess:
    """A command to its end, with its words if it fails."""
    done = run_to_end(command, timeout, environment)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])}: exit {done.returncode}: {done.stderr[-600:]}")
    return done


def run(args: argparse.Namespace, *command: str, device: str | None = None, check: bool = True, environment: dict | None = None) -> subprocess.CompletedProcess:
    """llama-lite to its end."""
    return run_command([str(args.binary), *map(str, command), "--device", device or args.device], check, environment=environment)


def machine(args: argparse.Namespace) -> dict:
    """What this ran on. Each of these may fail without harm to the checks."""
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    found = {"llama_lite": first_words([str(args.binary), "--version"]), "binary_mb": round(args.binary.stat().st_size / 1e6)}
    if shutil.which("nvidia-smi"):
        line = first_words(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
        values = [value.strip() for value in line.split(",")]
        found |= dict(zip(query.split(","), values)) if len(values) == query.count(",") + 1 else {"nvidia-smi": line}
    found["torch"] = first_words([sys.executable, "-c", "import torch; print(torch.__version__, torch.version.cuda)"])
    return found


def first_words(command: list[str]) -> str:
    """The first line that a command prints, or the last one of its complaints."""
    try:
        done = run_to_end(command, timeout=60)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    lines = done.stdout.strip().splitlines()[:1] or done.stderr.strip().splitlines()[-1:]
    return lines[0] if lines else f"exit {done.returncode}"


# ---------------------------------------------------------------------------------------------------------------------


def doctor(args: argparse.Namespace) -> subprocess.CompletedProcess:
    """What the program says of the card and its kernels: asked once, since on a card it takes a while. That it does not end, or crashes, is an
    answer, too."""
    if "doctor" not in args:
        try:
            args.doctor = run(args, "doctor", check=False)
        except Exception as error:
            args.doctor = subprocess.CompletedProcess([], -1, "", f"{type(error).__name__}: {error}")
    return args.doctor


def card(args: argparse.Namespace) -> str:
    """The card's name by nvidia-smi, or else by the program; empty if neither says it."""
    line = re.search(r"^gpu +(.*)", "" if "name" in args.machine else doctor(args).stdout, re.M)
    return args.machine.get("name") or (line[1] if line else "")


def kernels(args: argparse.Namespace, _: Path) -> dict:
    """doctor's own verdict, and its lines."""
    done = doctor(args)
    lines = re.findall(r"^  (.+?)  +([\d.e+-]+)(?: of ([\d.e+-]+))?  (ok|FAILED)$", done.stdout, re.M)
    compared = [dict(what=what.strip(), difference=float(d), limit=float(limit or 0), ok=ok == "ok") for what, d, limit, ok in lines]
    errors = dict(re.findall(r"^  (.+?)  +FAILED: (.*)$", done.stdout, re.M))
    failed = [c["what"] for c in compared if not c["ok"]] + list(errors)
    said = done.stdout[-12000:] + done.stderr[-1000:]
    return {"ok": done.returncode == 0, "exit": done.returncode, "failed": failed, "errors": errors, "compared": compared, "said": said}


def write_case(directory: Path, model: dict, length: int, tokens_per_step: int, data_tokens: int) -> dict:
    """Weights, tokenizer and tokens for llama-lite and PyTorch alike; the weights are drawn by each itself for the large model."""
    values = dict(model=model, sequence_length=length, tokens_per_step=tokens_per_step, data_tokens=data_tokens, seed=1, **HYPER)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "case.json").write_text(json.dumps(values))
    return values


def write_config(values: dict, directory: Path, steps: int, micro: int, precision: str, more: dict | None = None) -> Path:
    """llama-lite's configuration of a case."""
    sections = {
        "model": values["model"],
        "data": {"train": [str(directory / "train.npy")], "tokenizer": str(directory / "model" / "tokenizer.json"), "shuffle": False},
        "train": {"sequence_length": values["sequence_length"], "micro_batch_size": micro, "tokens_per_step": values["tokens_per_step"],
                  "steps": steps, "precision": precision},
        "optimizer": {key: values[key] for key in HYPER},
        "schedule": {"kind": "constant"},
        "checkpoint": {"every": 0, "keep": 1, "last": False},
        "eval": {"every": 0},
        "log": {"layers_every": 0},
    }
    for section, keys in (more or {}).items():
        sections[section] = sections.get(section, {}) | keys
    path = directory / f"config-{precision}-{micro}-{steps}.toml"
    path.write_text(config_text(sections))
    return path


def read_steps(path: Path) -> list[dict]:
    """The steps that a run has logged so far, in its directory or PyTorch's file."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break  # being written
    return [r for r in records if r.get("kind") == "train"]


def losses(args: argparse.Namespace, tmp: Path) -> dict:
    """Largest difference of the losses from the CPU's in f32, of llama-lite's GPU and of PyTorch's."""
    steps, length, rows = (20, 64, 2) if args.quick else (200, 256, 8)
    values = write_case(tmp, SMALL, length, length * rows, steps * length * rows + 1)
    run_command(torch_command("prepare", "--dir", tmp))
    curves: dict[str, list[float]] = {}

    def keep(name: str, log: Path) -> None:
        curves[name] = [r["loss"] for r in read_steps(log)]
        args.save({"ok": False, "curves": curves})

    arms = [("cpu f32", "cpu", "f32"), ("gpu f32", args.device, "f32"), ("gpu bf16", args.device, "bf16")]
    for name, device, precision in arms if args.device != "cpu" else arms[:1]:
        path, out = write_config(values, tmp, steps, rows, precision), tmp / name.replace(" ", "-")
        run(args, "pretrain", "--config", path, "--init-from", tmp / "model", "--out", out, "--quiet", device=device)
        keep(name, out)
    for name, flags in [("torch f32", []), ("torch bf16", ["--bf16"]), ("torch bf16 throughout", ["--bf16-model"])]:
        log = tmp / f"{name.replace(' ', '-')}.jsonl"
        run_command(torch_command("train", "--dir", tmp, "--steps", steps, "--log", log, "--device", args.device, *flags))
        keep(name, log)

    def apart(a: str, b: str) -> float | None:
        return max(abs(x - y) for x, y in zip(curves[a], curves[b])) if a in curves and b in curves else None

    found = {f"{a} - {b}": apart(a, b) for a, b in [("gpu f32", "cpu f32"), ("torch f32", "cpu f32"), ("gpu bf16", "gpu f32"), ("torch bf16", "torch f32"), ("torch bf16 throughout", "torch f32")]}
    ok = args.device == "cpu" or kinds.losses_agree(found)
    return {"ok": ok, "largest_difference": found, "first": {n: c[0] for n, c in curves.items()}, "last": {n: c[-1] for n, c in curves.items()}}


def exact(args: argparse.Namespace, tmp: Path) -> dict:
    """Two runs, and one in two parts: the same logs and weights."""
    steps, length, rows = 20, 64 if args.quick else 256, 8
    values = write_case(tmp, SMALL, length, length * rows, steps * length * rows + 1)
    run_command(torch_command("prepare", "--dir", tmp))
    path = write_config(values, tmp, steps, 4, "auto", {"checkpoint": {"every": 10, "keep": 9, "last": True}})

    def outcome(out: Path) -> tuple:
        weights = hashlib.sha256((out / "checkpoints" / f"step-{steps:08}" / "model.safetensors").read_bytes()).hexdigest()
        moments = hashlib.sha256((out / "checkpoints" / f"step-{steps:08}" / "optimizer.safetensors").read_bytes()).hexdigest()
        return [(r["loss"], r["grad_norm"], r["chain"]) for r in read_steps(out)], weights, moments

    common = ["pretrain", "--config", path, "--init-from", tmp / "model", "--quiet"]
    run(args, *common, "--out", tmp / "one")
    chosen = tmp / "one" / "products.json"
    # A run measures algorithms, and close ones may win by turns: the second run takes those of the first.
    run(args, *common, "--out", tmp / "two", environment={"LLAMA_LITE_PRODUCTS": str(chosen)} if chosen.exists() else None)
    one, two = outcome(tmp / "one"), outcome(tmp / "two")
    found = {"ok": False, "twice": one == two, "steps": len(one[0])}
    args.save(found)
    shutil.copytree(tmp / "one", tmp / "resumed")
    run(args, "resume", "--ckpt", tmp / "resumed" / "checkpoints" / "step-00000010", "--quiet")
    resumed = outcome(tmp / "resumed")
    return found | {"ok": one == two == resumed, "resumed": one == resumed}


# ---------------------------------------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """The most memory of the card in use while it runs, in MiB, by nvidia-smi."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.over = 0, threading.Event()

    def run(self) -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while shutil.which("nvidia-smi"):
            try:
                text = run_to_end(query, timeout=5).stdout
            except RuntimeError:
                return  # the time is over
            self.most = max(self.most, *(int(x) for x in text.split() if x.isdigit()), 0)
            if self.over.wait(1):
                return

    def end(self) -> int:
        """The most until now."""
        self.over.set()
        self.join(10)
        return self.most


def time_steps(command: list[str], count, wanted: int, limit_s: float, first_s: float, environment: dict) -> dict:
    """Runs `command`, with `environment` added, until `count()` gives `wanted` seconds of steps, or for `limit_s` after the first, which may take `first_s`;
    then kills it."""
    memory, stderr = Memory(), tempfile.TemporaryFile("w+", errors="replace")
    memory.start()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=dict(os.environ, **environment), start_new_session=True)
    first, begun = None, time.monotonic()
    try:
        while process.poll() is None and time.monotonic() < min(begun + first_s + limit_s, LIMITS.deadline):
            times = count()
            first = first or (time.monotonic() if times else None)
            if len(times) >= wanted or time.monotonic() > (first + limit_s if first else begun + first_s):
                break
            time.sleep(0.2)
    finally:
        ended = process.poll()
        kill(process)
        most = memory.end()
    stderr.seek(0)
    times, said = count()[2:], stderr.read()[-600:]
    if not times:
        why = "no step in time" if ended is None else f"exit {ended}"
        return {"error": "out of memory" if re.search("out of memory|OUT_OF_MEMORY", said, re.I) else f"{why}: {said}"}
    return {"step_s": statistics.median(times), "steps": len(times), "memory_mib": most}


def has_time(args: argparse.Namespace, wanted_s: float) -> bool:
    """Whether there is time for something that takes so long."""
    return time.monotonic() + wanted_s < args.deadline


def card_value(args: argparse.Namespace, known: dict) -> float | None:
    """What of `known` the card's name tells."""
    return next((value for gpu, value in known.items() if gpu in card(args)), None)


def micro_batches(args: argparse.Namespace) -> list[int]:
    return [2, 4] if args.quick else [int(n) for n in args.micro_batches.split(",")]


def bench(args: argparse.Namespace, tmp: Path) -> dict:
    """llama-lite and PyTorch at every micro-batch."""
    wanted = [(micro, arm) for micro in micro_batches(args) for arm in [kinds.LLAMA_LITE, kinds.TORCH, kinds.TORCH_AUTOCAST]]
    # The other sections take their time, too.
    return measure_arms(args, tmp, wanted, 60 * ("parts" in args.only and not args.quick))


def arms(args: argparse.Namespace, tmp: Path) -> dict:
    """Other ways to do the same, while there is time."""
    if args.quick:
        return measure_arms(args, tmp, [(2, kinds.ALL_KEPT)], 0)
    whole = [(micro, kinds.TORCH_WHOLE) for micro in micro_batches(args)]
    ours = [(16, arm) for arm in [kinds.DEFAULT_PRODUCTS, kinds.OWN_ATTENTION, kinds.ALL_KEPT, *kinds.SLICES]]
    return measure_arms(args, tmp, [*ours, *whole, (16, kinds.TORCH_UNPACKED), (8, kinds.BLOCKS_AGAIN), (32, kinds.OWN_ATTENTION)], 0)


def measure_arms(args: argparse.Namespace, tmp: Path, wanted_arms: list, reserve_s: float) -> dict:
    """A step = forward and backward of one micro-batch and an update, of each (micro-batch, arm); then of several micro-batches, of the fastest."""
    model, length = (SMALL, 64) if args.quick else (LARGE, 1024)
    flops = 6 * sum_products(model) + 12 * model["num_hidden_layers"] * length * model["num_attention_heads"] * model["head_dim"]
    peak = card_value(args, PEAKS)
    found: dict = {"ok": False, "rows": [], "flops_per_token": flops, "peak": peak, "card": card(args)}
    largest = max(micro for micro, _ in wanted_arms)
    write_case(tmp, model, length, length * largest, 40 * length * largest + 1)
    run_command(torch_command("prepare", "--dir", tmp, "--no-weights"))

    def measure(micro: int, arm: kinds.Arm, count: int = 1) -> dict:
        row = {"system": arm.name, "micro_batch": micro}
        try:
            left_s = args.deadline - reserve_s - time.monotonic()
            return row | (measure_arm(args, tmp, micro, arm, (model, length), left_s, count) if left_s > 30 else {"error": "no time left"})
        except Exception as error:  # a row's trouble must not cost the others
            return row | {"error": f"{type(error).__name__}: {error}"}

    for micro, arm in wanted_arms:
        row = measure(micro, arm)
        if "step_s" in row:
            row["tokens_per_second"] = length * micro / row["step_s"]
            row["mfu"] = row["tokens_per_second"] * flops / peak if peak else None
        found["rows"].append(row)
        found["ok"] = found["ok"] or ("step_s" in row and row["system"].startswith("llama-lite"))
        args.save(found)
        print(json.dumps(row), flush=True)

    def speeds(system: str, micro: int | None = None) -> list[float]:
        rows = [r for r in found["rows"] if r["system"].startswith(system) and "step_s" in r]
        return [r["tokens_per_second"] for r in rows if micro in (None, r["micro_batch"])]

    found["best"] = {system: max(speeds(system), default=None) for system in ["llama-lite", "torch"]}
    if all(found["best"].values()):
        found["ratio"] = found["best"]["llama-lite"] / found["best"]["torch"]
        both = [micro for micro in {r["micro_batch"] for r in found["rows"]} if speeds("llama-lite", micro) and speeds("torch", micro)]
        found["ratios"] = {micro: max(speeds("llama-lite", micro)) / max(speeds("torch", micro)) for micro in sorted(both)}

    found["recipe"] = []
    for system in ["llama-lite", "torch"]:
        timed = [(r, a) for r, (_, a) in zip(found["rows"], wanted_arms) if r["system"].startswith(system) and "step_s" in r]
        # Gradients that are kept over micro-batches take memory: the second fastest may fit where the fastest does not.
        for one, arm in sorted(timed, key=lambda pair: -pair[0]["tokens_per_second"])[:2]:
            row = measure(one["micro_batch"], arm, kinds.MEASURED)
            if "step_s" in row:
                row |= kinds.of_recipe(one["step_s"], row.pop("step_s"), length * row["micro_batch"], flops, peak)
            found["recipe"].append(row)
            args.save(found)
            print(kinds.describe(row), flush=True)
            if "steps_s" in row:
                break
    return found


def measure_arm(args: argparse.Namespace, tmp: Path, micro: int, arm: kinds.Arm, shape: tuple, left_s: float, count: int) -> dict:
    """One arm, in steps of `count` micro-batches of `micro` sequences: median step, memory, losses."""
    (_, more, environment, compiled), (model, length) = arm, shape
    wanted, limit_s = (6, 20) if args.quick else (14, 40)
    if count > 1:
        wanted, limit_s = 5, 2 * limit_s
    directory = Path(tempfile.mkdtemp(prefix="arm-", dir=tmp))
    tokens = length * micro * count
    values = write_case(directory, model, length, tokens, 40 * tokens + 1)
    (directory / "train.npy").symlink_to(tmp / "train.npy")
    (directory / "model").symlink_to(tmp / "model")
    log, out = directory / "torch.jsonl", directory / "run"
    if compiled:
        command = torch_command("train", "--dir", directory, "--steps", 1_000_000, "--log", log, "--device", args.device, "--micro-batch", micro, "--fresh", *compiled)
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | environment
    else:
        path = write_config(values, directory, 1_000_000, micro, "auto", more)
        command = [str(args.binary), "pretrain", "--config", str(path), "--out", str(out), "--quiet", "--device", args.device]

    def seconds() -> list[float]:
        return [r["seconds"] if compiled else tokens / r["tokens_per_second"] for r in read_steps(log if compiled else out)]

    row = time_steps(command, seconds, wanted, min(limit_s, left_s), min(LIMITS.command_s, left_s), environment)
    curve = [r["loss"] for r in read_steps(log if compiled else out)]
    if curve:
        # Weights are drawn by each itself: alike, not equal.
        row["losses"] = [curve[0], curve[min(13, len(curve) - 1)]]
    events = out / "events.jsonl"
    if events.exists() and '"out_of_memory"' in events.read_text():
        row = {"error": "out of memory; a smaller micro-batch was taken", "instead": row}
    shutil.rmtree(directory, ignore_errors=True)
    return row


# ---------------------------------------------------------------------------------------------------------------------


def least_bytes(name: str, m: dict, tokens: int, parameters: int) -> float | None:
    """Bytes that one launch of a kernel cannot do without, of the large model in bf16; None if they are not what bounds it."""
    c, f, v = m["hidden_size"], m["intermediate_size"], m["vocab_size"]
    per_token = {
        "rms_norm_bf16": 8 * c, "rms_norm_recompute_bf16": 4 * c, "rms_norm_backward_bf16": 8 * c, "swiglu_bf16": 6 * f, "swiglu_backward_bf16": 10 * f,
        **dict.fromkeys(["rope_bf16", "rope_d64_bf16", "rope_d128_bf16"], 4 * (m["num_attention_heads"] + m["num_key_value_heads"]) * m["head_dim"]),
        "embedding_bf16": 4 * c, "embedding_backward_bf16": 2 * c,
        "attention_delta_bf16": 4 * m["num_attention_heads"] * m["head_dim"], "cross_entropy_bf16": 4 * v,
    }
    per_parameter = {"adamw_f32": 30, "sum_of_squares": 4, "zero": 4}
    if name in per_parameter:
        return per_parameter[name] * parameters
    return per_token[name] * tokens if name in per_token else None


def parts(args: argparse.Namespace, tmp: Path) -> dict:
    """Launches of a step against their floors; decoding; validation. One that fails leaves the others alone."""
    model, length, micro = (SMALL, 64, 2) if args.quick else (LARGE, 1024, 16)
    values = write_case(tmp, model, length, length * micro, 40 * length * micro + 1)
    run_command(torch_command("prepare", "--dir", tmp, "--no-weights"))
    found: dict = {"ok": True, "launches": [], "missing": [], "errors": {}}
    for name, measure in [("launches", measure_launches), ("decoding", measure_decoding), ("validation", measure_validation)]:
        if not has_time(args, 25):
            found["missing"].append(name)
            continue
        try:
            measure(args, tmp, values, micro, found)
        except Exception as error:
            found["ok"] = False
            found["errors"][name] = f"{type(error).__name__}: {error}"
        args.save(found)
    return found


def measure_launches(args: argparse.Namespace, tmp: Path, values: dict, micro: int, found: dict) -> None:
    """Three steps with the time of every launch; the checkpoint is what decoding starts from."""
    model, times, steps = values["model"], tmp / "times.json", 3
    peak, bandwidth = card_value(args, PEAKS), card_value(args, BANDWIDTHS)
    parameters = sum_products(model) + model["vocab_size"] * model["hidden_size"]
    # Where there is no room for 12 bytes a parameter, launches are measured without what decoding needs.
    has_room = shutil.disk_usage(tmp).free > 14 * parameters
    path = write_config(values, tmp, steps, micro, "auto", {"checkpoint": {"last": has_room}})
    command = [str(args.binary), "pretrain", "--config", str(path), "--out", str(tmp / "run"), "--quiet", "--device", args.device]
    done = run_command(command, check=False, environment={"LLAMA_LITE_OP_TIMES": str(times)})
    # The program writes them before it saves: one that is killed while it does has still measured.
    for row in json.loads(times.read_text()) if times.exists() else []:
        data = least_bytes(row["name"], model, values["sequence_length"] * micro, parameters)
        floor = row["flops"] / peak if peak and row["flops"] else data / bandwidth if bandwidth and data else None
        found["launches"].append(row | {"seconds_per_step": row["launches"] * row["median"] / steps, "floor_per_launch": floor})
    found["launches"].sort(key=lambda r: -r["seconds_per_step"])
    found["products"] = read_products(tmp / "run" / "events.jsonl")
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-600:]}")


def read_products(events: Path) -> list[dict]:
    """What a run has measured of the algorithms of its products: microseconds by the one that it took and by that of cuBLAS's choice."""
    lines = events.read_text().splitlines() if events.exists() else []
    return [product for line in lines if '"kind":"products"' in line for product in json.loads(line)["chosen"]]


def measure_decoding(args: argparse.Namespace, tmp: Path, values: dict, _: int, found: dict) -> None:
    """Tokens a second of `sample`."""
    bandwidth = card_value(args, BANDWIDTHS)
    tokens = 32 if args.quick else 256
    done = run(args, "sample", "--ckpt", tmp / "run", "--prompt", "a" * 100, "--max-tokens", tokens, "--temperature", 1, "--top-k", 0, "--seed", 1, check=False)
    shutil.rmtree(tmp / "run", ignore_errors=True)
    found["decode_said"] = done.stderr[-400:]
    speed = re.search(r"([\d.]+)(k?) tokens/s", done.stderr)
    if not speed:
        raise RuntimeError(f"exit {done.returncode}, no tokens/s: {done.stderr[-200:]}")
    found["decode_tokens_per_second"] = float(speed[1]) * (1000 if speed[2] else 1)
    if bandwidth:
        # Every token reads all weights but the embedding once.
        found["decode_of_bandwidth"] = found["decode_tokens_per_second"] * 2 * sum_products(values["model"]) / bandwidth


def measure_validation(args: argparse.Namespace, tmp: Path, values: dict, micro: int, found: dict) -> None:
    """Tokens a second of a validation, as `plan` measures it."""
    more = {"data": {"train": [str(tmp / "train.npy")], "val": [str(tmp / "train.npy")]}, "eval": {"every": 1000, "val_tokens": 262_144}}
    path = write_config(values, tmp, 1000, micro, "auto", more)
    done = run(args, "plan", "--config", path, "--probe", "--quiet", check=False)
    found["validation_said"] = (done.stdout + done.stderr)[-1500:]
    seconds = re.search(r"([\d.]+) s a validation", done.stdout)
    if not seconds:
        raise RuntimeError(f"exit {done.returncode}, no time of a validation: {done.stderr[-200:]}")
    found["validation_s"] = float(seconds[1])
    found["validation_tokens_per_second"] = min(262_144, values["data_tokens"]) / float(seconds[1])


def sum_products(m: dict) -> int:
    """Parameters that are in a matrix product."""
    heads = (m["num_attention_heads"] + 2 * m["num_key_value_heads"]) * m["head_dim"]
    block = m["hidden_size"] * heads + m["num_attention_heads"] * m["head_dim"] * m["hidden_size"] + 3 * m["hidden_size"] * m["intermediate_size"]
    return m["num_hidden_layers"] * block + m["hidden_size"] * m["vocab_size"]


def print_table(result: dict) -> None:
    """The short one."""
    print("\n" + ", ".join(f"{k} {v}" for k, v in result["machine"].items()))
    for name in SECTIONS:
        if name in result:
            part = result[name]
            worst = part.get("largest_difference") or part.get("error") or {k: v for k, v in part.items() if k in ("failed", "twice", "resumed", "best", "ratio", "ratios", "missing") or "_per_second" in k or "_of_" in k}
            print(f"{name:<8} {'ok' if part.get('ok') else 'FAILED':<7} {worst}")
    for row in result.get("bench", {}).get("rows", []) + result.get("arms", {}).get("rows", []):
        if "step_s" in row:
            mfu = f"{100 * row['mfu']:.1f} %" if row["mfu"] else "-"
            print(f"  {row['system']:<25} micro-batch {row['micro_batch']:<3} {1e3 * row['step_s']:>8.1f} ms  {row['tokens_per_second']:>9,.0f} tokens/s  MFU {mfu:>7}  {row['memory_mib']:>7} MiB")
        else:
            print(f"  {row['system']:<25} micro-batch {row['micro_batch']:<3} {row['error']}")
    for row in result.get("bench", {}).get("recipe", []) + result.get("arms", {}).get("recipe", []):
        print(f"  {kinds.describe(row)}")
    for row in result.get("parts", {}).get("products", []):
        print(f"  product {row['product']:<48} {row['microseconds']:>9.1f} us, {row['default_microseconds']:.1f} by cuBLAS's choice, {row['tried']} tried")
    for row in result.get("parts", {}).get("launches", [])[:16]:
        floor = f"{100 * row['floor_per_launch'] / row['median']:>4.0f} % of its floor" if row["floor_per_launch"] and row["median"] else ""
        print(f"  {row['name']:<44} {1e3 * row['seconds_per_step']:>8.2f} ms a step {floor}")


SECTIONS = {"kernels": kernels, "losses": losses, "exact": exact, "bench": bench, "parts": parts, "arms": arms}

if __name__ == "__main__":
    sys.exit(main())
