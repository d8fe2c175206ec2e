#!/usr/bin/env python3
"""Reads a run's TensorBoard files with TensorBoard itself and compares them with metrics.jsonl and samples.jsonl.

  pip install tensorboard
  python scripts/check_tensorboard.py RUN

Exit 1 if a scalar or a text is missing, out of order or different (scalars are f32 there).
"""

import json
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main() -> None:
    """Compares."""
    run = Path(sys.argv[1])
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted: dict[str, list[tuple[int, float]]] = {}

    def want(tag: str, step: int, value: float | None) -> None:
        if value is not None:
            wanted.setdefault(tag, []).append((step, value))

    for line in lines:
        if line["kind"] == "train":
            for key in ["loss", "grad_norm", "lr", "tokens"]:
                want(f"train/{key}", line["step"], line[key])
        elif line["kind"] == "val":
            for key in ["loss", "bits_per_byte"]:
                want(f"val/{key}", line["step"], line[key])
        elif line["kind"] == "layers":
            for i, name in enumerate(line["names"]):
                want(f"layer_grad_norm/{name}", line["step"], line["grad_norm"][i])
        else:
            want(f"eval/{line['task']}/{line['metric']}", line["step"], line["value"])
    failed = False
    for tag, pairs in wanted.items():
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        good = found == [(step, float(np.float32(value))) for step, value in pairs]
        times = [e.wall_time for e in events.Scalars(tag)]
        good &= times == sorted(times)
        failed |= not good
        print(f"{'ok    ' if good else 'FAILED'} {tag}: {len(found)} of {len(pairs)}")
    texts = [e for tag in events.Tags()["tensors"] for e in events.Tensors(tag)]
    samples = (run / "samples.jsonl").read_text().splitlines() if (run / "samples.jsonl").exists() else []
    good = len(texts) == len(samples)
    failed |= not good
    print(f"{'ok    ' if good else 'FAILED'} texts: {len(texts)} of {len(samples)}")
    if texts:
        print(texts[-1].tensor_proto.string_val[0].decode()[:200])
    sys.exit(failed)


if __name__ == "__main__":
    main()
