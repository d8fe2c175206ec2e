#!/usr/bin/env python3
"""Would compare_transformers.py see a mistake? `python scripts/compare_transformers_selftest.py DIR` (a few minutes).

Makes a checkpoint with a tokenizer in DIR, with logits and greedy samples computed by pytorch_llama.py, which must pass,
and then spoils one thing at a time, each of which must not. Exit 0 when all of that holds, else 1.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from compare_pytorch import make
from pytorch_llama import Llama, load_plain

END = 256
LIMIT = 24
PROMPTS = ["Once upon a time", "The cat", "A", "zebra", "", "It was late", "Now then", "why", "Hello", "42"]


def make_checkpoint(directory: Path) -> None:
    """A model that ends some of its greedy samples and not others: its head leans towards the end of text."""
    make(directory, vocab=300)
    path = directory / "model" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][END] += 0.35 * weights["model.norm.weight"].sign()
    weights["lm_head.weight"][END + 1 :] *= 0.1  # rows without a token
    save_file(weights, path, metadata={"format": "pt"})


@torch.no_grad()
def sample(model: Llama, tokenizer: Tokenizer, prompt: str) -> dict:
    ids = tokenizer.encode(prompt).ids or [END]
    out: list[int] = []
    while len(out) < LIMIT and END not in out:
        out.append(int(model(torch.tensor([ids + out]))[0, -1].argmax()))
    stopped = out[-1] == END
    body = out[:-1] if stopped else out
    reason = "stop" if stopped else "length"
    return {"prompt": prompt, "text": tokenizer.decode(body), "token_ids": body, "finish_reason": reason}


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_logits(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """`change` works in place on a view, or returns the logits cut."""
    content = json.loads(path.read_text())
    logits = torch.tensor(content["logits"])
    changed = change(logits)
    content["logits"] = (changed if changed.dim() == 2 else logits).tolist()
    path.write_text(json.dumps(content))


def edit_samples(path: Path, index: int, **change) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[index] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def spoilers(d: Path, samples: list[dict]) -> dict[str, Callable[[], object]]:
    config, generation = d / "model" / "config.json", d / "model" / "generation_config.json"
    weights, tokenizer = d / "model" / "model.safetensors", d / "model" / "tokenizer.json"
    logits, greedy, both = d / "logits.json", d / "greedy.jsonl", (config, generation)
    long = next(i for i, s in enumerate(samples) if s["finish_reason"] == "length")
    short = next(i for i, s in enumerate(samples) if s["finish_reason"] == "stop" and s["token_ids"])
    tokens = samples[long]["token_ids"]
    cut = samples[short]["token_ids"]
    return {
        "end of text 2 in both configs": lambda: [edit_json(f, lambda c: c.update(eos_token_id=2)) for f in both],
        "generation_config without eos": lambda: edit_json(generation, lambda c: c.pop("eos_token_id")),
        "bos 1 in config": lambda: edit_json(config, lambda c: c.update(bos_token_id=1)),
        "rope_theta in two versions": lambda: edit_json(config, lambda c: c.update(rope_theta=10000.0)),
        "other rope_theta": lambda: edit_json(
            config, lambda c: c.update(rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
        ),
        "other eps": lambda: edit_json(config, lambda c: c.update(rms_norm_eps=1e-2)),
        "weight missing": lambda: edit_weights(weights, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        "weight unknown": lambda: edit_weights(weights, lambda w: w.update({"model.extra": torch.zeros(3)})),
        "weight off": lambda: edit_weights(weights, lambda w: w["model.norm.weight"].mul_(1.001)),
        "tokenizer lowers case": lambda: edit_json(tokenizer, lambda t: t.update(normalizer={"type": "Lowercase"})),
        "logit off by 2e-4": lambda: edit_logits(logits, lambda x: x[3, 7].add_(2e-4)),
        "logit NaN": lambda: edit_logits(logits, lambda x: x[3, 7].fill_(float("nan"))),
        "padding rows cut from the logits": lambda: edit_logits(logits, lambda x: x[:, :257]),
        "last token another": lambda: edit_samples(greedy, long, token_ids=tokens[:-1] + [(tokens[-1] + 1) % 256]),
        "text another": lambda: edit_samples(greedy, long, text=samples[long]["text"] + " "),
        "stop without end of text": lambda: edit_samples(greedy, long, finish_reason="stop"),
        "end of text passed": lambda: edit_samples(greedy, short, token_ids=cut + [END, 5], finish_reason="length"),
        "no samples": lambda: greedy.write_text(""),
    }


def verdict(directory: Path) -> str:
    """What the command says: "pass", "fail" by a check that it names, or "broken"."""
    command = [sys.executable, str(Path(__file__).resolve().with_name("compare_transformers.py"))]
    command += ["--ckpt", "model", "--logits", "logits.json", "--greedy", "greedy.jsonl"]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if run.returncode == 1 and "checks failed" in run.stdout:
        return "fail"
    return "pass" if run.returncode == 0 else "broken"


def self_test(root: Path) -> bool:
    right = root / "right"
    make_checkpoint(right)
    model, tokenizer = load_plain(right / "model"), Tokenizer.from_file(str(right / "model" / "tokenizer.json"))
    samples = [sample(model, tokenizer, prompt) for prompt in PROMPTS]
    (right / "greedy.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    ids = torch.arange(40) * 7 % 300
    with torch.no_grad():
        logits = model(ids[None])[0]
    (right / "logits.json").write_text(json.dumps({"ids": ids.tolist(), "logits": logits.tolist()}))
    print(f"{sum(s['finish_reason'] == 'stop' for s in samples)} of {len(samples)} samples end in the end of text")
    results = [verdict(right) == "pass"]
    print(f"{'ok  ' if results[0] else 'FAIL'} nothing spoiled")
    for name in spoilers(right, samples):
        copy = root / "spoiled"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(right, copy)
        spoilers(copy, samples)[name]()
        results.append(verdict(copy) == "fail")
        print(f"{'ok  ' if results[-1] else 'FAIL'} {name}")
    return all(results)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(0 if self_test(Path(sys.argv[1])) else 1)
