"""Llama in as few lines of plain PyTorch as it takes, under Hugging Face's parameter names, and inputs for it.

`Llama` is written from the formulas: the scripts beside it use it as a reference that depends neither on llama-lite nor on transformers.
`FastLlama` has the same weights and is what the benchmarks compare speed with; `PackedLlama` is the same with fewer, larger products, for GPUs.
Choices that were measured (CPU seconds, one thread, torch 2.15) are marked so; the slower spellings are those of most tutorials and would
flatter llama-lite.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is a local directory

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """Measured: F.rms_norm has no fused kernel on a CPU and makes an eager step 2-3 % slower; compiled, both take the same time. Of a
    residual stream in bf16 the statistics are f32, and only the result is rounded."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal attention from its formula. One product per matrix: measured, packed q-k-v and gate-up are 3-8 % slower on a CPU, because
    their halves are strided."""

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, t, -1))


class FusedAttention(Attention):
    """The same weights through PyTorch's fused kernel, for speed."""

    def forward(self, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.project(x)
        q, k, v = (y.transpose(1, 2) for y in [fused_rotate(q, cos, signed_sin), fused_rotate(k, cos, signed_sin), v])
        # Measured: enable_gqa is 5-15 % faster than repeating or expanding k and v.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, T, heads, D) each."""
        return tuple(linear(x).unflatten(-1, (-1, self.head_dim)) for linear in [self.q_proj, self.k_proj, self.v_proj])


class PackedAttention(FusedAttention):
    """One product for q, k and v."""

    def __init__(self, c: SimpleNamespace):
        super().__init__(c)
        pack(self, "qkv_proj", ["q_proj", "k_proj", "v_proj"])

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        packed = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        return packed.split([self.heads, self.kv_heads, self.kv_heads], dim=2)


class Mlp(nn.Module):
    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PackedMlp(Mlp):
    """One product for gate and up."""

    def __init__(self, c: SimpleNamespace):
        super().__init__(c)
        pack(self, "gate_up_proj", ["gate_proj", "up_proj"])

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


def pack(module: nn.Module, packed: str, names: list[str]) -> None:
    """Replaces the products `names` of `module` by one, which loads the weights under either name."""
    parts = [getattr(module, name) for name in names]
    for name in names:
        delattr(module, name)
    setattr(module, packed, nn.Linear(parts[0].in_features, sum(p.out_features for p in parts), bias=False))

    def concatenate(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
        if f"{prefix}{packed}.weight" not in weights:
            weights[f"{prefix}{packed}.weight"] = torch.cat([weights.pop(f"{prefix}{name}.weight") for name in names])

    module.register_load_state_dict_pre_hook(concatenate)


class Layer(nn.Module):
    def __init__(self, c: SimpleNamespace, attention: type[Attention], mlp: type[Mlp]):
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = mlp(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """`forward(ids (B, T)) -> logits (B, T, V)`: the reference."""

    attention: type[Attention] = Attention
    mlp: type[Mlp] = Mlp

    def __init__(self, c: SimpleNamespace):
        super().__init__()
        self.c = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(Layer(c, self.attention, self.mlp) for _ in range(c.num_hidden_layers))
        self.model.norm = RmsNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))

    def forward(self, ids: Tensor) -> Tensor:
        tables = rope_tables(ids.shape[1], self.c.head_dim, self.c.rope_theta)
        return self.logits(ids, *(table.to(self.lm_head.weight.dtype) for table in tables))


class FastLlama(Llama):
    """`forward(ids (B, T), targets (B, T)) -> mean loss`: the fastest plain step found, for the benchmarks. T is fixed."""

    attention = FusedAttention

    def __init__(self, c: SimpleNamespace, length: int):
        super().__init__(c)
        self.cross_entropy = mean_loss
        cos, sin = rope_tables(length, c.head_dim, c.rope_theta)
        half = c.head_dim // 2
        signed_sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)
        # (T, 1, D): the same for all heads.
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("signed_sin", signed_sin[:, None], persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        # Measured: the chunked F.linear_cross_entropy of torch 2.15 is 5 % (vocabulary 4096) to 150 % (50304) slower.
        return self.cross_entropy(self.logits(ids, self.cos, self.signed_sin).flatten(0, 1), targets.flatten())


class PackedLlama(FastLlama):
    """FastLlama with one product for q, k and v and one for gate and up. It loads FastLlama's weights."""

    attention, mlp = PackedAttention, PackedMlp


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """In f32, also of logits in bf16; compiled, these are never written in f32."""
    return F.cross_entropy(logits.float(), targets)


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (T, D), the D/2 frequencies twice: the half-split layout."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def fused_rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """RoPE, half-split, of (B, T, H, D), with tables in f32. Measured: a roll and a fused multiply-add are as fast as anything."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin).to(x.dtype)


def read_hf_config(directory: Path) -> SimpleNamespace:
    """config.json of a Llama directory, with rope_theta and head_dim wherever transformers has put them."""
    raw = json.loads((directory / "config.json").read_text())
    if raw.get("model_type") != "llama" or raw.get("attention_bias") or raw.get("mlp_bias"):
        raise SystemExit(f"{directory}/config.json: only Llama without biases")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise SystemExit(f"{directory}/config.json: only the default RoPE")
    raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    raw["head_dim"] = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    raw["num_key_value_heads"] = raw.get("num_key_value_heads") or raw["num_attention_heads"]
    raw.setdefault("tie_word_embeddings", False)
    return SimpleNamespace(**raw)


def load_plain(directory: Path) -> Llama:
    """The model of a Hugging Face directory, sharded or not, converted to f32."""
    config = read_hf_config(directory)
    index = directory / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
    weights = {k: v.float() for n in sorted(names) for k, v in load_file(directory / n).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = Llama(config)
    model.load_state_dict(weights, strict=True)
    return model


def load_transformers(directory: Path) -> nn.Module:
    """The same model in transformers' implementation, with the same call."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(ids, use_cache=False).logits

    return Logits()


def randomise(model: nn.Module, seed: int, spread: float = 0.08) -> None:
    """Weights large enough for attention and gates to matter; norms away from 1, so that their use shows.

    In the order of the names, so that a seed gives the same weights whichever implementation the model is of.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * spread if p.dim() >= 2 else 1 + 0.2 * noise)


END_OF_TEXT = 256  # of the byte tokenizer


def write_byte_tokenizer(directory: Path) -> None:
    """A byte-level BPE without merges, 256 ids for bytes and one for the end of text, for models whose ids alone matter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in letters)
    letters |= {b: chr(256 + i) for i, b in enumerate(others)}
    end = {"id": END_OF_TEXT, "content": "<|endoftext|>", "special": True, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end | {"single_word": False, "lstrip": False, "rstrip": False}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {letters[b]: i for i, b in enumerate(sorted(letters))}, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer) + "\n")


def markov_tokens(rng: np.random.Generator, vocab: int, count: int) -> np.ndarray:
    """Tokens with something to learn: the next one is mostly a fixed function of the last, else Zipf's."""
    chains = 64  # side by side, so that the loop is short
    length = -(-count // chains)
    out = np.minimum(rng.zipf(1.3, (length, chains)) - 1, vocab - 1)
    follow = rng.random((length, chains)) < 0.6
    for i in range(1, length):
        out[i] = np.where(follow[i], (out[i - 1] * 31 + 7) % vocab, out[i])
    return out.T.reshape(-1)[:count].astype(np.uint16)
