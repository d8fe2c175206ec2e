"""Plants bugs into the code that keeps runs safe, one at a time, and demands that the tests catch each.

Usage: mutants.py [--only NAME]...

Works on a copy of the tree in target/mutants, never on the tree itself. Each mutant is a change that a tired programmer could make; the
tests named beside it must fail with it, and pass without any (which is tried first). Exits 1 if one survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "target" / "mutants" / "tree"

LIB, ALL = ("--lib",), ("--test", "all")

# name, file, text, what it becomes, test target, test filter
MUTANTS = [
    ("write in place", "src/runtime/files.rs",
     "    let mut file = AtomicFile::create(path)?;\n    file.write_all(bytes).map_err(io_context(\"write\", path))?;\n    file.commit()",
     "    std::fs::write(path, bytes).map_err(io_context(\"write\", path))", LIB, "runtime::files"),
    ("no fsync of files", "src/runtime/files.rs", "    step(Op::Fsync(path))?;\n    file.sync_all()",
     "    let _ = (file, path);\n    Ok(())", LIB, "power"),
    ("no fsync of directories", "src/runtime/files.rs",
     "    step(Op::FsyncDir(dir))?;\n    match File::open(dir)?.sync_all() {", "    match File::open(dir).map(drop) {", LIB, "power"),
    ("old checkpoints deleted before the new one is durable", "src/checkpoint/save.rs",
     "    let mut writer = Writer::create(",
     "    for old in super::find::list(&root)?.sound {\n        files::remove_tree(&old.dir)?;\n    }\n    let mut writer = Writer::create(",
     LIB, "checkpoint"),
    ("newest by modification time", "src/checkpoint/find.rs",
     "listing.sound.sort_by(|a, b| (b.manifest.step, &b.dir).cmp(&(a.manifest.step, &a.dir)));",
     "let at = |v: &Valid| v.dir.metadata().and_then(|m| m.modified()).ok();\n    listing.sound.sort_by(|a, b| at(b).cmp(&at(a)));",
     ALL, "torture"),
    ("AdamW's step is not restored", "src/train/state.rs", "self.optimizer.updates = saved.counters.updates;",
     "self.optimizer.updates = 0;", ALL, "resum"),
    ("samples depend on the attempt", "src/train/run/interludes.rs", "tokenizer.vocab_size(), s.seed, i as u64)",
     "tokenizer.vocab_size(), s.seed + self.place.attempt, i as u64)", ALL, "resum"),
    ("data cursor off by one", "src/train/state.rs", "self.counters = saved.counters.clone();",
     "self.counters = saved.counters.clone();\n        self.counters.next_sequence += 1;", ALL, "resum"),
    ("every epoch in the same order", "src/data/order.rs", "Permutation::new(ORDER, self.n, self.seed, epoch)",
     "Permutation::new(ORDER, self.n, self.seed, epoch * 0)", LIB, "data::order"),
    ("an error of a write is ignored", "src/runtime/files/append.rs", "            io_failure(\"append to\", path, &e).into()\n",
     "            let _ = e;\n            anyhow::anyhow!(\"\")\n", LIB, "log_grows"),
    ("refused updates are multiplied by 0", "src/train/step.rs",
     "    if !verdict.refuses() {\n        state.optimizer.update(&state.model.flat, &state.grad, grad_norm, lr)?;\n    }",
     "    let factor = if verdict.refuses() { 0.0 } else { 1.0 };\n    let grad = (&state.grad * factor)?;\n"
     "    state.optimizer.update(&state.model.flat, &grad, grad_norm * factor, lr * factor)?;", ALL, "not_finite"),
    ("logs are not cut on resume", "src/metrics/jsonl.rs", "        if !tail.is_empty() {", "        if false && !tail.is_empty() {",
     ALL, "resum"),
    ("a refused value enters the guard's window", "src/train/guard.rs",
     "            self.skipped.push_back(step);\n        } else {",
     "            self.skipped.push_back(step);\n        }\n        {", LIB, "train::guard"),
    ("a save is acknowledged before it is written", "src/train/run/saving.rs",
     "        self.stalled = begun.elapsed();\n        self.progress.interruption(\"saving\", self.config.checkpoint.every, self.stalled);\n        Ok(())",
     "        let dir = self.place.dir.clone();\n        self.acknowledge(self.state.counters.step, &dir, begun.elapsed())", LIB, "commands::tests::saving"),
]


def tests(target: tuple[str, ...], name: str) -> bool:
    """Whether the tests whose name holds `name` pass in the copy."""
    command = ["cargo", "test", "--release", "--locked", "-q", *target, "--", name]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(COPY.parent / "build")}
    done = subprocess.run(command, cwd=COPY, capture_output=True, text=True, env=environment)
    if "could not compile" in done.stderr:
        sys.exit(f"a mutant does not compile:\n{done.stderr[-3000:]}")
    if " 0 passed" in done.stdout and " 0 failed" in done.stdout:
        sys.exit(f"no test is called {name}")
    return done.returncode == 0


def main() -> None:
    """Tries every mutant."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="a mutant's name, or a part of it")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.only or any(o in m[0] for o in args.only)]
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, files):
        path = COPY / name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name.decode(), path)
    for target, name in sorted({(m[4], m[5]) for m in chosen}):
        if not tests(target, name):
            sys.exit(f"without any mutant the tests {name} fail already")
    survivors = []
    for name, file, old, new, target, filter_ in chosen:
        path, begun = COPY / file, time.monotonic()
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            sys.exit(f"{name}: {file} holds the text to change {text.count(old)} times")
        path.write_text(text.replace(old, new), encoding="utf-8")
        caught = not tests(target, filter_)
        path.write_text(text, encoding="utf-8")
        print(f"{'caught' if caught else 'SURVIVED':9} {name} ({filter_}, {time.monotonic() - begun:.0f} s)", flush=True)
        survivors += [] if caught else [name]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
