#!/usr/bin/env bash
# Breaks the program on purpose, with the full counts, and prints what each promise reached: scripts/torture.sh [FILTER]
# Takes the better part of an hour. Exits 1 if a promise was broken. What needs strace, root or python3 says so where these are missing.
# FILTER is part of a test's name, such as torture::signals; the output of tests that fail is printed below the table.
set -euo pipefail
cd "$(dirname "$0")/.."
export LLAMA_LITE_TORTURE=full
filter=${1:-torture::}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo test --release --locked --test all --no-run
binary=$(cargo test --release --locked --test all --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')

tests=$("$binary" --list | sed -n 's/^\(torture::.*\): test$/\1/p' | grep -F -- "$filter") || { echo "no torture is named $filter" >&2; exit 2; }
broken=()

# row PROMISE TEST FIGURES
row() { printf '%-8s  %-44s  %s\n' "$@"; }

# What a test reached, from its output; a torture that shows no figures has not taken place.
judge() { # NAME STATUS
    local name=$1 status=$2 log=$work/$1
    sed -n 's/^.*torture: \([a-z]*\) [^:]*: \(.*\)$/\1\t\2/p' "$log" >"$log.rows"
    if [ "$status" != 0 ] || [ ! -s "$log.rows" ]; then
        broken+=("$name")
        row "BROKEN" "${name#torture::}" "$(grep -m1 -A1 'panicked at' "$log" | tail -1 | cut -c1-160)"
    fi
    while IFS=$'\t' read -r promise reached; do row "$promise" "${name#torture::}" "$reached"; done <"$log.rows"
}

row promise test "figure reached"
for name in $tests; do
    status=0
    "$binary" --exact "$name" --nocapture >"$work/$name" 2>&1 || status=$?
    judge "$name" "$status"
done

if [ "$filter" = torture:: ]; then
    status=0
    if command -v python3 >/dev/null; then
        python3 scripts/torture_prepare.py --kills 50 >"$work/prepare" 2>&1 || status=$?
        sed -i '$s/^\([0-9]* kills\)/torture: resume prepare: \1/' "$work/prepare"
    else
        echo "torture: resume prepare: not run: python3 is not installed" >"$work/prepare"
    fi
    judge prepare "$status"
fi

for name in "${broken[@]}"; do
    printf '\n--- %s\n' "$name"
    tail -n 40 "$work/$name"
done
[ ${#broken[@]} = 0 ]
