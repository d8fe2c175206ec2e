#!/usr/bin/env python3
"""Fine-tunes like `llama-lite sft` with transformers and PEFT, f32, and compares every step; then adapters, logits and templates.

  python scripts/compare_peft.py --binary target/release/llama-lite --base MODEL --data alpaca.json [--steps 20]

MODEL is a checkpoint or Hugging Face directory. In a temporary directory it runs LoRA and full fine-tuning on the first records
of the file, one conversation a row and in order, and then, in Python and from nothing but the model, the records and the
configuration: writes the conversations with the tokenizer's own chat template, finds the answers by difference of renderings,
trains, and compares loss, gradient norm and rate of each step with metrics.jsonl. LoRA begins from our checkpoint of step 1 (adapters and
moments), because fresh adapters are drawn by different generators. It also loads our adapters with PEFT and compares the logits with
those of `export --merge-lora`, and lets PEFT save adapters that llama-lite must load. Exit 0 when every loss agrees within 1e-4,
every norm within 1e-3, every rate within 1e-6 (relative), and logits within 1e-4 (absolute), else 1.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH, MICRO, ROWS = 384, 4, 8
BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
IGNORE = -100

CONFIG = f"""
[data]
val = ["{{val}}"]
shuffle = false
[train]
sequence_length = {LENGTH}
micro_batch_size = {MICRO}
tokens_per_step = {LENGTH * ROWS}
steps = {{steps}}
[optimizer]
lr = {{lr}}
betas = [{BETAS[0]}, {BETAS[1]}]
weight_decay = {DECAY}
grad_clip = {CLIP}
[schedule]
warmup_steps = 3
[checkpoint]
every = 1
keep = 100
[eval]
every = 0
[sft]
packing = false
judged_prompts = 0
max_truncated = 1.0
"""
LORA = "[lora]\nrank = 8\nalpha = 16.0\n"


def conversations(tokenizer, records):
    """(ids, trained) of each record: the answer is what the rendering with it has more than the one that asks for it."""
    made = []
    for record in records:
        asked = record["instruction"] + ("\n" + record["input"] if record["input"].strip() else "")
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": record["output"]}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        prefix = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        assert whole.startswith(prefix)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        trained = [end > len(prefix) for _, end in encoded["offset_mapping"]]
        made.append((encoded["input_ids"][: LENGTH + 1], trained[: LENGTH + 1]))
    return made


def step_loss(model, batch):
    """The loss of a step, as the mean over all its trained tokens, with gradients accumulated micro-batch by micro-batch."""
    total = sum(sum(trained[1:]) for _, trained in batch)
    nats = 0.0
    for at in range(0, len(batch), MICRO):
        part = batch[at : at + MICRO]
        width = max(len(ids) for ids, _ in part)
        inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in part])
        targets = torch.tensor(
            [[i if t else IGNORE for i, t in zip(ids, trained)] + [IGNORE] * (width - len(ids)) for ids, trained in part]
        )
        logits = model(input_ids=inputs, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        (loss / total).backward()
        nats += loss.item()
    return nats / total


def rate(step, steps, lr):
    """Of update `step`, from 0: linear warm-up of 3 steps, then cosine to 0."""
    if step < 3:
        return lr * (step + 1) / 3
    return 0.5 * lr * (1 + math.cos(math.pi * (step - 3) / (steps - 3)))


def train(model, batches, records, first, steps, lr, moments):
    """Takes the steps after `first`; yields the largest relative differences from `records`."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS)
    for name, p in named if moments else []:
        name = name.replace(".default.", ".")
        optimizer.state[p] = {
            "step": torch.tensor(float(first)),
            "exp_avg": moments[f"{name}.exp_avg"].clone(),
            "exp_avg_sq": moments[f"{name}.exp_avg_sq"].clone(),
        }
    worst = [0.0, 0.0, 0.0]
    for step in range(first, steps):
        optimizer.zero_grad()
        now = rate(step, steps, lr)
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = step_loss(model, batches[step])
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], CLIP).item()
        optimizer.step()
        theirs = records[step]
        pairs = [(loss, theirs["loss"]), (norm, theirs["grad_norm"]), (now, theirs["lr"])]
        worst = [max(w, abs(a - b) / max(abs(b), 1e-12)) for w, (a, b) in zip(worst, pairs)]
    return worst


def main():
    """Runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, type=Path)
    parser.add_argument("--base", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(1)
    failed = False

    def verdict(what, good):
        nonlocal failed
        failed |= not good
        print(f"{'ok    ' if good else 'FAILED'} {what}")

    def run(*command):
        subprocess.run([args.binary, "--quiet", "--device", "cpu", *command], check=True)

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        steps = args.steps + 1
        everything = json.loads(args.data.read_text(encoding="utf-8"))
        records = everything[: steps * ROWS]
        (work / "records.json").write_text(json.dumps(records), encoding="utf-8")
        (work / "val.json").write_text(json.dumps(everything[-4:]), encoding="utf-8")
        for kind, lr in [("lora", 2e-3), ("full", 3e-4)]:
            config = CONFIG.format(val=work / "val.json", steps=steps, lr=lr) + (LORA if kind == "lora" else "")
            (work / f"{kind}.toml").write_text(config, encoding="utf-8")
            run("sft", "--config", work / f"{kind}.toml", "--ckpt", args.base, "--data", work / "records.json", "--out", work / kind)
            lines = [json.loads(line) for line in (work / kind / "metrics.jsonl").read_text().splitlines()]
            logged = [line for line in lines if line["kind"] == "train"]
            state = json.loads((work / kind / "checkpoints" / "step-00000001" / "trainer_state.json").read_text())
            base = next(l.split('"')[1] for l in state["config"].splitlines() if l.startswith("base ="))
            saved = work / kind / "checkpoints" / "step-00000001"
            tokenizer = AutoTokenizer.from_pretrained(saved)
            made = conversations(tokenizer, records)
            batches = [made[i * ROWS : (i + 1) * ROWS] for i in range(steps)]
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            first, moments = 0, None
            if kind == "lora":
                first, moments = 1, load_file(saved / "optimizer.safetensors")
                model = PeftModel.from_pretrained(model, saved, is_trainable=True)
            model.train()
            worst = train(model, batches, logged, first, steps, lr, moments)
            print(f"{kind}: loss {logged[0]['loss']:.4f} -> {logged[-1]['loss']:.4f} over {steps - first} steps")
            for name, found, allowed in zip(["loss", "grad_norm", "lr"], worst, [1e-4, 1e-3, 1e-6]):
                verdict(f"{kind}: {name} within {found:.1e} (allowed {allowed:.0e})", found <= allowed)

        last = work / "lora" / "checkpoints" / f"step-{steps:08}"
        run("export", "--ckpt", last, "--merge-lora", "--out", work / "merged")
        ids = torch.tensor([made[0][0][:64]])
        with torch.no_grad():
            merged = AutoModelForCausalLM.from_pretrained(work / "merged", dtype=torch.float32)(ids).logits
            plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            before = plain(ids).logits
            adapted = PeftModel.from_pretrained(plain, last)(ids).logits
        found, moved = (merged - adapted).abs().max().item(), (adapted - before).abs().max().item()
        verdict(f"PEFT with our adapters against export --merge-lora: {found:.1e} (they move logits by {moved:.2f})", found <= 1e-4 < moved)

        theirs = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True, task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.05)
        theirs.save_pretrained(work / "theirs")
        run("export", "--ckpt", work / "theirs", "--merge-lora", "--out", work / "theirs-merged")
        with torch.no_grad():
            wanted = theirs.eval()(ids).logits
            merged = AutoModelForCausalLM.from_pretrained(work / "theirs-merged", dtype=torch.float32)(ids).logits
        found, moved = (merged - wanted).abs().max().item(), (wanted - before).abs().max().item()
        verdict(f"adapters saved by PEFT, merged here: {found:.1e} (they move logits by {moved:.2f})", found <= 1e-4 < moved)
    sys.exit(failed)


if __name__ == "__main__":
    main()
