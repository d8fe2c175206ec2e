#!/usr/bin/env python3
"""Gives several ranks what goes wrong on clusters, and demands a clear end: other configurations, data or programs on one of them, dead
launchers, ranks that start late, never, or stop answering, missing libraries, slow and full disks, signals.

  python3 scripts/ranks_faults.py PROGRAM                     some ten minutes on two cores
  python3 scripts/ranks_faults.py PROGRAM --only TEXT         the faults whose name contains TEXT
  python3 scripts/ranks_faults.py PROGRAM --other OLD         with another build of the program as one of the ranks, too
  python3 scripts/ranks_faults.py PROGRAM --keep DIR          leave the last run and all output in DIR

For every fault: the command ends within its limit, with one of the exit codes that are expected, and with a message that says what it must;
no process of the run is left 10 s later; every checkpoint is whole; and the run, resumed on one rank, ends with the bits of the
uninterrupted one. Prints a row for each: exit code, seconds, message. It needs mpiexec (scripts/mpi.sh), and strace for the slow disk.
Exits 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ranks_shared import Broken, Subject, command_on_ranks, events, find_mpiexec, kill_all, rank_of, ranks_with, wait_until_gone

# Nobody may be left so many seconds after the end of the command.
LEFT_WITHIN = 10.0

# What a process says that was ended by SIGKILL, seen from Python and from a shell.
KILLED = {-9, 137, 9}

# mpiexec ends with the codes of all ranks, joined bit by bit, or with 9 where it has killed one of them.
STUCK = {70, 9, 79}


@dataclass
class Fault:
    name: str
    # The command, or what makes it.
    command: Callable[[Subject], list[str]]
    exits: set[int]
    # What stderr must contain, as a regular expression; none if nothing is promised.
    says: str
    # Seconds from the fault to the end of the command.
    within: float
    # What is done to the running command; none if the command itself is the fault.
    disturb: Callable[[Subject, subprocess.Popen], None] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    # Whether no file of a run may be made.
    makes_nothing: bool = False


def on(ranks: int, by: str = "mpiexec", more: tuple[str, ...] = ()) -> Callable[[Subject], list[str]]:
    """The run on so many ranks."""
    return lambda subject: command_on_ranks(subject.program, [*subject.first_command(), *more], ranks, by)


def own(subject: Subject, more: tuple[str, ...] = (), program: Path | None = None) -> list[str]:
    """The command of one rank."""
    return [str(program or subject.program), *subject.first_command(), *more, "--threads", "1", "--quiet"]


def shell(subject: Subject, script: str, more: tuple[str, ...] = ()) -> list[str]:
    """The command of one rank behind a script."""
    return ["sh", "-c", f'{script}; exec "$@"', "sh", *own(subject, more)]


def two(first: Callable[[Subject], list[str]], second: Callable[[Subject], list[str]]) -> Callable[[Subject], list[str]]:
    """mpiexec with another command for each of two ranks."""
    return lambda subject: ["mpiexec", "-n", "1", *first(subject), ":", "-n", "1", *second(subject)]


def in_directory(name: str, make: Callable[[Subject], list[str]]) -> Callable[[Subject], list[str]]:
    return lambda subject: ["-wdir", str(subject.work / name), *make(subject)]


# What is done to a running command


def steps_of(subject: Subject) -> int:
    path = subject.out / "metrics.jsonl"
    return path.read_text().count('"kind":"train"') if path.exists() else 0


def wait_for_steps(subject: Subject, steps: int = 12) -> None:
    """Until the run has logged so many steps."""
    end = time.monotonic() + 60
    while steps_of(subject) < steps:
        if time.monotonic() > end:
            raise Broken(f"no {steps} steps within a minute")
        time.sleep(0.01)


def process_of(subject: Subject, rank: int) -> int:
    pids = [pid for pid in ranks_with(str(subject.out), subject.program) if rank_of(pid) == rank]
    if len(pids) != 1:
        raise Broken(f"rank {rank} is {pids}")
    return pids[0]


def send(rank: int, *signals: signal.Signals, pause: float = 2.0) -> Callable[[Subject, subprocess.Popen], None]:
    """Signals to one rank in the middle of training, with pauses between them."""

    def disturb(subject: Subject, _: subprocess.Popen) -> None:
        wait_for_steps(subject)
        process = process_of(subject, rank)
        for i, number in enumerate(signals):
            time.sleep(pause if i else 0)
            os.kill(process, number)

    return disturb


def send_to_launcher(number: signal.Signals) -> Callable[[Subject, subprocess.Popen], None]:
    def disturb(subject: Subject, process: subprocess.Popen) -> None:
        wait_for_steps(subject)
        process.send_signal(number)

    return disturb


def kill_helper(name: str) -> Callable[[Subject, subprocess.Popen], None]:
    """SIGKILL to a process below the command that is none of the ranks: the first with this name, or a supervisor."""

    def disturb(subject: Subject, process: subprocess.Popen) -> None:
        wait_for_steps(subject)
        ranks = ranks_with(str(subject.out), subject.program)
        wanted = subject.program.name if name == SUPERVISOR else name
        found = [pid for pid in descendants(process.pid) if pid not in ranks and program_of(pid) == wanted]
        if not found:
            raise Broken(f"no {name} below the command")
        kill_all(found[:1])

    return disturb


SUPERVISOR = "supervisor"


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def program_of(pid: int) -> str:
    """The name of the program that a process runs."""
    return Path(os.readlink(f"/proc/{pid}/exe")).name


def stop_file(subject: Subject, _: subprocess.Popen) -> None:
    wait_for_steps(subject)
    (subject.out / "STOP").touch()


def second_writer(subject: Subject, _: subprocess.Popen) -> None:
    """A second command for the same run, which must be refused and leave the first alone."""
    wait_for_steps(subject)
    command = command_on_ranks(subject.program, ["resume", "--ckpt", str(subject.out)], 2, "mpiexec")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 73:
        raise Broken(f"a second writer ended with {done.returncode}: {done.stderr[-300:]}")


# The faults


def faults(work: Path, other: Path | None, has_strace: bool) -> list[Fault]:
    stop, go_on, term = signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM
    path = os.environ["PATH"]
    without_mpi = ":".join(part for part in path.split(":") if not (Path(part) / "mpiexec").exists())
    without_library = f"{work / 'no-library/bin'}:{without_mpi}"
    found = [
        Fault("another learning rate on rank 1", two(own, lambda s: own(s, ("--set", "optimizer.lr=1e-3"))), {78}, r"rank 1 .*configuration", 20, makes_nothing=True),
        Fault("another seed on rank 0 of 4", lambda s: ["mpiexec", "-n", "1", *own(s, ("--set", "train.seed=2")), ":", "-n", "3", *own(s)], {78}, r"rank 0 .*configuration", 20, makes_nothing=True),
        Fault("another run directory on rank 1", two(own, lambda s: replaced_out(own(s), work / "current/elsewhere")), {0, 78}, "", 60),
        Fault("rank 1 resumes, rank 0 begins", two(own, lambda s: [str(s.program), "resume", "--ckpt", str(s.out), "--threads", "1", "--quiet"]), {74, 65, 70, 78}, "rank 1", 20, makes_nothing=True),
        Fault("another text on rank 1", two(in_directory("here", text_data), in_directory("there", text_data)), {65}, r"rank 1 .*data", 20, makes_nothing=True),
        Fault("no text on rank 1", two(in_directory("here", text_data), in_directory("nowhere", text_data)), {74, 65, 78}, r"rank 1", 20, makes_nothing=True),
        Fault("no text on any rank", lambda s: ["mpiexec", "-n", "2", *in_directory("nowhere", text_data)(s)], {74, 65, 78}, r"text\.txt", 20, makes_nothing=True),
        Fault("three ranks", on(3), {78}, "power of two", 20, makes_nothing=True),
        Fault("16 ranks for 8 lanes", on(16), {78}, r"16 ranks cannot share out train\.lanes = 8", 30, makes_nothing=True),
        Fault("no mpiexec on PATH", on(2, "--ranks"), {78}, "pip install mpich", 10, environment={"PATH": without_mpi}, makes_nothing=True),
        Fault("mpiexec without its library", on(2), {78}, "(?i)mpi", 10, environment={"PATH": without_library}, makes_nothing=True),
        Fault("--ranks, no library", on(2, "--ranks"), {78}, "(?i)mpi", 10, environment={"PATH": without_library}, makes_nothing=True),
        Fault("a launcher's variables, no launcher", own, {78, 70}, "(?i)rank", 70, environment={"PMI_RANK": "0", "PMI_SIZE": "2"}, makes_nothing=True),
        Fault("torchrun's variables", own, {78}, "torchrun.*2 ranks", 10, environment={"RANK": "0", "WORLD_SIZE": "2"}, makes_nothing=True),
        Fault("rank 1 starts 20 s late", two(own, lambda s: shell(s, "sleep 20")), {0}, "", 60),
        Fault("rank 1 starts 90 s late", two(own, lambda s: shell(s, "sleep 90")), STUCK, "not all ranks have started", 70, makes_nothing=True),
        Fault("rank 1 never starts: true", two(own, lambda s: ["true"]), STUCK, "", 70, makes_nothing=True),
        Fault("rank 1 never starts: false", two(own, lambda s: ["false"]), {71, *STUCK}, "", 70, makes_nothing=True),
        Fault("SIGSTOP to rank 1", on(2), STUCK, "rank 1 .*has not answered", 60, send(1, stop)),
        Fault("SIGSTOP to rank 0", on(2), STUCK, "rank 0 .*has not answered", 60, send(0, stop)),
        Fault("SIGSTOP to rank 3 of 4, --ranks", on(4, "--ranks"), {70}, "rank 3", 60, send(3, stop)),
        Fault("SIGSTOP to rank 1 for 2 s", on(2), {0}, "", 60, send(1, stop, go_on)),
        Fault("SIGKILL to rank 1, --ranks", on(4, "--ranks"), {70}, "rank 1 .*(killed|signal|SIGKILL)", 10, send(1, signal.SIGKILL)),
        Fault("SIGKILL to mpiexec", on(4), KILLED, "", 10, send_to_launcher(signal.SIGKILL)),
        Fault("SIGKILL to mpiexec's proxy", on(4), set(range(1, 256)) | {-9}, "", 10, kill_helper("hydra_pmi_proxy")),
        Fault("SIGKILL to the parent, --ranks", on(4, "--ranks"), KILLED, "", 10, send_to_launcher(signal.SIGKILL)),
        Fault("SIGKILL to its mpiexec, --ranks", on(4, "--ranks"), {70}, "", 15, kill_helper("mpiexec")),
        Fault("SIGKILL to a supervisor, --ranks", on(4, "--ranks"), {70}, "", 15, kill_helper(SUPERVISOR)),
        Fault("SIGTERM to rank 1", on(4), {75}, "", 20, send(1, term)),
        Fault("SIGTERM to rank 3, --ranks", on(4, "--ranks"), {75}, "", 20, send(3, term)),
        Fault("SIGTERM to the parent, --ranks", on(4, "--ranks"), {75}, "", 20, send_to_launcher(term)),
        Fault("SIGINT to the parent, --ranks", on(2, "--ranks"), {75}, "", 20, send_to_launcher(signal.SIGINT)),
        Fault("SIGTERM to mpiexec", on(2), {75, 143, 15, -15}, "", 20, send_to_launcher(term)),
        Fault("the file STOP, 4 ranks", on(4), {75}, "", 20, stop_file),
        Fault("a second writer", on(2), {0}, "", 60, second_writer),
        Fault("too few addresses for MPI on rank 1", two(own, lambda s: shell(s, "ulimit -v 200000")), set(range(1, 256)), "MPI", 60, makes_nothing=True),
    ]  # fmt: skip
    if has_strace:
        calls = "fsync,fdatasync,rename,renameat2"
        slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=30000"]
        found.append(Fault("a slow disk on rank 0", two(lambda s: slow + own(s), own), {0}, "", 240))
    if os.geteuid() == 0:
        disk = f"mount -t tmpfs -o size=1500k none {work / 'current'}"
        found.append(Fault("a full disk under rank 0", two(lambda s: ["unshare", "-m", *shell(s, disk)], own), {74}, "hint: free disk space", 60))
    if other:
        found.append(Fault("another program as rank 1", two(own, lambda s: own(s, program=other)), {70, 73, 78}, "", 70))
        found.append(Fault("another program as rank 0", two(lambda s: own(s, program=other), own), {0, 70, 73, 78}, "", 70))
    return found


def replaced_out(command: list[str], out: Path) -> list[str]:
    at = command.index("--out") + 1
    return [*command[:at], str(out), *command[at + 1 :]]


def text_data(subject: Subject) -> list[str]:
    """A rank that trains on the file text.txt of its working directory, which has the same path everywhere."""
    command = own(subject, ("--set", 'data.train=["/proc/self/cwd/text.txt"]', "--set", "data.val_fraction=0.1"))
    return [str(subject.work / "text.toml") if word == str(subject.config) else word for word in command]


def make_inputs(subject: Subject) -> None:
    """Working directories with other texts, and an installation of MPI without its library."""
    work = subject.work
    sentences = "\n".join(f"The {i} birds of {i * 7 % 13} trees sing at {i * 11 % 24} o'clock." for i in range(4000))
    for name, text in [("here", sentences), ("there", sentences.replace("The 7 birds", "The 8 birds")), ("nowhere", None)]:
        (work / name).mkdir()
        if text:
            (work / name / "text.txt").write_text(text)
    develop = subject.config.read_text()
    (work / "text.toml").write_text(re.sub(r"\[data\].*?\n\n", '[data]\ntokenizer = "train"\n\n', develop, flags=re.S))
    launcher = Path(shutil.which("mpiexec") or "").resolve().parent
    shutil.copytree(launcher, work / "no-library/bin", symlinks=True)


# A trial


def trial(subject: Subject, fault: Fault) -> tuple[int | None, float, str]:
    """Does one fault; exit code, seconds from the fault to the end, and what the command said."""
    shutil.rmtree(subject.out.parent, ignore_errors=True)
    subject.out.parent.mkdir()
    log_path = subject.work / "stderr"
    started = time.monotonic()
    with open(log_path, "wb") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        environment = {**os.environ, **fault.environment}
        process = subprocess.Popen(fault.command(subject), **streams, start_new_session=True, cwd=subject.work, env=environment)
    try:
        if fault.disturb:
            fault.disturb(subject, process)
            started = time.monotonic()
        code = process.wait(fault.within)
    except subprocess.TimeoutExpired:
        code = None
    took = time.monotonic() - started
    left = wait_until_gone(str(subject.out), LEFT_WITHIN if code is not None else 0)
    kill_all(left)
    process.kill()
    said = log_path.read_text(errors="replace")
    check(subject, fault, code, took, left, said)
    return code, took, said


def check(subject: Subject, fault: Fault, code: int | None, took: float, left: dict[int, str], said: str) -> None:
    if code is None:
        raise Broken(f"has not ended within {fault.within:.0f} s: {said[-300:]}")
    if left:
        raise Broken(f"exit {code}, left behind: {left}")
    if code not in fault.exits:
        raise Broken(f"exit {code}, not {sorted(fault.exits)[:5]}: {said[-400:]}")
    if not re.search(fault.says, said):
        raise Broken(f"exit {code}, does not say {fault.says!r}: {said[-400:]}")
    if "panicked" in said:
        raise Broken(f"a panic: {said[-400:]}")
    if fault.makes_nothing and (subject.out / "checkpoints").is_dir() and any((subject.out / "checkpoints").iterdir()):
        raise Broken(f"exit {code}, and has made {sorted(path.name for path in (subject.out / 'checkpoints').iterdir())}")
    if fault.makes_nothing:
        return
    subject.check_checkpoints()
    aftermath(subject)


def aftermath(subject: Subject) -> None:
    """Resumes on one rank what is left, and demands the uninterrupted run."""
    if not any(event["kind"] == "finish" for event in events(subject.out)):
        done = subprocess.run(command_on_ranks(subject.program, subject.next_command(), 1, ""), capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"the resume after it: exit {done.returncode}: {done.stderr[-300:]}")
    found = subject.different_from_whole()
    if found:
        raise Broken(f"the run differs from the uninterrupted one: {found[:3]}")
    wrong = [event for event in events(subject.out) if event["kind"] in ("replay_mismatch", "log_altered")]
    if wrong:
        raise Broken(f"an event that must not be: {wrong[0]}")


def first_message(said: str) -> str:
    """The first error of what was said, or its first line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--other", type=Path, metavar="PROGRAM")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty or new directory")
    args = parser.parse_args()
    find_mpiexec()
    work = (args.keep or Path(tempfile.mkdtemp(prefix="ranks-faults-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    subject = Subject(args.program.resolve(), work, ["guard.hang_seconds=8"])
    make_inputs(subject)
    has_strace = shutil.which("strace") is not None
    chosen = [fault for fault in faults(work, args.other and args.other.resolve(), has_strace) if args.only in fault.name]
    broken = 0
    print(f"{'fault':<36} exit seconds  message", flush=True)
    for fault in chosen:
        try:
            code, took, said = trial(subject, fault)
            print(f"{fault.name:<36} {code:>4} {took:>7.1f}  {first_message(said)[:200]}", flush=True)
        except Broken as promise:
            broken += 1
            print(f"{fault.name:<36} BROKEN        {promise}", flush=True)
    print(f"{len(chosen)} faults, {broken} broken promises" + ("" if has_strace else "; without strace: no slow disk"))
    if not args.keep:
        shutil.rmtree(work)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
