"""Processes that are let run in turns, one at a time, and what their steps cost: the clock of `bench.py cpu`.

A worker is any program that logs a JSON line per training step. SIGSTOP and SIGCONT make the turns; the figures come from
the log and from /proc, so this needs Linux. Whatever happens to the driver, no worker stays behind, stopped or not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benches.shared import Failed

POLL = 0.01  # seconds between looks at a running process's log
TIMEOUT = 900.0  # for one step; the first one of torch.compile compiles
TICK = 1.0 / os.sysconf("SC_CLK_TCK")
LIBC = ctypes.CDLL(None)


class Worker:
    """One implementation at work; its log has a JSON line per step."""

    def __init__(
        self, name: str, command: list[str], log: Path, stderr: Path, tokens_per_step: int, env: dict[str, str]
    ):
        self.name, self.log, self.stderr, self.tokens_per_step = name, log, stderr, tokens_per_step
        self.lines: list[dict] = []
        self.start: dict = {}
        self._read, self._rest = 0, b""
        with self.stderr.open("wb") as err:
            # A session of its own: a Ctrl-C reaches the driver alone, and a group signal the worker's children too.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                env=os.environ | env,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (the driver has no threads)
            )
        self.pid = self.process.pid

    def pids(self) -> list[int]:
        """The processes that are let run and stopped."""
        return [self.pid]

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Ends it whatever its state: SIGKILL does not need a stopped process to go on."""
        if self.process.poll() is None:  # else the number may be another's by now
            self.send(signal.SIGKILL)
            self.process.wait()

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def pause(self) -> None:
        """Returns when every thread has stopped."""
        self.send(signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not all(state in "TtZX" for state in self._states()):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: did not stop within 10 s of SIGSTOP")
            time.sleep(0.001)

    def _states(self) -> Iterator[str]:
        for pid in self.pids():
            for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield stat_fields(stat)[0]

    def cpu_seconds(self) -> float:
        every = [stat_fields(Path(f"/proc/{pid}/stat")) for pid in self.pids()]
        return sum(int(fields[11]) + int(fields[12]) for fields in every) * TICK

    def peak_mb(self) -> float:
        return sum(map(peak_mb_of, self.pids()))

    def look(self) -> int:
        """Reads what is new in the log; returns the number of steps seen so far."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as f:
            f.seek(self._read)
            new = f.read()
            self._read += len(new)
            *whole, self._rest = (self._rest + new).split(b"\n")
            for record in map(json.loads, whole):
                if record["kind"] == "train":
                    # llama-lite logs its speed instead.
                    record.setdefault("seconds", self.tokens_per_step / (record.get("tokens_per_second") or math.nan))
                    self.lines.append({k: record[k] for k in ("step", "loss", "seconds")})
                elif record["kind"] == "start":
                    self.start = record
        return len(self.lines)

    def wait_for_news(self) -> None:
        """Returns at the sight of one new step or more."""
        known, deadline = len(self.lines), time.monotonic() + TIMEOUT
        while self.look() == known:
            if self.process.poll() is not None:
                tail = self.stderr.read_text(errors="replace").strip().splitlines()[-12:]
                raise Failed(f"{self.name} ended with {self.process.returncode}:\n" + "\n".join(tail))
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: no step within {TIMEOUT:.0f} s")
            time.sleep(POLL)

    def warm_up(self, steps: int) -> None:
        """Runs a process that has just been started until it has logged `steps` steps."""
        while len(self.lines) < steps:
            self.wait_for_news()
        self.pause()

    def turn(self, steps: int) -> dict:
        """Lets it run for `steps` whole steps; what they took."""
        self.look()  # steps that were finished after the last look of the turn before
        self.resume()
        self.wait_for_news()  # the step that the stop had cut through; what follows began in this turn
        first = len(self.lines)
        wall, cpu, busy = time.monotonic(), self.cpu_seconds(), machine_busy_seconds()
        while len(self.lines) < first + steps:
            self.wait_for_news()
        wall, cpu = time.monotonic() - wall, self.cpu_seconds() - cpu
        busy = machine_busy_seconds() - busy
        self.pause()
        seconds = [line["seconds"] for line in self.lines[first:]]
        return {
            "seconds": seconds,
            "outside_seconds_per_step": wall / len(seconds),
            "cpu_seconds_per_step": cpu / len(seconds),
            "foreign_cores": max(0.0, busy - cpu) / wall,
        }


class Team(Worker):
    """An implementation of several processes: all that `command` has started by the time it is warm, and none later.

    A launcher may put each of them in a session of its own, so they are signalled one by one.
    """

    _pids: list[int] | None = None
    _guardian: subprocess.Popen | None = None

    def pids(self) -> list[int]:
        return self._pids or [self.pid, *descendants(self.pid)]

    def send(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def warm_up(self, steps: int) -> None:
        super().warm_up(steps)
        self._pids = self.pids()
        # Only the launcher is the driver's child and dies with it. The others would stay, stopped: this one ends them when the driver's
        # end of the pipe is gone.
        command = f"cat; kill -9 {' '.join(map(str, self._pids))}"
        self._guardian = subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    def kill(self) -> None:
        if self._guardian:
            self._guardian.kill()
            self._guardian.wait()
            self._guardian.stdin.close()
        super().kill()


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(int(stat_fields(stat)[1]), []).append(int(stat.parent.name))
    found, open_ends = [], [pid]
    while open_ends:
        new = children.get(open_ends.pop(), [])
        found += new
        open_ends += new
    return found


def peak_mb_of(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


def die_with_parent() -> None:
    """In the child before exec: the kernel kills it when the driver is gone, even by SIGKILL. Linux only, as all of this."""
    pr_set_pdeathsig = 1
    LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL)


def stat_fields(path: Path) -> list[str]:
    """The fields of a stat file from the third (the state) on; the second, the name, may hold anything."""
    return path.read_text().rpartition(")")[2].split()


def machine_busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used, and those that its host took."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) * TICK
