"""Plants mistakes into the code and demands that the tests catch each of them.

Usage: mutants.py [--only NAME]... [--single] [--list]

The mistakes stand in scripts/mutants/*.toml, by subject. Each is one that a tired programmer could make:

    [[mutant]]
    name = "what it breaks"
    file = "src/..."
    text = "as it stands there exactly once; «what is replaced» may be marked within it"
    becomes = "the mistake"
    tests = "--lib part::of::a::test's::name"     or "--test all ..."
    build = true                                  only if it is neither an expression nor statements

All of them are compiled into ONE build of a copy of the tree (target/mutants), where each is a branch that is taken only if
LLAMA_LITE_PLANTED names it: none can disturb another, and none needs a build of its own. The tests named beside a mistake must pass while
none is at work, and fail with it. --single plants them as plain text instead, with a build for each, as is always done with those marked
`build`. Exits 1 if a mistake survives, and names it.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "scripts" / "mutants"
COPY = ROOT / "target" / "mutants" / "tree"
BUILD = ROOT / "target" / "mutants" / "build"

# Dependencies stay optimised, or the tests would take for ever; the crate itself is rebuilt in seconds.
PROFILE = ["opt-level=0", "codegen-units=256", "debug=0"]

# A mistake may make a test wait for ever.
PATIENCE_SECONDS = 600

# Appended to lib.rs of the copy.
SWITCH = """
/// Whether the planted mistake `name` is at work.
pub fn planted(name: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("LLAMA_LITE_PLANTED").ok()).as_deref() == Some(name)
}
"""


@dataclass
class Mutant:
    """A mistake: in `file`, what stands between `«` and `»` in `text` (or all of it) is replaced by `becomes`."""

    name: str
    file: str
    text: str
    becomes: str
    tests: str
    build: bool = False

    def parts(self) -> tuple[str, str, str]:
        """What is replaced, and what stands before and behind it in `text`."""
        if "«" not in self.text:
            return "", self.text, ""
        before, rest = self.text.split("«")
        replaced, after = rest.split("»")
        return before, replaced, after

    def plant(self, switched: bool) -> None:
        """Changes the copy."""
        path = COPY / self.file
        source = path.read_text(encoding="utf-8")
        before, replaced, after = self.parts()
        whole = before + replaced + after
        if source.count(whole) != 1:
            hint = "" if source.count(whole) else ": if it overlaps with another mistake's, give less around what is marked"
            sys.exit(f"{self.name}: {self.file} holds the text to change {source.count(whole)} times{hint}")
        changed = self.becomes
        if switched:
            changed = f'if crate::planted("{self.name}") {{ {self.becomes} }} else {{ {replaced} }}'
            # An expression within a line needs parentheses; statements must not have any.
            if "\n" not in replaced and not replaced.endswith(";"):
                changed = f"({changed})"
        path.write_text(source.replace(whole, before + changed + after), encoding="utf-8")


def load() -> list[Mutant]:
    """All mistakes, by file and in their order."""
    mutants = []
    for path in sorted(LISTS.glob("*.toml")):
        mutants += [Mutant(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]]
    return mutants


def copy_tree() -> None:
    """Makes COPY what git knows of the tree. Only files that differ are written: cargo goes by the time of change."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    wanted = {name for name in names.split("\0") if name and (ROOT / name).is_file()}
    for path in [path for path in COPY.rglob("*") if path.is_file() and str(path.relative_to(COPY)) not in wanted]:
        path.unlink()
    for name in wanted:
        source, target = ROOT / name, COPY / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)


def plant_switched(mutants: list[Mutant]) -> None:
    """Plants all of them, each as a branch of its own, which is no beauty: warnings are not asked for."""
    library = COPY / "src/lib.rs"
    library.write_text("#![allow(warnings)]\n" + library.read_text(encoding="utf-8") + SWITCH, encoding="utf-8")
    for mutant in mutants:
        mutant.plant(switched=True)


def cargo(arguments: list[str], planted: str = "") -> tuple[int | None, str, str]:
    """Runs `cargo test` in the copy; the exit code is none where it was not waited for any longer."""
    overrides = [word for setting in PROFILE for word in ("--config", f"profile.release.package.llama-lite.{setting}")]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(BUILD), "CARGO_INCREMENTAL": "1"}
    if planted:
        environment["LLAMA_LITE_PLANTED"] = planted
    command = ["cargo", *overrides, "test", "--release", "--locked", "-q", *arguments]
    # In a process group of its own: a test that hangs is ended with the processes that it has started.
    process = subprocess.Popen(command, cwd=COPY, env=environment, text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=None if "--no-run" in arguments else PATIENCE_SECONDS)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        return None, "", ""
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def build() -> None:
    """Compiles the copy and its tests."""
    code, _, err = cargo(["--lib", "--test", "all", "--no-run"])
    if code != 0:
        sys.exit(f"the copy does not compile:\n{err[-6000:]}")


def passes(tests: str, planted: str = "") -> bool:
    """Whether the tests that `tests` names (the target and a part of their names) pass with `planted` at work."""
    *target, name = shlex.split(tests)
    code, out, err = cargo([*target, "--", name], planted)
    if code is not None and "running 0 tests" in out:
        sys.exit(f"no test is called {name}")
    if "could not compile" in err:
        sys.exit(f"the copy does not compile:\n{err[-6000:]}")
    return code == 0


def demand_passing(mutants: list[Mutant]) -> None:
    """The tests are worth something only if they pass without a mistake."""
    for tests in sorted({mutant.tests for mutant in mutants}):
        begun = time.monotonic()
        if not passes(tests):
            sys.exit(f"without any mistake planted the tests {tests} fail already")
        print(f"pass      {tests} ({time.monotonic() - begun:.0f} s)", flush=True)


def survivors(mutants: list[Mutant], single: bool) -> list[str]:
    """Tries every mistake; the names of those that no test noticed."""
    survived = []
    for mutant in mutants:
        begun = time.monotonic()
        if single:
            copy_tree()
            mutant.plant(switched=False)
        caught = not passes(mutant.tests, mutant.name)
        print(f"{'caught' if caught else 'SURVIVED':9} {mutant.name} ({mutant.tests}, {time.monotonic() - begun:.0f} s)", flush=True)
        survived += [] if caught else [mutant.name]
    return survived


def main() -> None:
    """Tries all mistakes, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", help="a mistake's name, or a part of it")
    parser.add_argument("--single", action="store_true", help="a build for each mistake")
    parser.add_argument("--list", action="store_true", help="names them and ends")
    args = parser.parse_args()
    chosen = [mutant for mutant in load() if not args.only or any(part in mutant.name for part in args.only)]
    if args.list:
        print("\n".join(f"{mutant.name} ({mutant.file}; {mutant.tests})" for mutant in chosen))
        return
    alone = [mutant for mutant in chosen if args.single or mutant.build]
    together = [mutant for mutant in chosen if mutant not in alone]
    copy_tree()
    plant_switched(together)
    build()
    demand_passing(chosen)
    survived = survivors(together, single=False) + survivors(alone, single=True)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} planted mistakes caught")
    for name in survived:
        print(f"no test noticed: {name}")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
