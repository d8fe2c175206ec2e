#!/usr/bin/env bash
# What the program is built from, and whether it can be built from that alone.
#   1. cargo deny: advisories, licences, banned crates, sources (cargo install cargo-deny)
#   2. a build from the lock file without any network, where the system lets us have a namespace without one
#   3. the same binary from two clean builds
#   4. no planted faults and no network calls outside src/hub
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if cargo deny --version >/dev/null 2>&1; then
    cargo deny --log-level error check bans licenses sources
    echo "cargo deny: licences, bans and sources passed"
    if cargo deny --log-level error check advisories >"$work/advisories" 2>&1; then
        echo "cargo deny: advisories passed"
    elif grep -q "failed to fetch advisory database" "$work/advisories"; then
        echo "cargo deny: advisories NOT RUN (their database cannot be reached)"
    else
        cat "$work/advisories" >&2
        exit 1
    fi
else
    echo "cargo deny: NOT RUN (cargo install cargo-deny)"
fi

# mimalloc's C sources name the time of their compilation.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
cargo fetch --locked
build() { CARGO_TARGET_DIR="$1" cargo build --release --locked --offline --quiet; }
if unshare -rn true 2>/dev/null; then
    CARGO_TARGET_DIR="$work/a" unshare -rn cargo build --release --locked --offline --quiet
    echo "built from the lock file without a network"
else
    build "$work/a"
    echo "build without a network: NOT RUN (no namespaces here)"
fi
cp "$work/a/release/llama-lite" "$work/first"
rm -rf "$work/a"
build "$work/a"
cmp "$work/first" "$work/a/release/llama-lite"
echo "two clean builds: the same $(stat -c %s "$work/first") bytes"

if strings -a "$work/first" | grep -q LLAMA_LITE_FAULTS; then
    echo "the binary holds planted faults" >&2
    exit 1
fi
if grep -rnE 'ureq|TcpStream|TcpListener' src --include='*.rs' | grep -v '^src/hub' | grep -v '^src/hub.rs'; then
    echo "network code outside src/hub" >&2
    exit 1
fi
echo "no planted faults, no network outside the hub's client"
