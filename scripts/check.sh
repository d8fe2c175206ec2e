#!/usr/bin/env bash
# Everything that must hold before a change goes in: format, lints, tests, and the commands of the pages.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
# The release profile throughout: one set of compiled dependencies serves lints, tests and the program.
cargo clippy --release --all-targets --locked -- -D warnings
cargo test --release --locked
python3 scripts/gpu_check_selftest.py
# The tests have built the program.
scripts/check_docs.sh
