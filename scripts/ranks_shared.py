"""What the scripts about ranks share: starting a program on several of them, and comparing what two runs have written.

Never run alone. [`differences`] compares two run directories file by file and byte by byte; ALLOWED lists, field by field, all that may
differ between runs on one rank and on several.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Variables by which launchers speak to their processes: a script that a launcher has started must not hand them on.
LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "SLURM_", "MPI_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_")

CLOCK = "a clock"
MACHINE = "threads and ranks of the machine"
FOLLOWS = "a digest or size of something above"

# File, field, why it may differ. A star stands for any part of a name.
ALLOWED = [
    ("metrics.jsonl", "tokens_per_second", CLOCK),
    ("metrics.jsonl", "data_seconds", CLOCK),
    ("metrics.jsonl", "mfu", CLOCK),
    ("events.jsonl", "time", CLOCK),
    ("events.jsonl", "seconds", CLOCK),
    ("events.jsonl", "stall_seconds", CLOCK),
    ("events.jsonl", "build.threads", MACHINE),
    ("events.jsonl", "build.ranks", MACHINE),
    ("events.jsonl", "bytes_sent", "what the ranks have sent each other"),
    ("times.jsonl", "seconds.*", CLOCK),
    ("replaced/attempt-*.times.jsonl", "seconds.*", CLOCK),
    ("replaced/attempt-*.jsonl", "tokens_per_second", CLOCK),
    ("replaced/attempt-*.jsonl", "data_seconds", CLOCK),
    ("replaced/attempt-*.jsonl", "mfu", CLOCK),
    ("*trainer_state.json", "build.threads", MACHINE),
    ("*trainer_state.json", "build.ranks", MACHINE),
    ("*trainer_state.json", "logs.metrics.jsonl.bytes", FOLLOWS),
    ("*trainer_state.json", "logs.metrics.jsonl.blake3", FOLLOWS),
    ("*trainer_state.json", "logs.times.jsonl.bytes", FOLLOWS),
    ("*trainer_state.json", "logs.times.jsonl.blake3", FOLLOWS),
    ("*manifest.json", "files.trainer_state.json.size", FOLLOWS),
    ("*manifest.json", "files.trainer_state.json.blake3", FOLLOWS),
    ("*manifest.json", "checksum", FOLLOWS),
]

# The event that only several ranks have, and what a resume says of another number of ranks or threads (and of nothing else), and the
# speed after it.
RANKS_EVENT = "ranks"
HARDWARE_EVENTS = {"hardware", "speed"}
HARDWARE_KEYS = {"ranks", "threads"}

# Files that hold nothing but the number of a process and a clock.
PROCESS_FILES = {"run.lock"}


def find_mpiexec() -> None:
    """Puts the MPI of scripts/mpi.sh on PATH if it is there, and removes what a launcher has left in the environment."""
    installed = ROOT / "target/mpi/bin"
    if installed.is_dir():
        os.environ["PATH"] = f"{installed}:{os.environ['PATH']}"
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            del os.environ[name]
    if not shutil.which("mpiexec"):
        sys.exit("no mpiexec: run scripts/mpi.sh, or put that of an MPI 5 on PATH")


def command_on_ranks(program: Path, arguments: list[str], ranks: int, by: str) -> list[str]:
    """The command that runs the program on so many ranks: `by` is "mpiexec", or "--ranks" for the program's own launcher."""
    own = [str(program), *arguments, "--threads", "1", "--quiet"]
    if ranks == 1:
        return own
    return ["mpiexec", "-n", str(ranks), *own] if by == "mpiexec" else [*own, "--ranks", str(ranks)]


# Comparing two runs


def differences(one: Path, other: Path) -> list[str]:
    """Every file and field in which two run directories differ and may not; one line each."""
    found = []
    files = [comparable_files(run) for run in (one, other)]
    for name in sorted(files[0].keys() | files[1].keys()):
        paths = [file.get(name) for file in files]
        if None in paths:
            found.append(f"{name}: only {'the second' if paths[0] is None else 'the first'} run has it")
        elif paths[0].name not in PROCESS_FILES:
            found += file_differences(name, paths[0], paths[1])
    return found


def comparable_files(run: Path) -> dict[str, Path]:
    """The files of a run by a name that both runs have: those of TensorBoard carry time, host and process."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.name.startswith("events.out."):
            name = str(path.parent.relative_to(run) / f"events.out {sum('events.out' in known for known in found)}")
        found[name] = path
    return found


def file_differences(name: str, one: Path, other: Path) -> list[str]:
    data = [path.read_bytes() for path in (one, other)]
    if data[0] == data[1]:
        return []
    if "events.out " in name:
        contents = [tensorboard_records(part) for part in data]
        return [] if contents[0] == contents[1] else [f"{name}: other records"]
    if name.endswith(".json") or name.endswith(".jsonl"):
        return json_differences(name, [parsed(name, part) for part in data])
    if name.endswith(".safetensors"):
        return [f"{name}: {differing_tensor(*data)}"]
    at = next((i for i, (a, b) in enumerate(zip(*data)) if a != b), min(map(len, data)))
    return [f"{name}: lengths {len(data[0])} and {len(data[1])}, first difference at byte {at}"]


def parsed(name: str, data: bytes) -> list:
    """The values of a JSON file or of its lines, without what belongs to several ranks alone."""
    text = data.decode()
    if name.endswith(".json"):
        value = json.loads(text)
        if name.endswith("manifest.json"):
            value["files"] = {file["name"]: file for file in value["files"]}
        return [value]
    rows = [json.loads(line) for line in text.splitlines()]
    if Path(name).name == "events.jsonl":
        rows = [row for row in rows if not is_about_ranks(row)]
    if name.endswith("times.jsonl"):
        for row in rows:
            row["seconds"].pop("exchange", None)
    return rows


def is_about_ranks(event: dict) -> bool:
    if event["kind"] in HARDWARE_EVENTS:
        return {change["key"] for change in event.get("changes", [])} <= HARDWARE_KEYS and event.get("same_arithmetic", True)
    return event["kind"] == RANKS_EVENT


def json_differences(name: str, values: list[list]) -> list[str]:
    if len(values[0]) != len(values[1]):
        return [f"{name}: {len(values[0])} and {len(values[1])} records"]
    found = []
    for i, (a, b) in enumerate(zip(*values)):
        for field, left, right in differing_fields("", a, b):
            if not is_allowed(name, field):
                place = f" record {i + 1} (step {a.get('step')}, {a.get('kind')})" if name.endswith(".jsonl") else ""
                found.append(f"{name}{place}: {field}: {left!r} and {right!r}")
    return found


def differing_fields(field: str, a: object, b: object):
    """Name and both values of every leaf in which two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differing_fields(f"{field}.{key}".lstrip("."), a.get(key, "absent"), b.get(key, "absent"))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from differing_fields(f"{field}[{i}]", x, y)
    elif a != b or type(a) is not type(b):
        yield field, a, b


def is_allowed(name: str, field: str) -> bool:
    return any(fnmatch.fnmatch(name, file) and fnmatch.fnmatch(field, pattern) for file, pattern, _ in ALLOWED)


def differing_tensor(a: bytes, b: bytes) -> str:
    """The first tensor in which two safetensors files differ."""
    headers = []
    for data in (a, b):
        (length,) = struct.unpack("<Q", data[:8])
        headers.append((json.loads(data[8 : 8 + length]), 8 + length))
    if headers[0] != headers[1]:
        return "other tensors or metadata"
    header, start = headers[0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        if a[begin:end] != b[begin:end]:
            count = sum(a[i] != b[i] for i in range(begin, end))
            return f"the tensor {name} {entry['shape']} {entry['dtype']} ({count} of {end - begin} bytes)"
    return "no tensor, but other bytes"


def tensorboard_records(data: bytes) -> list[bytes]:
    """The records of an event file without their time, and without those that are clocks themselves."""
    records = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record, data = data[12 : 12 + length], data[16 + length :]
        # The first field of each is its time: a tag and a double.
        record = record[9:] if record[:1] == b"\x09" else record
        if not any(clock in record for clock in (b"tokens_per_second", b"mfu", b"data_seconds", b"seconds")):
            records.append(record)
    return records


# Processes


def processes_with(text: str) -> dict[int, str]:
    """The processes whose command line contains `text`, this one aside: number and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue  # it has ended meanwhile
        if text in line and state != "Z":
            found[int(entry.name)] = line
    return found


def rank_of(pid: int) -> int | None:
    """The rank that a process is, by its launcher's variables."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    values = dict(entry.split(b"=", 1) for entry in environment if b"=" in entry)
    return int(values[b"PMI_RANK"]) if b"PMI_RANK" in values else None


def ranks_with(text: str, program: Path) -> dict[int, int | None]:
    """The ranks among the processes whose command line contains `text`: number of the process, and rank. A supervisor is none."""
    found = {}
    for pid, line in processes_with(text).items():
        try:
            is_program = os.readlink(f"/proc/{pid}/exe") == str(program)
        except OSError:
            continue
        if is_program and not has_child_with(pid, text):
            found[pid] = rank_of(pid)
    return found


def has_child_with(pid: int, text: str) -> bool:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return False
    return bool(children) and bool(processes_with(text).keys() & set(map(int, children)))


def wait_until_gone(text: str, seconds: float) -> dict[int, str]:
    """Waits for the processes with `text` in their command line; those that are left after so many seconds."""
    end = time.monotonic() + seconds
    while left := processes_with(text):
        if time.monotonic() > end:
            return left
        time.sleep(0.05)
    return {}


def kill_all(pids) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# A run that is disturbed

STEPS = 120
SETTINGS = [
    "train.lanes=8", "train.tokens_per_step=1024", f"train.steps={STEPS}", "checkpoint.every=5", "checkpoint.log_spaced=true",
    "eval.every=15", "sample.every=10", "log.layers_every=7", "log.sequences=true", "log.desync_every=10", "optimizer.moments=bf16",
]  # fmt: skip

# What differs in a run that was resumed, beside what differs between ranks.
RESUMED = [
    ("*trainer_state.json", "attempt", "how often the run was started"),
    ("*trainer_state.json", "logs.times.jsonl.lines", "pieces of work that were repeated"),
    ("*trainer_state.json", "config", "how often the run with all checkpoints saves, and how"),
]
# Files of which a resumed run has others, and those that were being written under a name of their own when their writer was killed.
NOT_COMPARED = re.compile(r"^(events\.jsonl|times\.jsonl|run\.lock|replaced/.*|\.tmp-.*)$")
# A process that ends between a save and the removal of an older checkpoint leaves that; it is compared as all checkpoints are.
OLDER = re.compile(r"^checkpoints/step-\d{8}/\S+: only the second run has it$")

CHECKPOINT = re.compile(r"^step-\d{8}$")


class Broken(Exception):
    """A promise that was not kept."""


class Subject:
    """A small run with saves, validation and samples every few steps, and the uninterrupted ones that it is compared with."""

    def __init__(self, program: Path, work: Path, more: list[str]):
        self.program, self.work = program, work
        self.settings = SETTINGS + more
        ALLOWED.extend(RESUMED)
        self.config = work / "develop.toml"
        shutil.copy(ROOT / "configs/develop.toml", self.config)
        # All runs are made under one name, which is in some of their files.
        self.out = work / "current/run"
        self.out.parent.mkdir()
        self.whole = self.undisturbed("whole", [])
        # A stop saves where it comes.
        every_step = ["checkpoint.every=1", "checkpoint.keep=1000", "checkpoint.background=false", "guard.hang_seconds=600"]
        self.all_checkpoints = self.undisturbed("all", [word for key in every_step for word in ("--set", key)])

    def first_command(self) -> list[str]:
        sets = [word for setting in self.settings for word in ("--set", setting)]
        return ["pretrain", "--config", str(self.config), "--out", str(self.out), *sets]

    def next_command(self) -> list[str]:
        """What a user types next: `resume` once there is a run, the same `pretrain` before."""
        return ["resume", "--ckpt", str(self.out)] if (self.out / "config.toml").exists() else self.first_command()

    def undisturbed(self, name: str, more: list[str]) -> Path:
        subprocess.run(command_on_ranks(self.program, self.first_command() + more, 1, ""), check=True)
        self.out.rename(self.work / name)
        return self.work / name

    def different_from_whole(self) -> list[str]:
        lines = differences(self.whole, self.out)
        return [line for line in lines if not NOT_COMPARED.match(re.split("[: ]", line)[0]) and not OLDER.match(line)]

    def check_checkpoints(self) -> int:
        """Demands that every checkpoint under its name is the one of the uninterrupted run; how many there are."""
        found = sorted(path for path in (self.out / "checkpoints").glob("*") if path.is_dir())
        bad = [path.name for path in found if path.name.startswith(".bad")]
        if bad:
            raise Broken(f"a checkpoint was set aside as damaged: {bad}")
        final = [path for path in found if CHECKPOINT.match(path.name)]
        for path in final:
            whole = self.all_checkpoints / "checkpoints" / path.name
            names = [{file.name for file in side.iterdir()} for side in (whole, path)]
            if names[0] != names[1]:
                raise Broken(f"{path.name} has the files {sorted(names[1])}")
            for name in sorted(names[0]):
                lines = file_differences(f"{path.name}/{name}", whole / name, path / name)
                if lines:
                    raise Broken(f"a checkpoint differs: {lines[:2]}")
            check_sizes(path)
        return len(final)


def check_sizes(checkpoint: Path) -> None:
    for file in json.loads((checkpoint / "manifest.json").read_text())["files"]:
        if (checkpoint / file["name"]).stat().st_size != file["size"]:
            raise Broken(f"{checkpoint.name}/{file['name']} has not the size that its manifest says")


def events(run: Path) -> list[dict]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
