"""What the benchmarks share: the models, PyTorch's side as processes, the machine, the files of results."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench.py"


class Failed(Exception):
    """The benchmark cannot go on; the message says why."""


def shape(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "vocab_size": vocab,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    }


# Untied, ffn about 8/3 hidden, two query heads for a key-value head; the 34 M model is the 10 M one with GPT-2's vocabulary.
SHAPES = {
    "quick": shape(128, 384, 2, 2, 1, 1024),
    "10m": shape(256, 704, 11, 4, 2, 4096),
    "30m": shape(512, 1408, 9, 8, 4, 4096),
    "34m": shape(256, 704, 11, 4, 2, 50304),
    "124m": shape(768, 3072, 12, 12, 12, 50304),  # the preset of configs/llama-124m.toml
}


def torch_command(*arguments: object) -> list[str]:
    return [sys.executable, str(BENCH), "torch", *map(str, arguments)]


def torch_side(*arguments: object) -> dict:
    """Runs a short command of PyTorch's side and returns what it prints."""
    done = subprocess.run(torch_command(*arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{arguments[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def config_text(sections: dict[str, dict]) -> str:
    """A configuration of llama-lite. JSON's strings, numbers, lists and booleans are TOML's."""
    lines = [[f"[{s}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items())] for s, keys in sections.items()]
    return "\n".join(line for section in lines for line in section) + "\n"


def write_json(path: Path | None, results: dict | list) -> None:
    """The results so far, if a file for them was given."""
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n")


def shown(path: Path) -> Path:
    """As short as it can be typed."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def cpuinfo(text: str | None = None) -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor."""
    text = Path("/proc/cpuinfo").read_text() if text is None else text
    pairs = (line.partition(":") for line in text.strip().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def machine(binary: Path) -> dict:
    version = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": cpuinfo().get("model name", "unknown"),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "llama_lite": version,
    }
