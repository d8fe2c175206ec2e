#!/usr/bin/env python3
"""Trains a small model of every architecture and type of RoPE, and checks that transformers loads each as what it is and continues texts alike.

    python scripts/compare_families.py [--binary target/release/llama-lite] [--steps N]         (needs torch and transformers; two minutes)

Each is trained from scratch on the built-in corpus, exported, continued greedily by llama-lite, and given to compare_transformers.py: no weight
missing, unused or of another shape, the tokenizer the same, each greedy token transformers' own. Texts go beyond the window and, with scaled
RoPE, beyond `max_position_embeddings`. The fixtures of the tests go the other way: transformers writes, llama-lite reads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = """
[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 512
max_position_embeddings = {positions}
{model}
[data]
source = "stories"
tokenizer = "train"
stories = 2000
[train]
sequence_length = 64
micro_batch_size = 16
steps = {steps}
[optimizer]
lr = 3e-3
"""
YARN = 'rope_scaling = { rope_type = "yarn", factor = 4.0, original_max_position_embeddings = 64 }'
LLAMA3 = (
    'rope_scaling = { rope_type = "llama3", factor = 4.0, low_freq_factor = 1.0, high_freq_factor = 4.0, original_max_position_embeddings = 64 }'
)
# Class in transformers, longest context, keys of [model].
FAMILIES = {
    "llama": ("LlamaForCausalLM", 256, ""),
    "llama-biases": ("LlamaForCausalLM", 256, "attention_bias = true\nmlp_bias = true"),
    "llama-linear": ("LlamaForCausalLM", 64, 'rope_scaling = { rope_type = "linear", factor = 4.0 }'),
    "llama-dynamic": ("LlamaForCausalLM", 64, 'rope_scaling = { rope_type = "dynamic", factor = 4.0 }'),
    "llama-llama3": ("LlamaForCausalLM", 256, LLAMA3),
    "mistral": ("MistralForCausalLM", 256, 'architecture = "mistral"'),
    "mistral-window": ("MistralForCausalLM", 256, 'architecture = "mistral"\nsliding_window = 24'),
    "qwen2": ("Qwen2ForCausalLM", 256, 'architecture = "qwen2"\ntie_word_embeddings = true'),
    "qwen2-yarn": ("Qwen2ForCausalLM", 64, f'architecture = "qwen2"\n{YARN}'),
    "qwen3": ("Qwen3ForCausalLM", 256, 'architecture = "qwen3"\nhead_dim = 24'),
    "qwen3-window": ("Qwen3ForCausalLM", 256, 'architecture = "qwen3"\nsliding_window = 24\nmax_window_layers = 2\nattention_bias = true'),
    "smollm3": ("SmolLM3ForCausalLM", 256, 'architecture = "smollm3"'),
}
MAX_TOKENS = 200


def run(command: list[object], **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], check=True, text=True, **options)


def compare(name: str, binary: Path, steps: int, directory: Path) -> bool:
    class_name, positions, model = FAMILIES[name]
    config, trained, exported, greedy = (directory / part for part in ("config.toml", "run", "exported", "greedy.jsonl"))
    config.write_text(COMMON.format(positions=positions, model=model, steps=steps))
    run([binary, "pretrain", "--config", config, "--out", trained, "--quiet"])
    run([binary, "export", "--ckpt", trained, "--out", exported, "--quiet"])
    found = json.loads((exported / "config.json").read_text())["architectures"]
    prompt = "Once upon a time"
    with greedy.open("w") as out:
        sample = [binary, "sample", "--ckpt", exported, "--prompt", prompt, "--greedy", "--json", "--max-tokens", MAX_TOKENS, "--quiet"]
        run(sample, stdout=out)
    script = Path(__file__).with_name("compare_transformers.py")
    checked = subprocess.run(
        [sys.executable, str(script), "--ckpt", str(exported), "--prompt", prompt, "--max-tokens", str(MAX_TOKENS), "--greedy", str(greedy)],
        capture_output=True,
        text=True,
    )
    good = checked.returncode == 0 and found == [class_name]
    print(f"{'ok  ' if good else 'FAIL'} {name}: {found[0]}, {len(json.loads(greedy.read_text())['token_ids'])} tokens", flush=True)
    if not good:
        print(checked.stdout + checked.stderr)
    return good


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--binary", type=Path, default=Path("target/release/llama-lite"), help="the program")
    p.add_argument("--steps", type=int, default=60, help="steps of training (default 60)")
    args = p.parse_args()
    failed = 0
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            failed += not compare(name, args.binary.resolve(), args.steps, Path(directory))
    print(f"{len(FAMILIES) - failed} of {len(FAMILIES)} architectures agree")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
