"""Which processor this is, what llama-lite uses of it, and which precision is the best one here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from benches.shared import Failed, cpuinfo

# As /proc/cpuinfo spells them.
FEATURES = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
# Words of a model name that tell nothing: "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz".
NOISE = re.compile(r"\((r|tm)\)|@.*|\b\d+-core\b|\b(cpu|processor)\b", re.IGNORECASE)
# How llama-lite computes bf16 products, by its doctor: "bf16 (AMX)", "bf16: AMX"; programs of before AMX say "bf16 products: yes".
BF16 = re.compile(r"\bbf16(?: products)?(?:: | \(|\s{2,})(AMX|AVX512_BF16|rounded to bf16, multiplied in f32|yes|no)\b")
# What was not recorded when it was measured.
NOT_RECORDED = "not recorded"
SIMD = "LLAMA_LITE_SIMD"


def processor(facts: dict[str, str] | None = None) -> dict:
    """The first processor of /proc/cpuinfo; x86's names of its lines, or Arm's."""
    facts = cpuinfo() if facts is None else facts
    flags = facts.get("flags", "").split()

    def first_of(*keys: str) -> str:
        return next((facts[key] for key in keys if key in facts), "unknown")

    return {
        "vendor": first_of("vendor_id", "CPU implementer"),
        "name": first_of("model name"),
        "family": first_of("cpu family", "CPU architecture"),
        "model": first_of("model", "CPU part"),
        "stepping": first_of("stepping", "CPU revision"),
        "features": {name: name in flags for name in FEATURES},
    }


def slug(cpu: dict) -> str:
    """Part of a file's name: vendor, model name, and the numbers of family and model, because a virtual machine may say no more than "AMD EPYC"."""
    words = re.findall(r"[a-z0-9]+", NOISE.sub(" ", cpu["name"].lower()))
    vendor = VENDORS.get(cpu["vendor"], re.sub(r"[^a-z0-9]+", "", cpu["vendor"].lower()))
    if cpu["vendor"] != NOT_RECORDED and words[:1] != [vendor]:
        words.insert(0, vendor)
    for key in ("family", "model"):
        if cpu[key] != NOT_RECORDED:
            words.append(f"{key}{cpu[key]}")
    return "-".join(words)


def describe(cpu: dict) -> str:
    numbers = [f"{key} {cpu[key]}" for key in ("family", "model", "stepping") if cpu[key] != NOT_RECORDED]
    text = ", ".join([cpu["vendor"], *numbers]) if numbers else "vendor, family, model and features not recorded"
    if cpu["features"] == NOT_RECORDED:
        return f"{cpu['name']} ({text})"
    there, absent = ([name for name in cpu["features"] if cpu["features"][name] is wanted] for wanted in (True, False))
    without = f", without {', '.join(absent)}" if absent else ""
    return f"{cpu['name']} ({text}); {', '.join(there) or 'none of the features that matter'}{without}"


def chosen(binary: Path) -> dict:
    """What llama-lite says that it uses here."""
    done = subprocess.run([str(binary), "doctor", "--device", "cpu"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"llama-lite doctor ended with {done.returncode}: {done.stderr.strip()}")
    return read_doctor(done.stdout) | {SIMD: os.environ.get(SIMD) or None}


def read_doctor(text: str) -> dict:
    """The registers' width, and how bf16 products are computed."""
    bf16 = BF16.search(text)
    line = re.search(r"^cpu\s+(\S.*)", text, re.MULTILINE)
    parts = line[1].split(", ") if line else []
    simd = [part for part in parts if "thread" not in part and not part.startswith("bf16 products")]
    return {"simd": ", ".join(simd) or "unknown", "bf16_products": bf16[1] if bf16 else "unknown"}


def bf16_kernel(choice: dict) -> str | None:
    """The instructions that multiply bf16 in llama-lite here, if there are any."""
    found = re.match(r"AMX|AVX512_BF16|yes", choice["bf16_products"])
    # Programs that say "yes" know this one alone.
    return found and found[0].replace("yes", "AVX512_BF16")


def warnings(cpu: dict, choice: dict, measured: list[str]) -> list[str]:
    """Where what is measured is not the best of this machine."""
    kernel, found = bf16_kernel(choice), []
    if kernel and "bf16" not in measured:
        found.append(f"f32 is measured, but llama-lite multiplies bf16 by {kernel} here: --precision bf16 measures the faster one")
    if not kernel and "f32" not in measured:
        found.append("bf16 is measured, but llama-lite has no bf16 instructions here: --precision f32 measures the faster one")
    if kernel == "AMX" and not cpu["features"]["amx_bf16"]:
        return [*found, "this processor has no AMX: llama-lite emulates it, and its bf16 figures mean nothing"]
    # On Intel's processors without AMX operands that are rounded and multiplied in f32 are faster than AVX512_BF16 (src/ops/simd.rs).
    pairs = cpu["features"]["avx512_bf16"] and cpu["vendor"] != "GenuineIntel"
    best = "AMX" if cpu["features"]["amx_bf16"] else "AVX512_BF16" if pairs else None
    if best and kernel != best and "bf16" in measured:
        why = f"{SIMD}={choice[SIMD]}" if choice.get(SIMD) else "see llama-lite doctor"
        found.append(f"this processor has {best}, but llama-lite's bf16 products are {choice['bf16_products']!r} ({why})")
    return found
