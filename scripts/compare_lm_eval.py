"""Evaluates one checkpoint with llama-lite and with EleutherAI's lm-evaluation-harness on the same documents, and compares every one.

Usage: compare_lm_eval.py --ckpt DIR [--binary target/release/llama-lite] [--shots 0,5] [--documents 40] [--tasks a,b] [--data-dir DIR]
       compare_lm_eval.py --ckpt DIR --data-dir DIR --tasks piqa --time [--rounds 3]

Needs lm_eval 0.4.13 with torch and transformers (scripts/requirements.txt tells how torch is installed). Without --data-dir the documents are
made up here, in each task's own schema: random words, odd white space, brackets, letters beyond ASCII, long texts. The harness reads them
through a stand-in for `datasets.load_dataset`, so no network is used. Demanded: equal accuracies, every log-likelihood within 2e-3,
perplexities within 2e-4 of their value. With --time both are timed instead, in turns, in documents per second. Exits 1 on a difference.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SUBJECTS = ["anatomy", "us_foreign_policy", "virology", "philosophy"]
TASKS = [
    "hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa", "boolq", "sciq", "lambada_openai", "commonsense_qa",
    "truthfulqa_mc1", "truthfulqa_mc2", "wikitext", *(f"mmlu_{s}" for s in SUBJECTS),
]
NO_SHOTS = {"truthfulqa_mc1", "truthfulqa_mc2", "wikitext"}
# What the harness asks `load_dataset` for -> folder of the data directory.
FOLDERS = {
    "Rowan/hellaswag": "hellaswag", "baber/piqa": "piqa", "allenai/winogrande": "winogrande", "allenai/openbookqa": "openbookqa",
    "aps/super_glue": "boolq", "allenai/sciq": "sciq", "EleutherAI/lambada_openai": "lambada_openai", "tau/commonsense_qa": "commonsense_qa",
    "truthfulqa/truthful_qa": "truthfulqa", "EleutherAI/wikitext_document_level": "wikitext",
}

WORDS = "the a river stone Light over under runs slowly 42 it's söng naïve 東京 I'm [header] [title] -- end. Why? (so) \"yes\" 's @-@ , .".split()


def words(draw: random.Random, low: int, high: int) -> str:
    """Some words, now and then with odd space between or around them."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(low, high)))
    spice = draw.random()
    if spice < 0.06:
        text = text.replace(" ", "  ", 2)
    elif spice < 0.12:
        text += draw.choice([" ", "\n", "\u00a0", "\t "])
    elif spice < 0.16:
        text = draw.choice([" ", "\u2003"]) + text
    return text


def make_row(task: str, draw: random.Random, i: int) -> dict:
    """A document in the schema of the task's data set."""
    w = lambda low=2, high=12: words(draw, low, high)
    if task == "hellaswag":
        return {"ind": i, "activity_label": w(1, 3), "ctx_a": w(), "ctx_b": draw.choice(["", w(1, 5), "the DJ from Oslo"]), "ctx": w(),
                "endings": [w(3, 14) for _ in range(4)], "source_id": "s", "split": "val", "split_type": "x", "label": str(draw.randrange(4))}
    if task.startswith("arc_"):
        n = draw.choice([3, 4, 4, 5])
        labels = draw.choice([list("ABCDE"), list("12345")])[:n]
        return {"id": str(i), "question": w(4, 30), "choices": {"text": [w(1, 6) for _ in labels], "label": labels},
                "answerKey": draw.choice(labels)}
    if task == "piqa":
        return {"goal": w(3, 12), "sol1": w(4, 30), "sol2": w(4, 30), "label": draw.randrange(2)}
    if task == "winogrande":
        return {"sentence": f"{w(2, 6)} _ {w(2, 6)}{draw.choice(['', ' ', '.'])}", "option1": w(1, 2), "option2": w(1, 2),
                "answer": str(draw.randint(1, 2))}
    if task == "openbookqa":
        return {"id": str(i), "question_stem": w(3, 20), "choices": {"text": [w(1, 6) for _ in range(4)], "label": list("ABCD")},
                "answerKey": draw.choice("ABCD")}
    if task == "boolq":
        return {"question": w(4, 10), "passage": w(20, 120), "idx": i, "label": draw.randrange(2)}
    if task == "sciq":
        return {"question": w(), "distractor1": w(1, 4), "distractor2": w(1, 4), "distractor3": w(1, 4), "correct_answer": w(1, 4),
                "support": draw.choice(["", w(10, 60)])}
    if task == "lambada_openai":
        return {"text": w(20, 80).rstrip() + " river"}
    if task == "commonsense_qa":
        return {"id": str(i), "question": w(), "question_concept": "x",
                "choices": {"label": list("ABCDE"), "text": [w(1, 3) for _ in range(5)]}, "answerKey": draw.choice("ABCDE")}
    if task.startswith("truthfulqa"):
        n, m = draw.randint(2, 5), draw.randint(3, 7)
        return {"question": w(), "mc1_targets": {"choices": [w() for _ in range(n)], "labels": [1] + [0] * (n - 1)},
                "mc2_targets": {"choices": [w() for _ in range(m)], "labels": [draw.randrange(2) for _ in range(m - 1)] + [1]}}
    if task == "wikitext":
        lines = [f" = {w(1, 3)} = \n"] + [f" {w(10, 150)} \n" for _ in range(draw.randint(1, 12))]
        return {"page": "\n".join(lines)}
    return {"question": w(5, 40), "subject": task[5:], "choices": [w(1, 8) for _ in range(4)], "answer": draw.randrange(4)}


def folder_of(task: str) -> str:
    """Where llama-lite looks for the task's data."""
    if task.startswith("mmlu_"):
        return f"mmlu/{task[5:]}"
    return "truthfulqa" if task.startswith("truthfulqa") else task


def make_data(root: Path, tasks: list[str], documents: int) -> None:
    """Every split that a task may ask for."""
    for task in tasks:
        folder = root / folder_of(task)
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        draw = random.Random(task)
        for split, n in [("test", documents), ("validation", documents), ("train", 3 * documents), ("dev", 5)]:
            rows = [make_row(task, draw, i) for i in range(n)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def stand_in(root: Path):
    """`datasets.load_dataset` for the local files."""
    import datasets

    def load(path=None, name=None, *_, **__):
        folder = FOLDERS.get(path)
        if path == "allenai/ai2_arc":
            folder = name.lower().replace("arc-", "arc_")
        elif path == "cais/mmlu":
            folder = f"mmlu/{name}"
        if folder is None:
            raise SystemExit(f"the harness asks for {path!r} {name!r}, which is not known here")
        splits = {}
        for file in sorted((root / folder).glob("*.jsonl")):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            splits[file.stem] = datasets.Dataset.from_list(rows)
        for split in ("train", "validation", "test"):  # the harness opens splits that it does not use
            splits.setdefault(split, next(iter(splits.values())))
        return datasets.DatasetDict(splits)

    datasets.load_dataset = load


def ours(args, root: Path, tasks: list[str], shots: int, limit, out: Path) -> dict:
    """llama-lite's results file."""
    command = [args.binary, "eval", "--quiet", "--ckpt", str(args.ckpt), "--tasks", ",".join(tasks), "--data-dir", str(root),
               "--num-fewshot", str(shots), "--output", str(out), "--log-samples"]
    if limit:
        command += ["--limit", str(limit)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text(encoding="utf-8"))


def theirs(args, tasks: list[str], shots: int, limit, batch_size) -> dict:
    """The harness's results."""
    import lm_eval

    return lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={args.ckpt},dtype=float32", tasks=tasks, num_fewshot=shots or None, limit=limit,
        batch_size=batch_size, device="cpu", log_samples=True, bootstrap_iters=100_000 if not args.time else 0,
    )


def likelihoods(sample: dict) -> list[float]:
    """Of each choice of one of the harness's documents."""
    return [r[0] if isinstance(r, (list, tuple)) else r for r in sample["filtered_resps"]]


def compare(task: str, shots: int, a: dict, b: dict) -> bool:
    """Prints one line of the table; whether everything agrees."""
    samples = sorted(b["samples"][task], key=lambda s: s["doc_id"])
    worst, mine = 0.0, a["samples"][task]
    if len(mine) != len(samples):
        print(f"{task}: {len(mine)} documents against {len(samples)}")
        return False
    for x, y in zip(mine, samples, strict=True):
        lls = likelihoods(y)
        if len(lls) != len(x["ll"]):
            print(f"{task}: document {x['doc_id']}: {len(x['ll'])} likelihoods against {len(lls)}")
            return False
        worst = max([worst, *(abs(p - q) for p, q in zip(x["ll"], lls, strict=True))])
    fine, cells = worst <= 2e-3, []
    for key, want in b["results"][task].items():
        if not key.endswith(",none"):
            continue
        got = a["results"][task].get(key)
        if isinstance(want, str) or want is None:
            fine &= got == want
            continue
        # truthfulqa_mc2's accuracy is a share of probability, no count.
        loose = "perplexity" in key or "bits_per_byte" in key or task == "truthfulqa_mc2"
        same = got is not None and abs(got - want) <= (2e-4 * abs(want) if loose else 1e-9)
        fine &= same
        if not key.split(",")[0].endswith("stderr") or not same:
            cells.append(f"{key.split(',')[0]} {got:.6g}" + ("" if same else f" != {want:.6g}"))
    print(f"| {task} | {shots} | {len(mine)} | {', '.join(cells)} | {worst:.1e} | {'equal' if fine else '**DIFFERS**'} |", flush=True)
    return fine


def time_both(args, root: Path, tasks: list[str]) -> None:
    """Documents per second of both, in turns."""
    import logging

    logging.disable(logging.WARNING)
    rates = {"llama-lite": [], "lm_eval": []}
    with tempfile.TemporaryDirectory() as work:
        for round_ in range(args.rounds):
            for name in (list(rates) if round_ % 2 == 0 else list(rates)[::-1]):
                begun = time.monotonic()
                if name == "llama-lite":
                    documents = len(ours(args, root, tasks, 0, args.limit, Path(work) / "ours.json")["samples"][tasks[0]])
                else:
                    documents = len(theirs(args, tasks, 0, args.limit, "auto")["samples"][tasks[0]])
                seconds = time.monotonic() - begun
                rates[name].append(documents / seconds)
                print(f"round {round_ + 1}: {name}: {documents} documents in {seconds:.1f} s", flush=True)
    a, b = (statistics.median(rates[name]) for name in rates)
    print(f"median documents per second, loading included: llama-lite {a:.1f}, lm_eval {b:.1f}: {a / b:.2f}x")


def main() -> None:
    """Compares all tasks with each number of shots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ckpt", type=Path, help="a Hugging Face directory or checkpoint")
    parser.add_argument("--binary", default="target/release/llama-lite")
    parser.add_argument("--data-dir", type=Path, help="real data instead of made-up ones: FOLDER/SPLIT.jsonl")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--shots", default="0,5")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make-data", type=Path, metavar="DIR", help="only write the made-up documents there")
    parser.add_argument("--save", type=Path, metavar="FILE", help="the harness's numbers, for tests/fixtures/eval")
    args = parser.parse_args()
    tasks, fine, saved = args.tasks.split(","), True, []
    if args.make_data:
        return make_data(args.make_data, tasks, args.documents)
    with tempfile.TemporaryDirectory() as work:
        root = args.data_dir or Path(work) / "data"
        if args.data_dir is None:
            make_data(root, tasks, args.documents)
        stand_in(root)
        if args.time:
            return time_both(args, root, tasks)
        print("| task | shots | documents | metrics | largest difference of a log-likelihood | |\n|---|---|---|---|---|---|")
        for shots in map(int, args.shots.split(",")):
            chosen = [t for t in tasks if shots == 0 or t not in NO_SHOTS]
            a = ours(args, root, chosen, shots, args.limit, Path(work) / "ours.json")
            b = theirs(args, chosen, shots, args.limit, 8)
            for task in chosen:
                fine &= compare(task, shots, a, b)
                metrics = {k: v for k, v in b["results"][task].items() if k.endswith(",none")}
                lls = [likelihoods(s) for s in sorted(b["samples"][task], key=lambda s: s["doc_id"])]
                saved.append({"task": task, "shots": shots, "metrics": metrics, "ll": lls})
    if args.save:
        args.save.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    sys.exit(not fine)


if __name__ == "__main__":
    main()
