#!/usr/bin/env python3
"""Loads a llama-lite checkpoint in transformers as it is, and checks that both mean the same by it.

  python scripts/compare_transformers.py --ckpt DIR [--prompt TEXT] [--max-tokens N] [--logits FILE] [--greedy FILE]
  python scripts/compare_transformers.py --variants DIR --binary target/release/llama-lite --ckpt HF_DIR

Always: the directory loads with AutoModelForCausalLM and AutoTokenizer with no weight missing, unused or of another
shape; rope_theta is the one config.json states; end and beginning of text are the same token in config.json,
generation_config.json and the tokenizer; the tokenizer gives text back unchanged; greedy `generate()` ends at the end
of text or after exactly N tokens, and each token is the argmax of the model without a cache.
--logits FILE    logits from llama-lite: JSON {"ids": [...], "logits": [[...], ...]} (one row per id) or a safetensors
                 file with tensors `ids` (T) or (B, T) and `logits` (..., V). Each within 1e-4 of transformers'.
--greedy FILE    lines of `llama-lite sample --greedy --json`: {"prompt", "text", "token_ids", "finish_reason"}. The
                 continuation must be transformers' own, up to the first step whose two best logits are within 1e-4 (a
                 tie that rounding decides), the text must be the tokens decoded, and "stop" must mean end of text.
--variants DIR   makes variants of the plain Hugging Face directory HF_DIR there (a Trainer's checkpoint, a tokenizer without a
                 beginning of text, a Metaspace decoder, adapters of several initialisations) and checks that llama-lite's greedy
                 tokens are transformers' and PEFT's own, or that it refuses by name.

All in f32 on the CPU. Prints one line per check; exit 0 when all hold, 1 when one fails. Runs on transformers 4 and 5,
which read config.json differently: try both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no directory must fail, not be looked up

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

TOLERANCE = 1e-4

# What byte-level BPE gets wrong first: leading and repeated spaces, line ends, digits, contractions, non-ASCII of two,
# three and four bytes, and a combining mark that a normaliser would fold.
ROUND_TRIPS = [
    "Hello, world!",
    "  two  spaces \n\n\tand tabs\r\n",
    "it's 1234567 o'clock",
    "naïve Zürich 東京 🙂 e\u0301",
    "",
]


class Checks:
    """Prints each check as it is made and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, holds: bool, name: str, detail: object = "") -> bool:
        print(f"{'ok  ' if holds else 'FAIL'} {name}{f': {detail}' if detail != '' else ''}")
        self.failed += not holds
        return holds


def load_model(directory: Path, check: Checks):
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(map(str, info[problem]))
        check(not found, problem.replace("_", " "), ", ".join(found) or "none")
    return model.eval()


def load_tokenizer(directory: Path):
    """Of a qwen2 model, AutoTokenizer of transformers 5 builds Qwen2's own (NFC, its split) whatever tokenizer.json says; llama-lite notes it."""
    config = directory / "config.json"
    is_qwen2 = config.exists() and json.loads(config.read_text()).get("model_type") == "qwen2"
    return (PreTrainedTokenizerFast if is_qwen2 else AutoTokenizer).from_pretrained(directory)


def check_config(directory: Path, model, check: Checks) -> None:
    raw = json.loads((directory / "config.json").read_text())
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings", "dtype"):
        print(f"     {key}: {raw.get(key, raw.get('torch_dtype') if key == 'dtype' else 'absent')}")
    print(f"     parameters: {model.num_parameters():,}")
    nested = (raw.get("rope_parameters") or {}).get("rope_theta")
    stated = {theta for theta in (raw.get("rope_theta"), nested) if theta is not None}
    # The frequencies that transformers made, not the key that it read, are what counts.
    frequencies = model.model.rotary_emb.inv_freq
    dim = 2 * len(frequencies)
    used = float(frequencies[-1].double() ** (-dim / (dim - 2))) if dim > 2 else None
    is_scaled = (raw.get("rope_scaling") or {}).get("rope_type", "default") != "default"
    # Scaled frequencies are no powers of theta: the tokens below are the test of those.
    fine = len(stated) == 1 and (is_scaled or used is None or abs(used / stated.copy().pop() - 1) < 1e-4)
    check(fine, "rope_theta", f"stated {sorted(stated)}, used {used}")


def check_end_of_text(directory: Path, model, tokenizer, check: Checks) -> None:
    config, generation = model.config, GenerationConfig.from_pretrained(directory)
    for role in ("eos_token_id", "bos_token_id"):
        ids = [getattr(x, role) for x in (config, generation, tokenizer)]
        detail = f"config {ids[0]}, generation_config {ids[1]}, tokenizer {ids[2]}"
        check(ids[0] is not None and ids[0] == ids[1] == ids[2], role, detail)
    count, rows = len(tokenizer), config.vocab_size
    check(count <= rows, "vocabulary", f"{count} tokens, {rows} rows")


def check_round_trips(tokenizer, check: Checks) -> None:
    for text in ROUND_TRIPS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back != text:
            check(False, "tokenizer round trip", f"{text!r} became {back!r}")
            return
    check(True, "tokenizer round trip", f"{len(ROUND_TRIPS)} texts")


def prompt_ids(tokenizer, prompt: str) -> Tensor:
    """The prompt as ids, (1, P); the end of text stands for an empty one, as between documents."""
    ids = tokenizer(prompt).input_ids or [tokenizer.eos_token_id]
    return torch.tensor([ids])


def generate(model, ids: Tensor, max_tokens: int) -> list[int]:
    """`generate()` as a user calls it: the directory's generation_config.json decides where it stops."""
    # A sampling configuration in the directory is no business of a greedy call.
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens)
    return out[0, ids.shape[1] :].tolist()


def ends_well(out: list[int], eos: int, max_tokens: int) -> bool:
    return eos not in out[:-1] and (len(out) == max_tokens or (len(out) > 0 and out[-1] == eos))


@torch.no_grad()
def first_difference(model, ids: Tensor, tokens: list[int]) -> tuple[int, float] | None:
    """Where `tokens` leave the greedy path after `ids`, and by how much logit; None if nowhere. Without a cache."""
    rows = model.config.vocab_size
    for i, token in enumerate(tokens):
        if not 0 <= token < rows:
            return i, float("inf")
    whole = torch.cat([ids, torch.tensor([tokens], dtype=torch.long)], 1)
    logits = model(whole, use_cache=False).logits[0, ids.shape[1] - 1 : -1]
    for i, (token, row) in enumerate(zip(tokens, logits)):
        if token != row.argmax():
            return i, float(row.max() - row[token])
    return None


def on_path(difference: tuple[int, float] | None, count: int) -> tuple[bool, str]:
    """The verdict on `first_difference` of `count` tokens, and it in words."""
    if difference is None:
        return count > 0, f"all {count} tokens"
    return difference[1] <= TOLERANCE, f"token {difference[0]} is {difference[1]:.1e} below the best"


def check_generate(model, tokenizer, prompt: str, max_tokens: int, check: Checks) -> None:
    ids = prompt_ids(tokenizer, prompt)
    out = generate(model, ids, max_tokens)
    print(f"     {prompt!r} -> {tokenizer.decode(out)!r}")
    stopped = out[-1:] == [tokenizer.eos_token_id]
    detail = f"{len(out)} tokens, {'end of text' if stopped else 'no end of text'}"
    check(ends_well(out, tokenizer.eos_token_id, max_tokens), "generate() ends", detail)
    fine, detail = on_path(first_difference(model, ids, out), len(out))
    check(fine, "generate() is the argmax of the uncached model", detail)


def read_logits(path: Path) -> tuple[Tensor, Tensor]:
    """ids (B, T) and logits (B, T, V)."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        ids, logits = tensors["ids"].long(), tensors["logits"].float()
    else:
        raw = json.loads(path.read_text())
        ids, logits = torch.tensor(raw["ids"]), torch.tensor(raw["logits"], dtype=torch.float32)
    return (ids[None], logits[None]) if ids.dim() == 1 else (ids, logits)


@torch.no_grad()
def check_logits(model, path: Path, check: Checks) -> None:
    ids, theirs = read_logits(path)
    ours = model(ids, use_cache=False).logits
    if not check(ours.shape == theirs.shape, "logits shape", f"{tuple(theirs.shape)}, here {tuple(ours.shape)}"):
        return
    worst = float((ours - theirs).abs().max())  # NaN compares false below, as it should
    detail = f"largest difference {worst:.1e} (allowed {TOLERANCE:.0e}), {ours.numel()} values"
    check(worst <= TOLERANCE, "logits", detail)


def check_greedy(model, tokenizer, path: Path, check: Checks) -> None:
    samples = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    check(len(samples) > 0, "greedy samples", len(samples))
    eos = tokenizer.eos_token_id
    for sample in samples:
        name, tokens = f"greedy {sample['prompt']!r}", list(sample["token_ids"])
        ids = prompt_ids(tokenizer, sample["prompt"])
        # The end of text may be written as the last token or left out; the finish reason tells that it came.
        stopped = sample.get("finish_reason") == "stop" or tokens[-1:] == [eos]
        body = tokens[:-1] if tokens[-1:] == [eos] else tokens
        check(eos not in body, f"{name}: goes no further than the end of text")
        path_taken = body + [eos] if stopped else body
        fine, detail = on_path(first_difference(model, ids, path_taken), len(path_taken))
        check(fine, f"{name}: continuation", detail)
        decoded = tokenizer.decode(body, clean_up_tokenization_spaces=False)
        same = decoded == sample["text"]
        check(same, f"{name}: text", "" if same else f"{sample['text']!r}, here {decoded!r}")


def make_variants(source: Path, target: Path) -> dict[str, bool]:
    """Directories under `target`, and whether llama-lite has to take them."""
    from peft import LoraConfig, get_peft_model

    made = {}
    for name in ("trainer", "no_bos", "metaspace"):
        shutil.copytree(source, target / name, dirs_exist_ok=True)
        made[name] = True
    state = {"global_step": 500, "log_history": [{"loss": float("nan"), "step": 10}], "max_steps": 1000}
    (target / "trainer" / "trainer_state.json").write_text(json.dumps(state))
    for name, file, changes in (
        ("no_bos", "tokenizer_config.json", {"bos_token": None}),
        ("no_bos", "config.json", {"bos_token_id": 1}),
        ("metaspace", "tokenizer.json", {"decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}}),
    ):
        path = target / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for init, taken in ((True, True), ("gaussian", True), ("orthogonal", True), ("pissa", False), ("olora", False)):
        name = f"lora_{init}".lower()
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for key, p in adapted.named_parameters():
                if "lora_B" in key:
                    p.add_(torch.randn_like(p) * 0.1)
        adapted.save_pretrained(target / name)
        made[name] = taken
    return made


def check_variants(args, check: Checks) -> None:
    from peft import PeftModel

    for name, taken in make_variants(args.ckpt.resolve(), args.variants).items():
        directory = args.variants / name
        command = [args.binary, "sample", "--ckpt", directory, "--prompt", args.prompt, "--greedy", "--json", "--quiet", "--device", "cpu"]
        run = subprocess.run(command + ["--max-tokens", str(args.max_tokens)], capture_output=True, text=True)
        if not taken:
            check(run.returncode == 78 and "not supported" in run.stderr, f"{name}: refused by name", run.stderr.splitlines()[:1])
            continue
        if not check(run.returncode == 0, f"{name}: taken", run.stderr.strip()):
            continue
        is_adapter = name.startswith("lora_")
        model = AutoModelForCausalLM.from_pretrained(args.ckpt if is_adapter else directory, dtype=torch.float32)
        model = (PeftModel.from_pretrained(model, directory) if is_adapter else model).eval()
        tokenizer = load_tokenizer(args.ckpt if is_adapter else directory)
        tokens = json.loads(run.stdout)["token_ids"]
        fine, detail = on_path(first_difference(model, prompt_ids(tokenizer, args.prompt), tokens), len(tokens))
        check(fine, f"{name}: continuation", detail)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ckpt", type=Path, required=True, help="checkpoint directory")
    p.add_argument("--prompt", default="Once upon a time", help="text to continue with generate()")
    p.add_argument("--max-tokens", type=int, default=32, help="at most so many new tokens (default 32)")
    p.add_argument("--logits", type=Path, help="logits from llama-lite, JSON or safetensors")
    p.add_argument("--greedy", type=Path, help="output of `llama-lite sample --greedy --json`")
    p.add_argument("--variants", type=Path, help="make and check variants of --ckpt in this directory")
    p.add_argument("--binary", default="target/release/llama-lite", help="the program, for --variants")
    p.add_argument("--no-tokenizer", action="store_true", help="the directory has none: weights and --logits only")
    args = p.parse_args()
    if not (args.ckpt / "config.json").is_file():
        p.error(f"--ckpt {args.ckpt}: no config.json there")
    if args.no_tokenizer and args.greedy:
        p.error("--greedy needs the tokenizer")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {args.ckpt}")
    transformers.utils.logging.disable_progress_bar()
    check = Checks()
    if args.variants:
        check_variants(args, check)
        print(f"{check.failed} checks failed" if check.failed else "all checks hold")
        return 1 if check.failed else 0
    model = load_model(args.ckpt, check)
    check_config(args.ckpt, model, check)
    if not args.no_tokenizer:
        tokenizer = load_tokenizer(args.ckpt)
        check_end_of_text(args.ckpt, model, tokenizer, check)
        check_round_trips(tokenizer, check)
        check_generate(model, tokenizer, args.prompt, args.max_tokens, check)
    if args.logits:
        check_logits(model, args.logits, check)
    if args.greedy:
        check_greedy(model, tokenizer, args.greedy, check)
    print(f"{check.failed} checks failed" if check.failed else "all checks hold")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
