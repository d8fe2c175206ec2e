"""`bench.py table`: prints what a file of `bench.py cpu` holds as docs/benchmarks.md shows it.

  table FILE...    the tables of these files
  table --page     writes them into the page: between a line `<!-- table: FILE -->` and the next `<!-- end of table -->`
  table --check    says whether the page has what these files hold; exit 1 if not
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean, median

from benches import processor
from benches.processor import NOT_RECORDED
from benches.results import load
from benches.shared import BENCH, Failed, shown

ROOT = BENCH.parent.parent
PAGE = ROOT / "docs/benchmarks.md"
BLOCK = re.compile(r"(?<=<!-- table: )(\S+)( -->\n)(.*?)(?=<!-- end of table -->)", re.DOTALL)
OURS = "llama-lite"
TITLES = {OURS: "llama-lite tokens/s", "eager": "PyTorch eager", "compile": "torch.compile"}


# ---------------------------------------------------------------------------------------------------------------------
# Cells.


def model(result: dict) -> str:
    return f"{result['shape']} ({result['parameters'] / 1e6:.1f} M, vocabulary {result['model']['vocab_size']:,})"


def speed(result: dict, name: str) -> str:
    """Tokens per second; of another implementation also llama-lite's gain, with the least and the most of the rounds."""
    made, ratio = result["implementations"].get(name), result["ratios"].get(name)
    gain = f" (**{ratio['median']:.2f}x**, {ratio['least']:.2f}-{ratio['most']:.2f})" if ratio else ""
    return f"{made['tokens_per_second']:,.0f}{gain}" if made else "not measured"


def of_each(result: dict, key: str, form: str) -> str:
    """A figure of every implementation, in the order of the columns."""
    return " / ".join(format(made[key], form) for made in result["implementations"].values())


def floor(result: dict, key: str) -> str:
    """Seconds, and how much of llama-lite's step they are."""
    seconds, ours = result.get(key, NOT_RECORDED), result["implementations"].get(OURS)
    if seconds == NOT_RECORDED:
        return seconds
    return f"{seconds:.3f} s" + (f" ({seconds / ours['seconds']:.0%})" if ours else "")


def columns(implementations: Iterable[str], precision: str) -> dict[str, Callable[[dict], str]]:
    autocast = ", autocast" if precision == "bf16" else ""
    cells: dict[str, Callable[[dict], str]] = {
        "model": model,
        "sequence": lambda r: str(r["sequence_length"]),
        "tokens a step": lambda r: f"{r['tokens_per_step']:,}",
        "threads": lambda r: str(r["threads"]),
    }
    for name in implementations:
        title = TITLES.get(name, name) + ("" if name == OURS else autocast)
        cells[title] = lambda r, name=name: speed(r, name)
    return cells | {
        "CPU s a step": lambda r: of_each(r, "cpu_seconds", ".2f"),
        "peak memory, MB": lambda r: of_each(r, "peak_mb", ",.0f"),
        "matrix floor (share reached)": lambda r: floor(r, "gemm_floor_seconds"),
        "combined floor (share reached)": lambda r: floor(r, "combined_floor_seconds"),
    }


def header(cells: dict) -> str:
    return f"| {' | '.join(cells)} |\n" + "|---" * len(cells) + "|"


def row(cells: dict, result: dict) -> str:
    return f"| {' | '.join(cell(result) for cell in cells.values())} |"


# ---------------------------------------------------------------------------------------------------------------------
# The tables of a file.


def lines(table: dict) -> Iterator[str]:
    """Everything that the page shows of a file."""
    yield from machine(table)
    for precision in dict.fromkeys(r["precision"] for r in table["cases"]):
        results = [r for r in table["cases"] if r["precision"] == precision]
        names = dict.fromkeys(name for r in results for name in r["implementations"])
        cells = columns(names, precision)
        yield from ["", f"**{precision}**, {origin(results)}", "", header(cells)]
        yield from (row(cells, r) for r in results)
        yield ""
        yield from (f"* {remark}" for remark in remarks(results))


def machine(table: dict) -> Iterator[str]:
    yield f"{processor.describe(table['processor'])}; {table['threads']} threads."
    if table[processor.SIMD]:
        yield f"{processor.SIMD}={table[processor.SIMD]} was set."
    if "note" in table:
        yield table["note"]


def origin(results: list[dict]) -> str:
    """When and with what these cases were measured."""
    about = [r["measured"] for r in results]
    dates = sorted({a["date"][:10] for a in about})
    texts = [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"]
    texts += [", ".join(dict.fromkeys(a["llama_lite"] for a in about)), f"torch {', '.join(dict.fromkeys(a['torch'] for a in about))}"]
    choices = dict.fromkeys(chosen(a["chosen"], results[0]["precision"]) for a in about)
    rounds = sorted({len(r["rounds"]) for r in results})
    texts += [*choices, f"medians of {' to '.join(map(str, rounds[:: max(1, len(rounds) - 1)]))} rounds"]
    return "; ".join(texts)


def chosen(choice: dict | str, precision: str) -> str:
    if choice == NOT_RECORDED:
        return f"instructions that llama-lite used: {NOT_RECORDED}"
    return choice["simd"] if precision == "f32" else f"{choice['simd']}, bf16 products {choice['bf16_products']}"


def remarks(results: list[dict]) -> Iterator[str]:
    """What a reader of the table must know besides."""
    for name in dict.fromkeys(name for r in results for name in r["ratios"]):
        each = {}
        for threads in sorted({r["threads"] for r in results}):
            ratios = [r["ratios"][name]["median"] for r in results if r["threads"] == threads and name in r["ratios"]]
            if ratios:
                each[threads] = f"{threads} {'thread' if threads == 1 else 'threads'} least {min(ratios):.2f}x, mean {mean(ratios):.2f}x"
        every = [r["ratios"][name]["median"] for r in results if name in r["ratios"]]
        apart = f" ({'; '.join(each.values())})" if len(each) > 1 else ""
        yield f"beside {name}: least {min(every):.2f}x, mean {mean(every):.2f}x of {len(every)}{apart}"
    yield from memory(results)
    yield from shares(results)
    alone = [f"{r['shape']} at {r['sequence_length']}" for r in results if r.get("processes") == "one for each turn"]
    if alone:
        yield f"every turn had a new process, because all do not fit into memory together: {', '.join(dict.fromkeys(alone))}"
    yield f"losses agree within {max(r['loss_difference'] for r in results):.1e}"
    every = [m for r in results for m in r["implementations"].values()]
    foreign = max(m["foreign_cores"] for m in every)
    if foreign > 0.05:
        yield f"WARNING: other processes used up to {foreign:.2f} cores meanwhile: measure on an idle machine"
    gap = max(abs(m["clock_gap"]) for m in every)
    if gap > 0.05:
        yield f"WARNING: a step's own seconds differ from the driver's clock by up to {gap:.0%}"


def memory(results: list[dict]) -> Iterator[str]:
    both = [r["implementations"] for r in results if {OURS, "eager"} <= r["implementations"].keys()]
    rest = [mb for r in results for mb in r["at_rest_mb"].values() if mb]
    if both:
        shares = [made[OURS]["peak_mb"] / made["eager"]["peak_mb"] for made in both]
        above = [made[OURS]["peak_mb"] / made["eager"]["peak_mb_above_rest"] for made in both]
        text = f"peak memory beside eager's: {min(shares):.2f} to {max(shares):.2f}, and {min(above):.2f} to {max(above):.2f}"
        yield f"{text} without the {median(rest):.0f} MB of a PyTorch process at rest (import torch)"


def shares(results: list[dict]) -> Iterator[str]:
    """How much of the combined floor llama-lite reaches."""
    floors = [(r.get("combined_floor_seconds", NOT_RECORDED), r["implementations"].get(OURS)) for r in results]
    reached = [seconds / ours["seconds"] for seconds, ours in floors if ours and seconds != NOT_RECORDED]
    if reached:
        yield f"of the combined floor llama-lite reaches least {min(reached):.0%}, mean {mean(reached):.0%} of {len(reached)}"


# ---------------------------------------------------------------------------------------------------------------------
# The page.


def filled(page: str) -> str:
    """The page with the tables of the files that its marks name."""
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{block(ROOT / found[1])}", page)


def block(path: Path) -> str:
    text = "\n".join(lines(load(path)))
    return f"{text}\n"


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of bench.py cpu, in scripts/results/")
    p.add_argument("--page", action="store_true", help="write the tables of docs/benchmarks.md again from their files")
    p.add_argument("--check", action="store_true", help="compare docs/benchmarks.md with its files")


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if bool(args.files) + args.page + args.check != 1:
        parser.error("one of FILE, --page and --check")
    for path in args.files:
        print(block(path), end="")
    if args.files:
        return 0
    old = PAGE.read_text()
    if not BLOCK.search(old):
        raise Failed(f"{shown(PAGE)} has no line <!-- table: FILE -->")
    new = filled(old)
    if args.page:
        PAGE.write_text(new)
    elif new != old:
        print(f"bench.py table: {shown(PAGE)} is not what its files hold", file=sys.stderr)
        print("hint: python3 scripts/bench.py table --page", file=sys.stderr)
        return 1
    return 0
