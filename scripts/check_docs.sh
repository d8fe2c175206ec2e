#!/usr/bin/env bash
# Runs every command of README.md and docs/*.md, so that none of them can go stale:
#
#   scripts/check_docs.sh [PROGRAM] [PAGE...]      PROGRAM: a built llama-lite (default target/release/llama-lite); pages: default all
#
# Each page has a scratch directory of its own, in which its ```sh blocks run from the top to the bottom with PROGRAM first on PATH. The
# directory holds a little text, a few records to fine-tune on, and the presets and the page's ```toml blocks (those that begin with
# "# NAME.toml") made small: one narrow layer instead of many, the same number of steps. An HTML comment on the line before a block says more:
#
#   <!-- check: parse -->               for what a small machine cannot run (1.7B, a GPU, a network, a build): the block must be valid shell, its
#                                       llama-lite lines must pass the program's own argument parser, and the files it names must exist
#   <!-- check: mpi -->                 run where there is an mpiexec (on PATH or in target/mpi, see scripts/mpi.sh), otherwise parsed
#   <!-- check: python -->              run where python3 is 3.11 or newer, otherwise parsed
#   <!-- check: skip: WHY -->           the block is neither run nor parsed
#   <!-- check: table -->               before a table: the commands in its rows are run as well
#   <!-- check: given quickstart my --> anywhere on the page: the runs runs/quickstart, runs/my are already there
#
# Prints what was run, parsed and skipped; exits 1 if a block failed, with its output. Takes about a minute.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
program=${CARGO_TARGET_DIR:-$root/target}/release/llama-lite
if [[ $# -gt 0 && $1 != *.md ]]; then
    program=$(readlink -f "$1")
    shift
fi
[[ -x $program ]] || { echo "error: $program is not a program" >&2; echo "hint: cargo build --release" >&2; exit 2; }
cd "$root"
pages=("$@")
[[ $# -gt 0 ]] || pages=(README.md docs/*.md)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$program" "$work/bin/llama-lite"
export PATH=$work/bin:$PATH:$root/target/mpi/bin NO_COLOR=1 COLUMNS=110
export HF_HOME=$work/hub HF_HUB_OFFLINE=1
ran=0 parsed=0 skipped=0
failures=()

# A configuration with a model and batches that take no time; the number of steps stays, so that checkpoints have the names that pages say,
# and the lanes, each of one sequence.
shrink() {
    local text lanes
    text=$(cat)
    lanes=$(sed -nE 's/^lanes *= *([0-9]+).*/\1/p' <<<"$text")
    sed -E -e '/^(head_dim|tokens_per_step) *=/d' \
        -e 's/^hidden_size *=.*/hidden_size = 16/' -e 's/^intermediate_size *=.*/intermediate_size = 32/' \
        -e 's/^num_hidden_layers *=.*/num_hidden_layers = 1/' -e 's/^num_attention_heads *=.*/num_attention_heads = 2/' \
        -e 's/^num_key_value_heads *=.*/num_key_value_heads = 1/' -e 's/^vocab_size *=.*/vocab_size = 320/' \
        -e "s/^micro_batch_size *=.*/micro_batch_size = ${lanes:-1}/" -e 's/^val_stories *=.*/val_stories = 20/' \
        -e 's/^epochs *=.*/epochs = 1/' -e 's/^max_tokens *=.*/max_tokens = 8/' <<<"$text"
}

# What the pages' examples read, in DIR.
furnish() { # DIR
    local dir=$1 page name
    mkdir -p "$dir/books" "$dir/configs"
    ln -s "$root/scripts" "$root/tests" "$dir/"
    ln -s "$root/tests/fixtures/eval/data" "$dir/tasks"
    for page in "$root"/configs/*.toml; do shrink <"$page" >"$dir/configs/$(basename "$page")"; done
    for page in "$root"/README.md "$root"/docs/*.md; do
        name=$(basename "$page" .md)
        # Lines of prose only: no tables, no code.
        sed -n '/^[A-Za-z*].*[a-z]/p' "$page" >"$dir/books/$name.txt"
    done
    cat "$dir"/books/*.txt >"$dir/book.txt"
    tr -cd 'A-Za-z0-9 .,;:()\n' <"$dir/book.txt" | sed -E 's/.*/{"text": "&"}/' >"$dir/notes.jsonl"
    head -20 "$dir/notes.jsonl" | sed 's/"text"/"prompt"/' >"$dir/prompts.jsonl"
    {
        echo '['
        for i in $(seq 1 400); do
            echo "{\"instruction\": \"What comes after $i?\", \"input\": \"\", \"output\": \"The number $((i + 1)).\"}$([[ $i == 400 ]] || echo ,)"
        done
        echo ']'
    } >"$dir/alpaca.json"
}

# Runs that some pages begin with, each made once.
make_run() { # NAME
    local home=$work/given
    [[ ! -d $home/runs/$1 ]] || return 0
    [[ -d $home ]] || furnish "$home"
    case $1 in
    quickstart) config=configs/quickstart.toml ;;
    my) config=my.toml && pull docs/training.md "$home" >/dev/null ;;
    *) echo "error: no page can be given the run $1" >&2; exit 2 ;;
    esac
    (cd "$home" && llama-lite pretrain --quiet --config "$config")
}

# The blocks of PAGE as files DIR/.blocks/LINE.KIND, its configurations as DIR/NAME.toml.
pull() { # PAGE DIR
    rm -rf "$2/.blocks" && mkdir -p "$2/.blocks"
    awk -v out="$2/.blocks" '
        /^<!-- check: given/ { next }
        /^<!-- check: / { kind = $3; sub(/:$/, "", kind); next }
        kind == "table" && /^\|/ {
            while (match($0, /`llama-lite [^`]*`/)) {
                print substr($0, RSTART + 1, RLENGTH - 2) > sprintf("%s/%04d.run", out, NR)
                $0 = substr($0, RSTART + RLENGTH)
            }
            in_table = 1; next
        }
        kind == "table" && in_table { kind = ""; in_table = 0 }
        /^```/ && !inside {
            inside = 1; language = substr($0, 4); file = ""
            if (language == "sh") file = sprintf("%s/%04d.%s", out, NR, kind == "" ? "run" : kind)
            else if (language == "toml") file = sprintf("%s/%04d.toml", out, NR)
            else if (language !~ /^(text|json|bibtex)$/) { print FILENAME ":" NR ": a block of the language \"" language "\"" > "/dev/stderr"; exit 2 }
            kind = ""; next
        }
        /^```$/ { if (file) close(file); inside = 0; file = ""; next }
        inside && file { print > file }
    ' "$1"
    local block name
    for block in "$2"/.blocks/*.toml; do
        [[ -f $block ]] || continue
        name=$(sed -n '1s/^# \([a-z0-9-]*\.toml\)$/\1/p' "$block")
        [[ -z $name ]] || shrink <"$block" >"$2/$name"
    done
}

# What a block that is only parsed must still be: valid shell, commands that the program takes, files that exist.
parse() { # BLOCK
    bash -n "$1" || return 1
    local path line
    while read -r path; do
        [[ -e $root/$path ]] || { echo "no such file: $path"; return 1; }
    done < <(grep -oE '(^|[^-A-Za-z0-9_/.])(scripts|configs|tests)/[A-Za-z0-9_./-]+' "$1" | sed -E 's/^[^a-z]//' | sort -u)
    while read -r line; do
        # The program's parser reads a command up to --help, complains of what it does not know, and shows the help.
        bash -c "llama-lite() { command llama-lite \"\$@\" --help >/dev/null; }; $line" || { echo "in: $line"; return 1; }
    done < <(sed -e ':more' -e '/\\$/{N;s/\\\n */ /;b more' -e '}' "$1" |
        sed -nE 's#^([A-Z_]+=[^ ]* )*(target/release/|cargo run --release (--features [a-z,]+ )?-- |llama-lite |\./)#\2#; s#^(target/release/llama-lite|cargo run --release (--features [a-z,]+ )?--) #llama-lite #; /^llama-lite /p')
}

judge() { # PAGE LINE STATUS LOG SECONDS
    [[ $3 == 0 ]] && return
    failures+=("$1:$2")
    printf 'FAILED %s:%s (status %s, %s s)\n' "$1" "$2" "$3" "$5"
    tail -25 "$4" | sed 's/^/    /'
}

for page in "${pages[@]}"; do
    dir=$work/$(basename "$page" .md)
    furnish "$dir"
    for run in $(sed -n 's/^<!-- check: given \(.*\) -->$/\1/p' "$page"); do
        make_run "$run"
        mkdir -p "$dir/runs" && cp -r "$work/given/runs/$run" "$dir/runs/$run"
    done
    pull "$page" "$dir"
    counts=()
    for block in "$dir"/.blocks/*; do
        [[ -f $block ]] || continue
        line=$(basename "${block%.*}") kind=${block##*.} status=0 start=$SECONDS
        line=$((10#$line))
        if [[ $kind == mpi ]]; then
            kind=parse
            command -v mpiexec >/dev/null && kind=run
        fi
        if [[ $kind == python ]]; then
            kind=parse
            python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && kind=run
        fi
        case $kind in
        run)
            ran=$((ran + 1))
            (cd "$dir" && timeout 300 bash -euo pipefail "$block" </dev/null >"$block.log" 2>&1) || status=$?
            ;;
        parse)
            parsed=$((parsed + 1))
            (cd "$dir" && parse "$block" >"$block.log" 2>&1) || status=$?
            ;;
        skip)
            skipped=$((skipped + 1))
            continue
            ;;
        toml) continue ;;
        *)
            status=2
            echo "no such check: $kind" >"$block.log"
            ;;
        esac
        counts+=("$kind")
        judge "$page" "$line" "$status" "$block.log" "$((SECONDS - start))"
    done
    printf '%-32s %s run, %s parsed\n' "$page" "$(grep -cx run <(printf '%s\n' "${counts[@]}"))" "$(grep -cx parse <(printf '%s\n' "${counts[@]}"))"
done

echo "$ran blocks run, $parsed parsed, $skipped skipped, ${#failures[@]} failed"
[[ ${#failures[@]} == 0 ]] || exit 1
