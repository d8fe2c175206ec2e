"""Kills `llama-lite data prepare` again and again, and demands the bytes of an undisturbed run.

Usage: torture_prepare.py [--binary target/release/llama-lite] [--kills 50] [--documents 60000] [--seed 1]

Each trial prepares the same corpus (JSON lines, gzip, duplicates, bad lines; de-duplication on) with 1, 2 or 8 threads, is killed with
SIGKILL after a random time, and is started again until it has finished. Shards, document starts, quarantine and manifest are then compared
with those of a run that nobody killed. Also counted: how often a rerun went on instead of starting again. Exits 1 at the first difference.
"""

import argparse
import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_corpus(path: Path, documents: int, seed: int) -> None:
    """Two files of documents, one compressed, with duplicates, blank and bad lines."""
    draw = random.Random(seed)
    words = ["river", "stone", "the", "over", "and", "söng", "42", "it's", "\n", "light"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 400))) for _ in range(documents // 2)]
    plain, packed = open(path / "a.jsonl", "w", encoding="utf-8"), gzip.open(path / "b.jsonl.gz", "wt", compresslevel=1)
    with plain, packed:
        for i in range(documents):
            out = plain if i % 2 else packed
            out.write("\n" if i % 97 == 0 else json.dumps({"id": i, "text": draw.choice(texts)}) + "\n")
            if i % 5000 == 4999:
                out.write('{"text": 5}\n')


def fingerprint(directory: Path) -> dict[str, str]:
    """Hashes of all that a run leaves, locks excepted."""
    files = sorted(p for p in directory.iterdir() if p.suffix != ".lock")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def command(args, corpus: Path, out: Path, threads: int) -> list[str]:
    """One `data prepare`."""
    words = [args.binary, "data", "prepare", "--input", str(corpus), "--tokenizer", "gpt2", "--out", str(out), "--dedup"]
    return [*words, "--shard-tokens", "1000000", "--val-fraction", "0.02", "--threads", str(threads), "--quiet"]


def main() -> None:
    """Prepares once undisturbed, then until the kills are used up."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default="target/release/llama-lite")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw, work = random.Random(args.seed), Path(tempfile.mkdtemp(prefix="torture-prepare-"))
    corpus = work / "corpus"
    corpus.mkdir()
    write_corpus(corpus, args.documents, args.seed)
    begun = time.monotonic()
    subprocess.run(command(args, corpus, work / "straight", 2), check=True)
    length, want = time.monotonic() - begun, fingerprint(work / "straight")
    print(f"undisturbed: {length:.2f} s, {len(want)} files")
    kills = went_on = trials = 0
    while kills < args.kills:
        out, threads = work / "killed", draw.choice([1, 2, 8])
        trials += 1
        while not (out / "shards.json").exists():
            went_on += (out / "prepare.state").exists()
            process = subprocess.Popen(command(args, corpus, out, threads))
            time.sleep(draw.uniform(0, length * (1.2 if kills < args.kills else 100)))
            if process.poll() is None:
                process.kill()
                kills += 1
            process.wait()
        if fingerprint(out) != want:
            sys.exit(f"trial {trials} with {threads} threads differs: {out}")
        shutil.rmtree(out)
    print(f"{kills} kills in {trials} trials, {went_on} reruns went on where the journal stood: all outputs equal")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
