#!/usr/bin/env python3
"""Kills random ranks of a run at random times, and demands that nothing of the run changes by it.

  python3 scripts/ranks_kills.py PROGRAM                200 kills; ten minutes on two cores
  python3 scripts/ranks_kills.py PROGRAM --kills 10     one minute
  python3 scripts/ranks_kills.py PROGRAM --keep DIR     leave the last run in DIR

A small run with saves, validation and samples every few steps is started with 1, 2, 4 or 8 ranks, by mpiexec and by `--ranks` in turns.
At a random time, from before the ranks have met until after the end, SIGKILL ends one of its ranks, drawn by chance. Then

* no process of the run is alive 10 s later, and the command has ended with a failure,
* every checkpoint under its final name is whole: the bytes of the uninterrupted run on one rank, state and manifest included,

and it is resumed with another random number of ranks, until it has finished. The finished run must have the files of the uninterrupted
one, but for what ALLOWED and RESUMED in ranks_shared.py list, and its events must tell the story: each attempt with its ranks, no
step that came out differently when it was repeated. It needs mpiexec (scripts/mpi.sh). Exits 1 at the first broken promise, and keeps the
run then.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ranks_shared import STEPS, Broken, Subject, command_on_ranks, events, find_mpiexec, kill_all, ranks_with, wait_until_gone

# Nobody may be left after so many seconds.
END_WITHIN = 10.0


def measure(subject: Subject) -> dict[int, float]:
    """The duration of the whole run by the number of its ranks."""
    length = {}
    for ranks in (1, 2, 4, 8):
        started = time.monotonic()
        subprocess.run(command_on_ranks(subject.program, subject.first_command(), ranks, "mpiexec"), check=True)
        length[ranks] = time.monotonic() - started
        found = subject.different_from_whole()
        if found:
            raise Broken(f"{ranks} ranks without a kill: {found[:3]}")
        shutil.rmtree(subject.out)
    return length


def metrics_step(run: Path) -> int:
    """The last step that the log has."""
    steps = re.findall(r'"kind":"train","step":(\d+),', (run / "metrics.jsonl").read_text()) if (run / "metrics.jsonl").exists() else []
    return int(steps[-1]) if steps else 0


def choose_victim(subject: Subject, draw: random.Random) -> int | None:
    """A process of the run that is a rank, drawn by chance; none if there is none yet or any more."""
    pids = sorted(ranks_with(str(subject.out), subject.program))
    return draw.choice(pids) if pids else None


def wait_for_moment(subject: Subject, draw: random.Random, process: subprocess.Popen) -> None:
    """Waits for the moment to kill: of four times one before or about when the ranks have met, the others about a step in what is left."""
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 0.5))
        return
    step, more = draw.randint(metrics_step(subject.out) + 1, STEPS + 1), draw.uniform(0, 0.1)
    while metrics_step(subject.out) < step and process.poll() is None:
        time.sleep(0.005)
    time.sleep(more)


def attempt(subject: Subject, draw: random.Random, by: str, tally: collections.Counter) -> bool:
    """Starts or resumes the run, and kills one of its ranks; whether it did. Demands what must hold after a kill."""
    ranks = draw.choice([1, 2, 4, 8])
    command = command_on_ranks(subject.program, subject.next_command(), ranks, by)
    with open(subject.work / "stderr", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    before = metrics_step(subject.out)
    wait_for_moment(subject, draw, process)
    victim = choose_victim(subject, draw) if process.poll() is None else None
    if victim is None and process.poll() is None:
        time.sleep(0.05)
        victim = choose_victim(subject, draw)
    if victim is None:
        code = process.wait(120)
        if code:
            raise Broken(f"{ranks} ranks by {by}, not killed: exit {code}: {words(subject)}")
        return False
    kill_all([victim])
    killed = time.monotonic()
    try:
        code = process.wait(END_WITHIN)
    except subprocess.TimeoutExpired:
        raise Broken(f"{ranks} ranks by {by}: the command has not ended {END_WITHIN:.0f} s after the kill of process {victim}")
    left = wait_until_gone(str(subject.out), max(0, killed + END_WITHIN - time.monotonic()))
    if left:
        raise Broken(f"{ranks} ranks by {by}: left behind: {left}")
    took = time.monotonic() - killed
    subject.check_checkpoints()
    if code == 0 and not is_finished(subject):
        raise Broken(f"{ranks} ranks by {by}: exit 0 after a kill, and the run has not finished: {words(subject)}")
    tally["kills"] += 1
    tally["kills of one of several ranks"] += ranks > 1
    tally[f"by {by}" if ranks > 1 else "alone"] += 1
    tally[f"exit {code}"] += 1
    tally["kills before a step of the attempt"] += metrics_step(subject.out) <= before
    tally["longest end in ms"] = max(tally["longest end in ms"], int(took * 1000))
    return True


def is_finished(subject: Subject) -> bool:
    return any(event["kind"] == "finish" for event in events(subject.out))


def words(subject: Subject) -> str:
    """What the last command wrote to stderr."""
    return (subject.work / "stderr").read_text(errors="replace")[-600:]


def check_story(subject: Subject) -> int:
    """Demands that the events of a finished run say what happened; the number of its attempts."""
    story = events(subject.out)
    wrong = [event for event in story if event["kind"] in ("replay_mismatch", "log_altered", "hang", "checkpoint_bad")]
    if wrong:
        raise Broken(f"an event that must not be: {wrong[0]}")
    starts = [i for i, event in enumerate(story) if event["kind"] in ("start", "resume")]
    for i, start in enumerate(starts):
        of_attempt = story[start : starts[i + 1] if i + 1 < len(starts) else None]
        ranks = of_attempt[0]["build"]["ranks"]
        told = [event for event in of_attempt if event["kind"] == "ranks"]
        if ranks == 1 and told or len(told) > 1 or any(event["ranks"] != ranks or len(event["members"]) != ranks for event in told):
            raise Broken(f"attempt {i + 1} had {ranks} ranks, and its event says {told}")
        if ranks > 1 and not told and len(of_attempt) > 2:
            raise Broken(f"attempt {i + 1} had {ranks} ranks, and no event says so")
    if story[-1]["kind"] != "finish":
        raise Broken(f"the last event is {story[-1]}")
    return len(starts)


def one_run(subject: Subject, draw: random.Random, wanted: int, tally: collections.Counter) -> None:
    """One run from its start to its end, killed as often as it takes or as kills are left."""
    shutil.rmtree(subject.out, ignore_errors=True)
    shutil.rmtree(subject.out.parent, ignore_errors=True)
    subject.out.parent.mkdir()
    while tally["kills"] < wanted:
        if not attempt(subject, draw, ["mpiexec", "--ranks"][tally["kills"] % 2], tally):
            break
    if not is_finished(subject):
        ranks = draw.choice([1, 2, 4, 8])
        done = subprocess.run(command_on_ranks(subject.program, subject.next_command(), ranks, "mpiexec"), capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"the last resume: exit {done.returncode}: {done.stderr}")
    found = subject.different_from_whole()
    if found:
        raise Broken(f"the run differs from the uninterrupted one: {found[:5]}")
    tally["attempts"] += check_story(subject)
    tally["checkpoints compared in the end"] += subject.check_checkpoints()
    tally["runs"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty or new directory")
    args = parser.parse_args()
    find_mpiexec()
    work = (args.keep or Path(tempfile.mkdtemp(prefix="ranks-kills-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    started, tally = time.monotonic(), collections.Counter()
    try:
        subject = Subject(args.program.resolve(), work, ["guard.hang_seconds=60"])
        lengths = measure(subject)
        told = ", ".join(f"{length:.1f} s on {ranks}" for ranks, length in lengths.items())
        print(f"the run: {STEPS} steps, {told} ranks; seed {args.seed}", flush=True)
        draw = random.Random(args.seed)
        while tally["kills"] < args.kills:
            one_run(subject, draw, args.kills, tally)
            print(f"{tally['runs']} runs, {tally['kills']} kills, {time.monotonic() - started:.0f} s", flush=True)
    except Broken as broken:
        print(f"BROKEN after {tally['kills']} kills in {tally['runs']} runs (seed {args.seed}): {broken}\nthe run is kept in {work}")
        return 1
    print("all runs equal, all checkpoints whole, nobody left: " + ", ".join(f"{name} {count}" for name, count in sorted(tally.items())))
    if not args.keep:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
