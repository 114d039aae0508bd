#!/usr/bin/env bash
# GRPO from environment variables, for who comes with a TRL script: every variable is read, and none is needed.
#
#   QUICK_MODE=true scripts/train_trl_grpo.sh                       # under two minutes on two cores
#   MODEL_NAME=Qwen/Qwen3-0.6B DATA_PATH=prompts.jsonl USE_BF16=true scripts/train_trl_grpo.sh
#
# An optimiser step takes BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS episodes, in groups of NUM_GENERATIONS of one scenario; of them
# BATCH_SIZE go through the model at once, each prefix once.
set -euo pipefail

MODEL_NAME=${MODEL_NAME:-seed}                 # 'seed', a folder or a Hugging Face name
DATA_PATH=${DATA_PATH:-}                       # JSON lines of {"prompt": …} or of scenarios; without it the shop's own are generated
QUICK_MODE=${QUICK_MODE:-false}
if [ "$QUICK_MODE" = true ]; then
  NUM_EPISODES=${NUM_EPISODES:-128} BATCH_SIZE=${BATCH_SIZE:-32} HELD_OUT=${HELD_OUT:-24}
fi
NUM_EPISODES=${NUM_EPISODES:-2048}
NUM_GENERATIONS=${NUM_GENERATIONS:-8}
BATCH_SIZE=${BATCH_SIZE:-64}
GRADIENT_ACCUMULATION_STEPS=${GRADIENT_ACCUMULATION_STEPS:-1}
USE_LORA=${USE_LORA:-true}
LORA_R=${LORA_R:-16}
LORA_ALPHA=${LORA_ALPHA:-32}
LORA_DROPOUT=${LORA_DROPOUT:-0.0}
USE_BF16=${USE_BF16:-false}
USE_FP16=${USE_FP16:-false}
GRADIENT_CHECKPOINTING=${GRADIENT_CHECKPOINTING:-false}
WANDB_PROJECT=${WANDB_PROJECT:-}
OUTPUT_DIR=${OUTPUT_DIR:-runs}
SAVE_STEPS=${SAVE_STEPS:-0}                    # keep the weights of every n-th step; 0: only the last
EVAL_STEPS=${EVAL_STEPS:-0}                    # evaluate on held-out scenarios every n steps; 0: before and after
HELD_OUT=${HELD_OUT:-120}

refuse() { echo "error: $1" >&2; exit 2; }
for name in USE_LORA USE_BF16 USE_FP16 GRADIENT_CHECKPOINTING QUICK_MODE; do
  case "${!name}" in true | false) ;; *) refuse "$name: expected true or false, found '${!name}'." ;; esac
done
for name in NUM_EPISODES NUM_GENERATIONS BATCH_SIZE GRADIENT_ACCUMULATION_STEPS LORA_R LORA_ALPHA SAVE_STEPS EVAL_STEPS HELD_OUT; do
  [[ "${!name}" =~ ^[0-9]+$ ]] || refuse "$name: expected a whole number, found '${!name}'."
done
[ "$USE_BF16" = true ] && [ "$USE_FP16" = true ] && refuse "USE_BF16 and USE_FP16: expected one of them."

[ "$NUM_GENERATIONS" -ge 2 ] || refuse "NUM_GENERATIONS: expected at least 2 to compare, found $NUM_GENERATIONS."
if [ -n "$DATA_PATH" ]; then
  [ -f "$DATA_PATH" ] || refuse "DATA_PATH: expected a file of JSON lines, found none at '$DATA_PATH'."
  DATA_PATH=$(realpath "$DATA_PATH")
fi
[ -e "$MODEL_NAME" ] && MODEL_NAME=$(realpath "$MODEL_NAME")
OUTPUT_DIR=$(realpath -m "$OUTPUT_DIR")
cd "$(dirname "$0")/.."

in_a_step=$((BATCH_SIZE * GRADIENT_ACCUMULATION_STEPS))
groups=$((in_a_step / NUM_GENERATIONS))
[ "$groups" -ge 1 ] || refuse "BATCH_SIZE x GRADIENT_ACCUMULATION_STEPS: expected at least NUM_GENERATIONS ($NUM_GENERATIONS), found $in_a_step."
steps=$((NUM_EPISODES / (groups * NUM_GENERATIONS)))
[ "$steps" -ge 1 ] || refuse "NUM_EPISODES: expected at least one step of $((groups * NUM_GENERATIONS)), found $NUM_EPISODES."

arguments=(
  --model "$MODEL_NAME" --steps "$steps" --groups "$groups" --group-size "$NUM_GENERATIONS"
  --episodes-per-batch "$BATCH_SIZE" --held-out "$HELD_OUT" --out "$OUTPUT_DIR"
  --keep-every "$SAVE_STEPS" --eval-every "$EVAL_STEPS" --log tensorboard
)
[ -n "$DATA_PATH" ] && arguments+=(--scenarios "$DATA_PATH")
if [ -n "$DATA_PATH" ] && ! grep -q '"goal"' "$DATA_PATH"; then arguments+=(--reward seed); fi # no goal to reach: helpfulness and safety
if [ "$USE_LORA" = true ]; then
  arguments+=(--rank "$LORA_R" --lora-alpha "$LORA_ALPHA" --lora-dropout "$LORA_DROPOUT")
else
  arguments+=(--full --learning-rate 1e-5)
fi
[ "$USE_BF16" = true ] && arguments+=(--precision bf16)
[ "$USE_FP16" = true ] && arguments+=(--precision fp16)
[ "$GRADIENT_CHECKPOINTING" = true ] && arguments+=(--gradient-checkpointing)
[ -n "$WANDB_PROJECT" ] && arguments+=(--log wandb)

program=${PYTHON:-.venv/bin/python}
[ -x "$program" ] || program=python3
exec "$program" -m stateset_agents train "${arguments[@]}" "$@"
