#!/usr/bin/env python3
"""Exports small models as GGUF files, and compares what two other programs make of them with what llama-lite makes of the models.

  python3 -m venv target/gguf-venv
  target/gguf-venv/bin/pip install gguf llama-cpp-python sentencepiece tokenizers      # compiles llama.cpp: many minutes
  target/gguf-venv/bin/python scripts/compare_gguf.py [--binary target/release/llama-lite] [--work DIR]

The models: `random` (weights as drawn, heads of an unusual width), `stories` (trained for a few hundred steps with a tokenizer of its own,
tied) and `gpt2` (GPT-2's tokens, rows of padding); then one of each other architecture and of each scaling of RoPE. Of each:

file      Every tensor that the package `gguf` reads from the f32 file is the checkpoint's, bit for bit, with the rows of q and k in
          llama.cpp's order; the other files have the types that were asked for.
tokens    llama.cpp and Hugging Face's `tokenizers` give texts the same ids; also those of tokenizers with each split of words that has a
          name in llama.cpp, and of one that `sentencepiece` trains, with spaces before a text and without.
logits    llama.cpp's log-probabilities of the f32 file are those of llama-lite.
greedy    64 greedy tokens of the f16 file are llama-lite's, up to the first step whose two best logits are nearer than rounding to f16 may move them.
q8_0      The divergence (KL, nats per token) of the q8_0 file from the f32 file is small.

Prints one line per check; exit 0 when all hold, 1 when one fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
from gguf import GGUFReader
from llama_cpp import Llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "One day a"
STEPS = 64

# llama.cpp rounds the inputs of products with f16 weights to f16 as well.
F16_TIE = 0.02
LOGPROBS = 1e-4
KL = 0.01

TEXTS = [
    "One day a little cat went home.",
    "  two  spaces \n\n\tand tabs\r\n",
    "it's 1234567 o'clock, they'll say",
    "naïve Zürich 東京 🙂",
    "",
]

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

STORIES = """
[model]
hidden_size = 64
intermediate_size = 160
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 512
rope_theta = 10000.0
tie_word_embeddings = true
initializer_range = 0.06
[data]
source = "stories"
tokenizer = "train"
stories = 2000
val_stories = 20
[train]
sequence_length = 128
micro_batch_size = 4
tokens_per_step = 512
steps = 300
[optimizer]
lr = 3e-3
[schedule]
warmup_steps = 20
[checkpoint]
every = 1000
"""
RANDOM = STORIES.replace("steps = 300", "steps = 30").replace("lr = 3e-3", "lr = 1e-9")
RANDOM = RANDOM.replace("tie_word_embeddings = true", "tie_word_embeddings = false\nhead_dim = 24")
RANDOM = RANDOM.replace("initializer_range = 0.06", "initializer_range = 0.2")
GPT2 = STORIES.replace('source = "stories"\ntokenizer = "train"\nstories = 2000\nval_stories = 20', 'train = ["BOOK"]\ntokenizer = "gpt2"\nval_fraction = 0.1')
GPT2 = GPT2.replace("vocab_size = 512", "vocab_size = 50304").replace("steps = 300", "steps = 60")


# Positions beyond the original 32 are compared as well.
SHORT = "original_max_position_embeddings = 32"
VARIANTS = {
    "biases": "attention_bias = true\nmlp_bias = true",
    "mistral": 'architecture = "mistral"',
    "qwen2": 'architecture = "qwen2"',
    "qwen3": 'architecture = "qwen3"\nhead_dim = 32',
    "smollm3": 'architecture = "smollm3"',
    "linear": 'rope_scaling = { rope_type = "linear", factor = 2.0 }',
    "llama3": f'rope_scaling = {{ rope_type = "llama3", factor = 8.0, low_freq_factor = 1.0, high_freq_factor = 4.0, {SHORT} }}',
    "yarn": f'rope_scaling = {{ rope_type = "yarn", factor = 4.0, {SHORT} }}',
}

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*SUFFIX|DIGITS"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# llama.cpp's name, the regular expression (or none: a step for digits and GPT-2's own), and whether whole words go before merges.
SPLITS = [
    ("smollm", None, False),
    ("llama-bpe", GPT4.replace("DIGITS", r"\p{N}{1,3}"), True),
    ("dbrx", GPT4.replace("DIGITS", r"\p{N}{1,3}"), False),
    ("qwen2", GPT4.replace("DIGITS", r"\p{N}"), False),
    ("gpt-4o", GPT4O.replace("DIGITS", r"\p{N}{1,3}").replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"), False),
    ("tekken", GPT4O.replace("DIGITS", r"\p{N}").replace("SUFFIX", ""), True),
]


class Checks:
    """Prints each check as it is made and remembers whether one failed."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, what: str, holds: bool, shown: str = "") -> None:
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {what}{': ' if shown else ''}{shown}", flush=True)


class Model:
    """A trained model, its exports, and the program that made them."""

    def __init__(self, program: Path, work: Path, name: str, config: str) -> None:
        self.program, self.work, self.name = program, work, name
        (work / f"{name}.toml").write_text(config)
        self.run("pretrain", "--config", work / f"{name}.toml", "--out", work / name)
        self.plain = work / f"{name}-hf"
        self.run("export", "--ckpt", work / name, "--out", self.plain)

    def run(self, *args: object) -> str:
        command = [str(self.program), *map(str, args), "--quiet"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def export(self, dtype: str) -> Path:
        path = self.work / f"{self.name}-{dtype}.gguf"
        if not path.exists():
            self.run("export", "--ckpt", self.work / self.name, "--format", "gguf", "--dtype", dtype, "--out", path)
        return path

    def config(self) -> dict:
        return json.loads((self.plain / "config.json").read_text())

    def tensors(self) -> dict[str, np.ndarray]:
        """The checkpoint's weights, from the bytes of the safetensors file."""
        data = (self.plain / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = {k: v for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__"}
        found = {}
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[8 + length + start : 8 + length + end], "<f4").reshape(entry["shape"])
        return found

    def greedy(self) -> dict:
        line = self.run("sample", "--ckpt", self.work / self.name, "--prompt", PROMPT, "--temperature", "0",
                        "--max-tokens", STEPS, "--json", "--logprobs", "5", "--precision", "f32")
        return json.loads(line)


def name_in_gguf(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{NAMES[module]}.{kind}"
    layer, module = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def compare_file(model: Model, checks: Checks) -> None:
    config = model.config()
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if config["model_type"].startswith("qwen"):
        heads = {}
    expected = {}
    for name, values in model.tensors().items():
        module = name.split(".")[-2]
        if module in heads:
            # Heads, halves, pairs: a pair's two rows become neighbours.
            values = values.reshape(heads[module], 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        expected[name_in_gguf(name)] = values
    found = {t.name: t.data.reshape(expected[t.name].shape) for t in GGUFReader(model.export("f32")).tensors if t.name in expected}
    same = found.keys() == expected.keys() and all(np.array_equal(found[n], v) for n, v in expected.items())
    checks.check(f"{model.name}: file: {len(expected)} tensors are the checkpoint's", same)
    for dtype in ["f16", "bf16", "q8_0"]:
        kinds = {t.tensor_type.name for t in GGUFReader(model.export(dtype)).tensors if len(t.shape) == 2}
        checks.check(f"{model.name}: file: matrices in {dtype}", kinds == {dtype.upper()}, ", ".join(sorted(kinds)))


def open_in_llama_cpp(path: Path) -> Llama:
    # The cache in f32 (type 0), as llama-lite has it.
    return Llama(str(path), n_ctx=128, logits_all=True, n_threads=2, type_k=0, type_v=0, verbose=False)


def logits(llama: Llama, ids: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float64)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def compare_tokens(model: Model, llama: Llama, checks: Checks) -> list[int]:
    tokenizer = Tokenizer.from_file(str(model.plain / "tokenizer.json"))
    differing = [t for t in TEXTS if llama.tokenize(t.encode(), special=True) != tokenizer.encode(t).ids]
    checks.check(f"{model.name}: tokens: {len(TEXTS)} texts", not differing, repr(differing) if differing else "")
    return tokenizer.encode(PROMPT).ids


def compare_logits(model: Model, llama: Llama, prompt: list[int], made: dict, checks: Checks) -> None:
    ids = prompt + made["token_ids"]
    theirs = log_softmax(logits(llama, ids))[len(prompt) - 1 :]
    worst = 0.0
    for step, entry in enumerate(made["logprobs"]):
        for top in entry["top"]:
            worst = max(worst, abs(top["logprob"] - theirs[step, top["token_id"]]))
    checks.check(f"{model.name}: logits: f32 at {len(made['logprobs'])} steps", worst <= LOGPROBS, f"largest difference {worst:.1e}")


def compare_greedy(model: Model, llama: Llama, prompt: list[int], made: dict, checks: Checks) -> None:
    llama.reset()
    llama.eval(prompt)
    same = 0
    for wanted in made["token_ids"]:
        row = np.array(llama.scores[llama.n_tokens - 1])
        best, second = np.argsort(row)[::-1][:2]
        if best != wanted:
            tie = row[best] - row[second] <= F16_TIE and second == wanted
            checks.check(f"{model.name}: greedy: f16", tie, f"{same} tokens, then logits {row[best] - row[second]:.1e} apart")
            return
        same += 1
        llama.eval([int(best)])
    ending = "" if made["finish_reason"] == "length" else ", then the end of the text"
    checks.check(f"{model.name}: greedy: f16", True, f"all {same} tokens{ending}")


def compare_q8(model: Model, prompt: list[int], made: dict, checks: Checks) -> None:
    ids = prompt + made["token_ids"]
    exact, rounded = (log_softmax(logits(open_in_llama_cpp(model.export(d)), ids)) for d in ["f32", "q8_0"])
    kl = (np.exp(exact) * (exact - rounded)).sum(axis=-1)
    checks.check(f"{model.name}: q8_0", kl.mean() <= KL, f"KL mean {kl.mean():.1e}, largest {kl.max():.1e} over {len(kl)} tokens")


def compare(model: Model, checks: Checks) -> None:
    compare_file(model, checks)
    llama = open_in_llama_cpp(model.export("f32"))
    prompt = compare_tokens(model, llama, checks)
    made = model.greedy()
    compare_logits(model, llama, prompt, made, checks)
    compare_greedy(model, open_in_llama_cpp(model.export("f16")), prompt, made, checks)
    compare_q8(model, prompt, made, checks)


def sentencepiece_file(book: Path, prefix: bool) -> dict:
    """A tokenizer.json of a vocabulary that SentencePiece trains on `book`, as Hugging Face's converters write it."""
    stem = book.with_name(f"sentencepiece-{prefix}")
    sentencepiece.SentencePieceTrainer.train(
        input=str(book), model_prefix=str(stem), vocab_size=500, model_type="bpe", byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix)
    model = sentencepiece.SentencePieceProcessor(model_file=f"{stem}.model")
    pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(vocab, key=lambda piece: -model.get_score(vocab[piece])):
        if not (model.is_byte(vocab[piece]) or model.is_control(vocab[piece]) or model.is_unknown(vocab[piece])):
            halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            merges += [f"{a} {b}" for a, b in halves if a in vocab and b in vocab]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prefix else [replace]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": pieces[i], **special} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False, "vocab": vocab, "merges": merges},
    }


def byte_level_file(book: Path, regex: str | None, ignore_merges: bool) -> dict:
    """A tokenizer.json with the split `regex`, or with one that cuts off digits, trained on `book`."""
    tokenizer = Tokenizer(models.BPE())
    if regex is None:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        steps = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train([str(book)], trainer)
    root = json.loads(tokenizer.to_str())
    root["model"]["ignore_merges"] = ignore_merges
    return root


def compare_tokenizer(model: Model, name: str, root: dict, book: Path, checks: Checks) -> None:
    """Gives `model` the tokenizer `root`; what its weights make of that does not matter here."""
    plain = model.work / f"{name}-hf"
    shutil.copytree(model.plain, plain)
    (plain / "tokenizer.json").write_text(json.dumps(root))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    path = model.work / f"{name}.gguf"
    model.run("export", "--ckpt", plain, "--format", "gguf", "--out", path)
    if root["model"].get("byte_fallback") is not True:
        pre = GGUFReader(path).get_field("tokenizer.ggml.pre").contents()
        checks.check(f"{name}: tokens: the name of the split", pre == name, pre)
    llama = Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = Tokenizer.from_str(json.dumps(root))
    texts = [text for text in TEXTS + book.read_text().splitlines() if text]
    # The first id is the beginning of a text, which only llama.cpp has been told of.
    differing = [text for text in texts if llama.tokenize(text.encode(), special=True)[1:] != tokenizer.encode(text).ids]
    shown = f"{differing[0]!r} and {len(differing) - 1} others" if differing else ""
    checks.check(f"{name}: tokens: {len(texts)} texts", not differing, shown)


def compare_tokenizers(model: Model, book: Path, checks: Checks) -> None:
    for prefix in [True, False]:
        name = f"sentencepiece-{'with' if prefix else 'without'}-prefix"
        compare_tokenizer(model, name, sentencepiece_file(book, prefix), book, checks)
    for name, regex, ignore_merges in SPLITS:
        compare_tokenizer(model, name, byte_level_file(book, regex, ignore_merges), book, checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/llama-lite")
    parser.add_argument("--work", type=Path, help="keep models and files in this directory")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    book = work / "book.txt"
    book.write_text("\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
    checks = Checks()
    for name, config in [("random", RANDOM), ("stories", STORIES), ("gpt2", GPT2.replace("BOOK", str(book)))]:
        model = Model(args.binary, work, name, config)
        compare(model, checks)
        if name == "stories":
            compare_tokenizers(model, book, checks)
    for name, settings in VARIANTS.items():
        config = STORIES.replace("[model]", f"[model]\n{settings}").replace("steps = 300", "steps = 100")
        compare(Model(args.binary, work, name, config.replace("num_hidden_layers = 2", "num_hidden_layers = 4")), checks)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
