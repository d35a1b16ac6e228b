#!/bin/sh
# Train with settings from the environment: MODEL=embedded MAX_SAMPLES=64 ./train.sh --backend torch
# Arguments are passed through to `cli.py train`, after the settings.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=python3
[ ! -x "$root/.venv/bin/python" ] || python="$root/.venv/bin/python"

# Each line puts its flag in front, so the first line's flag comes out last.
[ -z "${OUTPUT_DIR:-}" ] || set -- --output-dir "$OUTPUT_DIR" "$@"
[ -z "${MODEL:-}" ] || set -- --model "$MODEL" "$@"
[ -z "${MAX_TIME:-}" ] || set -- --max-time "$MAX_TIME" "$@"
[ -z "${MAX_LENGTH:-}" ] || set -- --max-length "$MAX_LENGTH" "$@"
[ -z "${LEARNING_RATE:-}" ] || set -- --learning-rate "$LEARNING_RATE" "$@"
[ -z "${NUM_EPOCHS:-}" ] || set -- --num-epochs "$NUM_EPOCHS" "$@"
[ -z "${GRADIENT_ACCUMULATION_STEPS:-}" ] || set -- --gradient-accumulation-steps "$GRADIENT_ACCUMULATION_STEPS" "$@"
[ -z "${BATCH_SIZE:-}" ] || set -- --batch-size "$BATCH_SIZE" "$@"
[ -z "${MAX_SAMPLES:-}" ] || set -- --max-samples "$MAX_SAMPLES" "$@"

exec "$python" "$root/cli.py" train "$@"
