"""`bench.py prepare`: `llama-lite data prepare` beside Python's tiktoken and Hugging Face's tokenizers, on the same text, in one run.

Each contender does the whole job, from lines of JSON to a token file on disk: read, parse, encode with GPT-2's vocabulary, put
`<|endoftext|>` before every document, write uint16. They take turns, one process each, in every round. Ours is timed as a whole process;
the others without their imports and the loading of their vocabulary. The token files must be equal, or the benchmark fails. The two slow
ones read only the first --slow-mb of the text; speeds are bytes of document text per second. Without a network, --ranks names a directory
with vocab.json and merges.txt.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

from benches.shared import BENCH, write_json

EOT = 50256


def contender(name: str, ranks: str | None):
    """A function from a list of texts to lists of ids."""
    if name == "tiktoken":
        import tiktoken

        if ranks:
            from tiktoken.load import data_gym_to_mergeable_bpe_ranks

            words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
            table = data_gym_to_mergeable_bpe_ranks(f"{ranks}/merges.txt", f"{ranks}/vocab.json")
            encoding = tiktoken.Encoding("gpt2", pat_str=words, mergeable_ranks=table, special_tokens={"<|endoftext|>": EOT})
        else:
            encoding = tiktoken.get_encoding("gpt2")
        threads = int(os.environ["RAYON_NUM_THREADS"])
        return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    tokenizer = ByteLevelBPETokenizer(f"{ranks}/vocab.json", f"{ranks}/merges.txt") if ranks else Tokenizer.from_pretrained("gpt2")
    return lambda texts: [encoded.ids for encoded in tokenizer.encode_batch(texts)]


def python_side(args) -> None:
    """One contender's whole job in this process; prints its figures as JSON."""
    import numpy as np

    encode = contender(args.side, args.ranks)
    encode(["warm"])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    begun, cpu = time.perf_counter(), usage.ru_utime + usage.ru_stime
    pieces, texts, size = [], [], 0

    def flush() -> None:
        for ids in encode(texts):
            pieces.append(np.array([EOT, *ids], dtype="<u2"))
        texts.clear()

    with open(args.text, encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if len(texts) == 1024:
                flush()
    flush()
    np.save(args.out, np.concatenate(pieces))
    wall = time.perf_counter() - begun
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime - cpu, "bytes": size}))


def ours(args, text: Path, threads: int, out: Path) -> dict:
    """`data prepare` as a process."""
    command = [args.binary, "data", "prepare", "--input", str(text), "--tokenizer", "gpt2", "--out", str(out)]
    command += ["--val-fraction", "0", "--shard-tokens", "1000000000", "--threads", str(threads), "--quiet"]
    begun = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    if status:
        sys.exit(f"data prepare failed with status {status}")
    manifest = json.loads((out / "shards.json").read_text())
    memory = usage.ru_maxrss / 1024
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "bytes": manifest["train"]["bytes"], "peak_mb": memory}


def theirs(args, side: str, text: Path, threads: int, out: Path) -> dict:
    """A Python contender as a process."""
    command = [sys.executable, str(BENCH), "prepare", "--binary", args.binary, "--side", side, "--text", str(text), "--out", str(out)]
    command += ["--ranks", args.ranks] if args.ranks else []
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


def beginning(text: Path, megabytes: float, to: Path) -> Path:
    """The first lines of `text`, at least so many MB of them."""
    left = megabytes * 1e6
    with open(text, "rb") as lines, open(to, "wb") as out:
        for line in lines:
            out.write(line)
            left -= len(line)
            if left <= 0:
                break
    return to


def same_tokens(prepared: Path, other: Path) -> bool:
    """Whether two token files hold the same tokens (the shorter one's, from the beginning)."""
    import numpy as np

    a, b = np.load(prepared / "train-00000.npy", mmap_mode="r"), np.load(other, mmap_mode="r")
    n = min(len(a), len(b))
    return n > 0 and bool(np.array_equal(a[:n], b[:n]))


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--text", required=True, metavar="FILE", help="documents, a line of JSON each")
    p.add_argument("--threads", default="1,2", help="thread counts (default %(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="turns of each (default %(default)s)")
    p.add_argument("--slow-mb", type=float, default=16, help="what the slow ones read of the text (default %(default)s)")
    p.add_argument("--ranks", metavar="DIR", help="GPT-2's vocab.json and merges.txt")
    p.add_argument("--side", help=argparse.SUPPRESS)
    p.add_argument("--out", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, _: argparse.ArgumentParser) -> int:
    if args.side:
        python_side(args)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as work:
        measure(args, Path(work))
    return 0


def measure(args, work: Path) -> None:
    """All rounds, the comparison of tokens, the table."""
    text, rows = Path(args.text), []
    short = beginning(text, args.slow_mb, work / "short.jsonl")
    for threads in map(int, args.threads.split(",")):
        found: dict[str, list[dict]] = {"llama-lite": [], "tiktoken": [], "tokenizers": []}
        for number in range(args.rounds):
            out = work / f"prepared-{threads}-{number}"
            found["llama-lite"].append(ours(args, text, threads, out))
            for side in ("tiktoken", "tokenizers"):
                tokens = work / f"{side}.npy"
                found[side].append(theirs(args, side, short, threads, tokens))
                if not same_tokens(out, tokens):
                    sys.exit(f"{side} and llama-lite give different tokens")
            shutil.rmtree(out)
        for name, figures in found.items():
            wall = statistics.median(f["bytes"] / 1e6 / f["wall"] for f in figures)
            cpu = statistics.median(f["bytes"] / 1e6 / f["cpu"] for f in figures)
            rows.append({"name": name, "threads": threads, "mb_per_second": wall, "mb_per_cpu_second": cpu, "rounds": figures})
    print("| contender | threads | MB/s | MB per CPU second | of llama-lite |")
    print("|---|---|---|---|---|")
    for row in rows:
        best = next(r for r in rows if r["name"] == "llama-lite" and r["threads"] == row["threads"])
        share = row["mb_per_cpu_second"] / best["mb_per_cpu_second"]
        print(f"| {row['name']} | {row['threads']} | {row['mb_per_second']:.1f} | {row['mb_per_cpu_second']:.1f} | {share:.2f} |")
    about = {"date": datetime.now(timezone.utc).isoformat(), "machine": platform.processor() or platform.machine()}
    about |= {"cores": os.cpu_count(), "text": text.name, "text_mb": text.stat().st_size / 1e6, "rows": rows}
    write_json(args.json, about)
