"""The least time of a training step on this machine: what `bench.py cpu` prints beside what was measured.

The matrix floor is the FLOPs of the step's matrix products, causal attention counted by half, at the best rate of torch's own square product in
that precision (1024 to 2048 cubed) with as many threads. No step that multiplies that fast can be shorter.

The combined floor adds the bytes that the rest of a step moves, at the rate of a large copy with as many threads. A copy of N bytes moves 2 N:
they are read and written. These bytes count, and no others; P is the number of parameters:

* optimizer: AdamW reads weights, gradients and two moments and writes weights and moments, all f32: 7 x 4 x P
* gradients: zeroing writes them, the norm reads them: 2 x 4 x P. Clipping moves nothing, because AdamW can scale on the way
* activations: what forward must keep is written once, and backward reads it once. Of a layer: the two inputs of the norms, their outputs (the
  inputs of the products behind them), q, k and v after RoPE, attention's output and log-sum-exp, gate and up, and the input of the down projection;
  after the layers: the last norm's input and output. In f32 all are f32. In bf16 they have the types in which PyTorch's autocast keeps them: inputs
  of norms (the residual stream) and statistics f32, the others bf16

Not counted: what products read and write besides (that belongs to their rate), gradients of activations, and the logits, because a loss that is
computed in chunks needs no memory for them. So the floor is rather too low than too high. Small tensors can stay in the caches from forward to backward:
a step of a very small model can beat its share of bytes.

bench_selftest.py counts the tensors that PyTorch's autograd keeps and compares.
"""

from __future__ import annotations

F32 = 4
# Bytes of an operand of a product in memory, by precision.
OPERAND = {"f32": 4, "bf16": 2}


def parameters(model: dict) -> int:
    """Of a model without biases."""
    hidden = model["hidden_size"]
    norms = (2 * model["num_hidden_layers"] + 1) * hidden
    embeddings = model["vocab_size"] * hidden * (1 if model["tie_word_embeddings"] else 2)
    return model["num_hidden_layers"] * layer_weights(model) + norms + embeddings


def layer_weights(model: dict) -> int:
    """Of the matrices of a layer."""
    return model["hidden_size"] * (2 * query_width(model) + 2 * key_width(model) + 3 * model["intermediate_size"])


def query_width(model: dict) -> int:
    return model["num_attention_heads"] * model["head_dim"]


def key_width(model: dict) -> int:
    return model["num_key_value_heads"] * model["head_dim"]


def product_flops(model: dict, sequence: int, tokens: int) -> float:
    """Of a step's matrix products, forward and backward (three times the forward)."""
    weights = model["num_hidden_layers"] * layer_weights(model) + model["vocab_size"] * model["hidden_size"]
    # Scores and their product with the values, T/2 positions on average: 2 * 2 * (T / 2) * query, times three.
    attention = model["num_hidden_layers"] * 6 * sequence * query_width(model)
    return tokens * (6.0 * weights + attention)


def optimizer_bytes(model: dict) -> int:
    reads, writes = 4, 3
    return (reads + writes) * F32 * parameters(model)


def gradient_bytes(model: dict) -> int:
    zeroing, norm = 1, 1
    return (zeroing + norm) * F32 * parameters(model)


def kept_bytes(model: dict, precision: str) -> int:
    """What forward keeps of one token for backward."""
    hidden, operand = model["hidden_size"], OPERAND[precision]
    # The input, one statistic, and the output.
    norm = F32 * (hidden + 1) + operand * hidden
    qkv = operand * (query_width(model) + 2 * key_width(model))
    attention = operand * query_width(model) + F32 * model["num_attention_heads"]
    mlp = operand * 3 * model["intermediate_size"]
    return model["num_hidden_layers"] * (2 * norm + qkv + attention + mlp) + norm


def activation_bytes(model: dict, tokens: int, precision: str) -> int:
    writes, reads = 1, 1
    return (writes + reads) * tokens * kept_bytes(model, precision)


def floors(model: dict, sequence: int, tokens: int, precision: str, flops_per_second: float, copy_bytes_per_second: float) -> dict:
    """Both floors in seconds, and what they are computed from."""
    moved = {
        "optimizer": optimizer_bytes(model),
        "gradients": gradient_bytes(model),
        "activations": activation_bytes(model, tokens, precision),
    }
    gflop = product_flops(model, sequence, tokens) / 1e9
    matrix = gflop * 1e9 / flops_per_second
    return {
        "gemm_gflop_per_step": gflop,
        "gemm_floor_seconds": matrix,
        "bytes_per_step": moved,
        "combined_floor_seconds": matrix + sum(moved.values()) / copy_bytes_per_second,
    }
