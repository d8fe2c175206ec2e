#!/bin/sh
# Fuzzes the parsers of untrusted files: scripts/fuzz.sh [SECONDS per target, default 60] [TARGET..., default all]
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz). What it finds is left in tests/fuzz/artifacts.
set -eu
cd "$(dirname "$0")/.."
fuzz=tests/fuzz
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- $(cargo +nightly fuzz list --fuzz-dir "$fuzz")
for target in "$@"; do
    mkdir -p "$fuzz/corpus/$target"
    cp -n "$fuzz/seeds/$target"/* "$fuzz/corpus/$target/"
    cargo +nightly fuzz run --fuzz-dir "$fuzz" "$target" -- -max_total_time="$seconds" -malloc_limit_mb=64 -timeout=5 -rss_limit_mb=1024
done
