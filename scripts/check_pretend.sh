#!/usr/bin/env bash
# The program of a GPU, whole, on a pretended one (see pretend_gpu.sh): self-test, training, resume, generation, evaluation, fine-tuning, short
# memory. What it cannot show: real silicon, cuBLAS, cuDNN, speed. Some minutes.
#
#   scripts/check_pretend.sh PROGRAM      built with the feature cuda; compared with itself on the CPU
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[[ $# == 1 && -x $1 ]] || { echo "usage: scripts/check_pretend.sh PROGRAM" >&2; exit 2; }
program=$(readlink -f "$1")
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
export RUST_BACKTRACE=0
cd "$work"
gpu() { "$here/scripts/pretend_gpu.sh" "$program" "$@" --device cuda --quiet; }
cpu() { "$program" "$@" --device cpu --quiet; }
fail() { echo "error: $*" >&2; exit 1; }
# The losses of a run's steps; the largest difference of two lists of numbers.
losses() { sed -n 's/.*"kind":"train".*"loss":\([0-9.]*\).*/\1/p' "$1/metrics.jsonl"; }
near() { paste <(echo "$1") <(echo "$2") | awk -v most="$3" '{ d = $1 - $2; if (d < 0) d = -d; if (NF != 2 || d > most) bad = 1 } END { exit NR == 0 || bad }'; }
same() { cmp -s "$1" "$2" || fail "$1 and $2 differ"; }

cat >run.toml <<'T'
[model]
hidden_size = 64
intermediate_size = 72
num_hidden_layers = 2
num_attention_heads = 2
head_dim = 64
num_key_value_heads = 1
vocab_size = 320
max_position_embeddings = 400
[data]
source = "stories"
stories = 200
val_stories = 2
tokenizer = "train"
[train]
sequence_length = 32
micro_batch_size = 2
tokens_per_step = 128
steps = 4
[eval]
every = 2
val_tokens = 256
[sample]
prompts = ["Once"]
every = 4
max_tokens = 8
[log]
layers_every = 2
[checkpoint]
every = 2
T
last=checkpoints/step-00000004

gpu doctor >doctor.txt || { cat doctor.txt >&2; fail "doctor"; }
echo "doctor: $(grep -c ' ok$' doctor.txt) comparisons hold"

# A launch that fails is a line of the kernel's name, and the comparisons go on.
status=0
LLAMA_LITE_PRETEND_FAIL=swiglu_f32 gpu doctor >doctor.txt 2>&1 || status=$?
[[ $status == 70 ]] && grep -q 'rope and swiglu, f32 .*FAILED: launch of swiglu_f32' doctor.txt && grep -q 'swiglu, bf16 .*ok$' doctor.txt ||
  { cat doctor.txt >&2; fail "a failing launch: exit code $status"; }

LLAMA_LITE_PRETEND_REPORT=$work/launches.json gpu pretrain --config run.toml --out one
gpu pretrain --config run.toml --out two
cpu pretrain --config run.toml --out on-cpu
near "$(losses one)" "$(losses on-cpu)" 0.002 || fail "losses are not those of the CPU: $(losses one) $(losses on-cpu)"
for file in model optimizer; do same "one/$last/$file.safetensors" "two/$last/$file.safetensors"; done
grep -q '"graph"' launches.json || fail "no token was replayed"
rm -r two/$last
# By the algorithms that the run has chosen, although another one would be chosen now.
LLAMA_LITE_PRETEND_FASTEST=3 gpu resume --ckpt two
for file in model optimizer; do same "one/$last/$file.safetensors" "two/$last/$file.safetensors"; done
echo "training: like the CPU, the same bits twice and over a resume; tokens are replayed"

# Algorithms of products: chosen by their times before the first step, kept with the run, those of one card and one version of cuBLASLt.
weights() { cat "$1/$last/model.safetensors" "$1/$last/optimizer.safetensors"; }
differ() { cmp -s <(weights "$1") <(weights "$2") && fail "$1 and $2 have the same bits" || true; }
equal() { cmp -s <(weights "$1") <(weights "$2") || fail "$1 and $2 differ"; }
event() { grep "\"kind\":\"$2\"" "$1/events.jsonl"; }
grep -q '"product by 1"' launches.json && ! grep -q '"product by 9"' launches.json || fail "products by the wrong algorithms: $(cat launches.json)"
[[ $(event one products | wc -l) == 1 && $(event two products | wc -l) == 1 ]] || fail "algorithms were chosen again by a resume"
grep -q '"cluster_shape": 3' one/products.json && grep -q '"products": {' one/$last/trainer_state.json || fail "no choice was kept"
LLAMA_LITE_PRETEND_FASTEST=3 gpu pretrain --config run.toml --out third
differ one third
LLAMA_LITE_PRODUCTS=$work/one/products.json LLAMA_LITE_PRETEND_FASTEST=3 gpu pretrain --config run.toml --out as-one
equal one as-one
LLAMA_LITE_PRODUCTS=default gpu pretrain --config run.toml --out default
LLAMA_LITE_PRETEND_FASTEST=0 gpu pretrain --config run.toml --out by-cublas
equal default by-cublas
differ one default
[[ ! -e default/products.json && -z $(event default products) ]] || fail "LLAMA_LITE_PRODUCTS=default chooses"
near "$(losses one)" "$(losses default)" 0.002 || fail "losses by other algorithms: $(losses one) $(losses default)"
half() { cp -r one "$1" && rm -r "$1/$last"; }
half card && LLAMA_LITE_PRETEND_NAME="another GPU" LLAMA_LITE_PRETEND_FASTEST=3 gpu resume --ckpt card
half version && LLAMA_LITE_PRETEND_CUBLASLT=130200 LLAMA_LITE_PRETEND_FASTEST=3 gpu resume --ckpt version
half off && LLAMA_LITE_PRODUCTS=default gpu resume --ckpt off
for run in card version off; do
  differ one $run
  event $run hardware | grep -q '"key":"products".*"affects":"bits","same_arithmetic":false' || fail "$run: nothing is said: $(event $run hardware)"
done
# Without a checkpoint, from the file; and from one that is damaged.
for run in unsaved damaged; do cp -r one $run && rm -r $run/checkpoints; done
echo "{}" >damaged/products.json
for run in unsaved damaged; do LLAMA_LITE_PRETEND_FASTEST=3 "$here/scripts/pretend_gpu.sh" "$program" resume --ckpt $run --device cuda 2>$run.said || { cat $run.said >&2; fail "$run"; }; done
equal one unsaved
equal third damaged
[[ $(grep -c 'products.json: missing field' damaged.said) == 1 ]] || fail "damaged: $(cat damaged.said)"
# Algorithms that the card has not, and one that adds as it comes: left to cuBLAS, and said; a file that is none is an error.
sed 's/"id": 1,/"id": 77,/' one/products.json >unknown.json
sed 's/"id": 1,/"id": 9,/; s/"reduction": 0/"reduction": 1/' one/products.json >forbidden.json
for kind in unknown forbidden; do
  LLAMA_LITE_PRODUCTS=$kind.json "$here/scripts/pretend_gpu.sh" "$program" pretrain --config run.toml --out $kind --device cuda 2>said || { cat said >&2; fail "$kind"; }
  grep -q 'note: cuBLAS chooses the algorithm of .*this card has no such algorithm' said || fail "$kind: $(cat said)"
  equal default $kind
done
status=0
LLAMA_LITE_PRODUCTS=run.toml gpu pretrain --config run.toml --out none 2>said || status=$?
[[ $status == 78 && ! -e none ]] && grep -q 'run.toml: not the products.json of a run' said || fail "exit code $status: $(cat said)"
# The steps of a checkpoint again, by its algorithms.
LLAMA_LITE_PRETEND_FASTEST=3 "$here/scripts/pretend_gpu.sh" "$program" resume --verify 2 --ckpt one/checkpoints/step-00000002 --device cuda >said 2>&1 || fail "verify: $(cat said)"
echo "products: algorithms are chosen once, kept by a resume to the same bits, left on another card or version, and left out where they cannot be had"

for recompute in none selective full; do
  gpu pretrain --config run.toml --out $recompute --set train.recompute=$recompute
  same "one/$last/model.safetensors" "$recompute/$last/model.safetensors"
done
gpu pretrain --config run.toml --out rounded --set optimizer.moments=bf16
near "$(losses one)" "$(losses rounded)" 0.01 || fail "moments in bf16"
LLAMA_LITE_OP_TIMES=$work/times.json gpu pretrain --config run.toml --out timed
grep -q '"name": "product ' times.json || fail "no times of products"
# Most of the memory is activations here; half of them fit.
deep="--set model.num_hidden_layers=6 --set model.intermediate_size=256 --set train.sequence_length=128 --set train.tokens_per_step=512
  --set train.micro_batch_size=4 --set train.steps=1 --set train.recompute=selective --set sample.every=0 --set log.layers_every=0"
# shellcheck disable=SC2086
gpu pretrain --config run.toml --out ample $deep
# shellcheck disable=SC2086
LLAMA_LITE_PRETEND_BYTES=14000000 gpu pretrain --config run.toml --out short $deep 2>said || { cat said >&2; fail "short memory"; }
grep -q '"out_of_memory"' short/events.jsonl || fail "the memory sufficed"
near "$(losses ample)" "$(losses short)" 0.001 || fail "losses with short memory"
echo "policies of recomputation, rounded moments, times of launches, short memory: as they should be"

head -c 700 run.toml >text.txt
number() { sed -n "s/.*loss \([0-9.]*\) nats.*/\1/p"; }
near "$(gpu eval --ckpt one --data text.txt | number)" "$(cpu eval --ckpt one --data text.txt | number)" 0.001 || fail "eval"
mkdir -p tasks/piqa
for i in 0 1; do echo "{\"goal\": \"To $i\", \"sol1\": \"go home\", \"sol2\": \"stay\", \"label\": $i}"; done >tasks/piqa/validation.jsonl
for where in gpu cpu; do $where eval --ckpt one --tasks piqa --data-dir tasks --output $where.json --log-samples >/dev/null; done
python3 - <<'P'
import json
def scores(name):
    samples = json.load(open(name))["samples"]["piqa"]
    return [x for s in samples for x in json.dumps(s).replace("[", " ").replace("]", " ").replace(",", " ").split()]
def number(x):
    try: return float(x)
    except ValueError: return None
pairs = [(number(a), number(b)) for a, b in zip(scores("gpu.json"), scores("cpu.json"))]
pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
assert len(pairs) > 4 and all(abs(a - b) < 0.02 * max(1, abs(b)) for a, b in pairs), pairs
P
for where in gpu cpu; do $where sample --ckpt one --prompt Once --max-tokens 12 --greedy >$where.txt 2>/dev/null; done
same gpu.txt cpu.txt
LLAMA_LITE_PRETEND_NO_GRAPHS=1 gpu sample --ckpt one --prompt Once --max-tokens 12 --greedy >plain.txt 2>said
same gpu.txt plain.txt
grep -q 'tokens are computed without a CUDA graph' said || fail "nothing is said of graphs: $(cat said)"
echo "eval, tasks, sample: like the CPU, with and without CUDA graphs"

cat >sft.toml <<'T'
[sft]
neftune_alpha = 5.0
template = "alpaca"
[train]
sequence_length = 128
micro_batch_size = 2
tokens_per_step = 256
steps = 4
[lora]
rank = 4
dropout = 0.1
[checkpoint]
every = 2
T
python3 -c 'import json; print(json.dumps([{"instruction": f"Say {w}", "input": "", "output": w} for w in "one two three four five six seven".split()]))' >sft.json
for where in gpu cpu; do $where sft --config sft.toml --ckpt one --data sft.json --out sft-$where; done
near "$(losses sft-gpu)" "$(losses sft-cpu)" 0.003 || fail "losses of fine-tuning"
cp -r sft-gpu again && rm -r again/$last
gpu resume --ckpt again
same sft-gpu/$last/adapter_model.safetensors again/$last/adapter_model.safetensors
echo "fine-tuning with adapters, dropout and noise: like the CPU, and the same bits over a resume"
