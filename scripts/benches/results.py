"""The file of results of `bench.py cpu`: one per processor, with both precisions and, per case, when and with what it was measured.

The head says which machine it is: the processor with its features, its number of threads, and LLAMA_LITE_SIMD, which forbids llama-lite some of
these features. A file takes the cases of that machine alone. A case that is measured again replaces the one before; a case is one line of the file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from benches import processor
from benches.shared import BENCH, Failed, shown

FOLDER = BENCH.parent / "results"
# What must be equal for two cases to stand in one table.
HEAD = ["processor", "threads", processor.SIMD]


class Case(NamedTuple):
    """What a case measures."""

    precision: str
    shape: str
    sequence_length: int
    tokens_per_step: int
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.precision} {self.shape}, sequence {self.sequence_length}, {self.tokens_per_step:,} tokens a step, {threads}"


def case_of(result: dict) -> Case:
    return Case(*(result[field] for field in Case._fields))


def head(cpu: dict, choice: dict) -> dict:
    return {"processor": cpu, "threads": os.cpu_count(), processor.SIMD: choice[processor.SIMD]}


def default_path(head: dict) -> Path:
    """cpu-VENDOR-MODEL.json, and what LLAMA_LITE_SIMD was."""
    forbidden = f"-simd-{plain(head[processor.SIMD])}" if head[processor.SIMD] else ""
    return FOLDER / f"cpu-{processor.slug(head['processor'])}{forbidden}.json"


def load(path: Path) -> dict:
    try:
        table = json.loads(path.read_text())
    except OSError as error:
        raise Failed(f"{shown(path)}: {error.strerror}") from error
    except ValueError as error:
        raise Failed(f"{shown(path)} is not JSON: {error}") from error
    if not isinstance(table, dict) or not {*HEAD, "cases"} <= table.keys():
        raise Failed(f"{shown(path)} is not a table of bench.py cpu\nhint: python3 scripts/bench.py cpu --json bench.json")
    return table


def load_or_begin(path: Path, head: dict) -> dict:
    """The table that the cases of this machine go into."""
    if not path.parent.is_dir():
        raise Failed(f"there is no folder {path.parent}\nhint: mkdir -p {path.parent}")
    if not path.exists():
        return head | {"cases": []}
    table = load(path)
    if difference := first_difference({key: table[key] for key in HEAD}, head):
        what, *values = difference
        theirs, ours = ("not set" if value is None else value for value in values)
        other = default_path(head)
        if other.resolve() == path.resolve():
            other = other.with_name(f"{other.stem}-{plain(what)}-{plain(ours)}.json")
        hint = f"python3 scripts/bench.py cpu --json {shown(other)}"
        raise Failed(f"{shown(path)} is not of this machine: its {what} is {theirs}, here it is {ours}\nhint: {hint}")
    return table


def first_difference(theirs: dict, ours: dict, above: str = "") -> tuple[str, object, object] | None:
    """(what, there, here)"""
    for key in theirs | ours:
        there, here = theirs.get(key), ours.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            if found := first_difference(there, here, f"{key} "):
                return found
        elif there != here:
            return above + key, there, here
    return None


def plain(value: object) -> str:
    """As a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-")


def is_done(table: dict, case: Case, version: str, implementations: list[str]) -> bool:
    """Whether this program has measured the case, beside all of these."""
    return any(
        case_of(old) == case and old["measured"]["llama_lite"] == version and set(implementations) <= old["implementations"].keys()
        for old in table["cases"]
    )


def add(table: dict, result: dict) -> None:
    """In the order of Case, whatever the order of the runs."""
    others = [old for old in table["cases"] if case_of(old) != case_of(result)]
    table["cases"] = sorted([*others, result], key=order)


def order(result: dict) -> tuple:
    case = case_of(result)
    # f32 first; models by their size.
    return (case.precision != "f32", case.precision, result["parameters"], *case[1:])


def save(path: Path, table: dict) -> None:
    """Whole or not at all: what took hours is not lost to a kill."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items() if key != "cases"]
    cases = ",\n".join(f"  {json.dumps(case)}" for case in table["cases"])
    lines.append(f' "cases": [\n{cases}\n ]')
    new = path.with_name(f"{path.name}.new")
    new.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    new.replace(path)
