#!/usr/bin/env bash
# Proves on pretended GPUs (see pretend_gpu.sh) that the number of ranks does not change a bit of what a run writes, although each GPU would
# choose other algorithms of products: over NCCL, started by
# the program itself, by the variables of torchrun and by mpiexec, and over MPI where two ranks share a GPU; over a save and a resume with
# another number; and that ranks which cannot be joined, or lose one, end with a clear error. The library of NCCL is a pretended one
# (src/ops/cuda/pretend/nccl.cpp): it shows that the program calls it rightly, and nothing of speed. Two to three minutes.
#
#   scripts/ranks_pretend.sh PROGRAM      built with the feature cuda; without an MPI (scripts/mpi.sh) its cases are left out, and said
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[[ $# == 1 && -x $1 ]] || { echo "usage: scripts/ranks_pretend.sh PROGRAM" >&2; exit 2; }
program=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"
export RUST_BACKTRACE=0 LLAMA_LITE_PRETEND_GPUS=4 LLAMA_LITE_PRETEND_SECONDS=30
[[ -x $here/target/mpi/bin/mpiexec ]] && PATH=$here/target/mpi/bin:$PATH
fail() { echo "error: $*" >&2; exit 1; }
gpu() { "$here/scripts/pretend_gpu.sh" "$program" "$@" --device cuda --threads 1 --quiet; }
by_mpi() { local ranks=$1; shift; "$here/scripts/pretend_gpu.sh" mpiexec -n "$ranks" "$program" "$@" --device cuda --threads 1; }
# As torchrun starts them, at a port of this script's own.
by_torchrun() {
  local ranks=$1 rank pids=() status=0
  shift
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1] - 1)')
  for ((rank = 0; rank < ranks; rank++)); do
    RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$ranks LOCAL_WORLD_SIZE=$ranks MASTER_ADDR=127.0.0.1 MASTER_PORT=$port gpu "$@" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return $status
}
# Every file of both runs, byte by byte but for clocks and the number of ranks.
same() {
  PYTHONPATH=$here/scripts python3 - "$1" "$2" <<'P' || fail "$1 and $2 differ"
import sys
from pathlib import Path
from ranks_shared import ALLOWED, RESUMED, differences
ALLOWED.extend(RESUMED)
if any(not Path(run, "metrics.jsonl").stat().st_size for run in sys.argv[1:3]):
    sys.exit("a run has no metrics")
logs = ("events.jsonl", "times.jsonl", "run.lock", "replaced/")
found = [line for line in differences(*map(Path, sys.argv[1:3])) if not line.startswith(logs)]
for line in found:
    print(line, file=sys.stderr)
sys.exit(bool(found))
P
}
# Makes a run under one name, which some of its files hold, and keeps it under another.
make() { local name=$1; shift; "$@" --out run; mv run "$name"; }

# More than 2^20 parameters: on GPUs shards are cut at multiples of that, so that two of four ranks have none.
cat >run.toml <<'T'
[model]
hidden_size = 64
intermediate_size = 72
num_hidden_layers = 2
num_attention_heads = 2
head_dim = 64
num_key_value_heads = 1
vocab_size = 12000
max_position_embeddings = 64
[data]
source = "stories"
stories = 200
val_stories = 2
tokenizer = "train"
[train]
sequence_length = 8
micro_batch_size = 1
tokens_per_step = 32
lanes = 4
steps = 2
[optimizer]
moments = "bf16"
[eval]
every = 2
val_tokens = 16
[log]
layers_every = 1
sequences = true
desync_every = 1
[checkpoint]
every = 1
background = false
T
pretrain=(pretrain --config run.toml)
exact=("${pretrain[@]}" --set train.precision=f32 --set optimizer.moments=f32)

make bf16-1 gpu "${pretrain[@]}"
make bf16-2 gpu "${pretrain[@]}" --ranks 2
make bf16-4 gpu "${pretrain[@]}" --ranks auto
for ranks in 2 4; do same bf16-1 bf16-$ranks; done
# Each pretended GPU has a fastest algorithm of products of its own: all ranks compute by that of rank 0.
[[ $(grep -c '"id": 1,' bf16-4/products.json) -gt 9 ]] && ! grep -q '"id": [234]' bf16-4/products.json || fail "not the algorithms of rank 0"
[[ $(grep -c '"kind":"ranks"' bf16-4/events.jsonl) == 1 ]] || fail "no ranks"
make f32-1 gpu "${exact[@]}"
make f32-2 gpu "${exact[@]}" --ranks 2
make f32-4 by_torchrun 4 "${exact[@]}"
for ranks in 2 4; do same f32-1 f32-$ranks; done
cmp -s {bf16,f32}-1/checkpoints/step-00000002/model.safetensors && fail "precision changes nothing"
echo "1, 2 and 4 ranks over NCCL, in bf16 and in f32: the same files"

resume() { cp -r bf16-4 run && rm -r run/checkpoints/step-00000002 && "$@" resume --ckpt run && mv run "$name"; }
name=resumed-1 resume gpu
name=resumed-2 resume by_torchrun 2
for ranks in 1 2; do same bf16-1 resumed-$ranks; done
echo "saved by 4 ranks, resumed by 1 and by 2: the same files"

# Refusals: the exit code and what must be said.
refused() {
  local code=$1 words=$2 status=0
  shift 2
  "$@" --out refused >said 2>&1 || status=$?
  [[ $status == "$code" ]] || { cat said >&2; fail "exit code $status, not $code: $*"; }
  grep -q -- "$words" said || { cat said >&2; fail "not a word of \"$words\": $*"; }
  rm -rf refused
}
refused 78 'needs 2 GPUs, and there are 1' env LLAMA_LITE_PRETEND_GPUS=1 "$here/scripts/pretend_gpu.sh" "$program" "${pretrain[@]}" --device cuda --ranks 2
LLAMA_LITE_PRETEND_GPUS=1 refused 78 'mpiexec -n 2' by_torchrun 2 "${pretrain[@]}"
LLAMA_LITE_PRETEND_NCCL=21200 refused 78 'pip install nvidia-nccl' gpu "${pretrain[@]}" --ranks 2
echo "too few GPUs, one GPU for two, an old NCCL: refused, with what helps"

# A rank that is killed ends all, and what was saved is whole.
gpu "${pretrain[@]}" --set train.steps=1000 --out killed --ranks 2 2>said &
parent=$!
for ((i = 0; i < 600; i++)); do grep -qs '"kind":"train"' killed/metrics.jsonl && break; sleep 0.1; done
victim=$(sed -n 's/.*"kind":"ranks".*"rank":1,[^}]*"pid":\([0-9]*\).*/\1/p' killed/events.jsonl)
[[ -n $victim ]] || fail "no rank 1: $(cat said)"
kill -9 "$victim"
begun=$SECONDS status=0
wait $parent || status=$?
((SECONDS - begun <= 10)) || fail "the others have taken $((SECONDS - begun)) s to end"
[[ $status == 70 ]] && grep -q "rank 1 (process $victim) was killed by signal 9" said || { cat said >&2; fail "exit code $status"; }
echo "a killed rank ends all, and is named"

if ! command -v mpiexec >/dev/null; then
  echo "no mpiexec (scripts/mpi.sh): ranks that MPI starts are left out"
  exit
fi
make mpi-2 by_mpi 2 "${pretrain[@]}" 2>said
grep -q 'through the memory of the machine' said && fail "NCCL was not used: $(cat said)"
same bf16-1 mpi-2
LLAMA_LITE_PRETEND_GPUS=1 make shared-2 by_mpi 2 "${pretrain[@]}" 2>said
grep -q 'through the memory of the machine.*the same GPU' said || fail "not a word of the shared GPU: $(cat said)"
same bf16-1 shared-2
LLAMA_LITE_PRETEND_NCCL=21200 make old-2 by_mpi 2 "${exact[@]}" 2>said
grep -q 'through the memory of the machine.*too old' said || fail "not a word of the old NCCL: $(cat said)"
same f32-1 old-2
echo "started by MPI: over NCCL, and over MPI alone where two share a GPU or NCCL is too old: the same files"
