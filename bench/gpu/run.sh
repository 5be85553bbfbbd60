#!/usr/bin/env bash
# One command for each part of the work on a GPU machine. Each part ends within ten minutes and leaves its log and its
# results in $OUT; parts that train go on where they stopped.
#
#   bash bench/gpu/run.sh build                   compile the native ops, say what is installed
#   bash bench/gpu/run.sh test                    tests that need a GPU, then the ops' and the engine's
#   bash bench/gpu/run.sh sanitize                the ops' GPU tests under compute-sanitizer
#   bash bench/gpu/run.sh bench-ops | bench-step  tables and JSON
#   bash bench/gpu/run.sh train NAME [OPTION…]    train runs/NAME for $MINUTES; again to go on; options as hida train's
#   bash bench/gpu/run.sh evaluate NAME           draw and score the test pairs
#   bash bench/gpu/run.sh sheet NAME              draw the free photo in all styles
#   bash bench/gpu/run.sh fetch NAME K            the K-th four pieces (from 0) of 15 MiB of the weights, to put together
#                                                 by: cat weights.part-* > weights.safetensors
#   bash bench/gpu/run.sh RECIPE                  train with one of the recipes below
#
# TRAIN and TEST are the data, prepared folders or files of hida pack (train.zip, test.zip).
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-out}
RUNS=${RUNS:-runs}
TRAIN=${TRAIN:-train.zip}
TEST=${TEST:-test.zip}
MINUTES=${MINUTES:-8.5}
PHOTO=${PHOTO:-docs/images/astronaut.jpg}
METRICS=${METRICS:-fid kid lpips scoot fsim}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

logged() { # logged NAME COMMAND…: run it, its output shown and kept
    local name=$1
    shift
    "$@" 2>&1 | tee "$OUT/$name.log"
}

# What a GPU adds to a preset: bf16, pixels first, and rarer interruptions.
FAST=(--train.precision bf16 --train.channels-last --train.log-every 100 --train.evaluate-epochs 10
    --train.sample-epochs 50 --train.checkpoint-minutes 20 --train.checkpoint-epochs 0 --train.keep 1)

train() {
    local name=$1
    shift
    logged "train-$name" "$PYTHON" -m hida.train --data "$TRAIN" --out "$RUNS/$name" \
        --time-limit "$MINUTES" "$@"
    cp "$RUNS/$name/log.jsonl" "$OUT/$name.log.jsonl"
    cp "$RUNS/$name/config.json" "$OUT/$name.config.json"
    local sample
    sample=$(find "$RUNS/$name/samples" -name '*.png' 2>/dev/null | sort | tail -n 1 || true)
    [ -z "$sample" ] || cp "$sample" "$OUT/$name.sample.png"
}

part=${1:-help}
shift || true
case $part in
build | test | sanitize | bench-* | train | full* | small | evaluate | sheet | fetch) mkdir -p "$OUT" "$RUNS" ;;
esac
case $part in
build)
    logged build "$PYTHON" setup.py build_ext --inplace
    logged info "$PYTHON" -m hida info
    ;;
test)
    logged test-gpu "$PYTHON" -m pytest -q -m gpu
    logged test "$PYTHON" -m pytest -q tests/ops tests/nn tests/models tests/training
    ;;
sanitize)
    if ! command -v compute-sanitizer >/dev/null; then
        echo "no compute-sanitizer here: skipped" | tee "$OUT/sanitize.log"
        exit 0
    fi
    status=0
    for tool in memcheck racecheck initcheck; do # a tool that runs out of time keeps no other from running
        logged "sanitize-$tool" timeout 170 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$PYTHON" -m pytest -q -x -m gpu tests/ops || { status=$?; echo "$tool: status $status"; }
    done
    exit $status
    ;;
bench-ops)
    logged bench-ops "$PYTHON" bench/ops.py --json "$OUT/ops.json"
    logged bench-deform "$PYTHON" bench/deform.py --json "$OUT/deform.json"
    ;;
bench-step) logged bench-step "$PYTHON" bench/train_step.py --json "$OUT/train_step.json" "$@" ;;
train) train "$@" ;;
# The paper's schedule: 800 epochs of 1,058 pairs at batch 4 are 211,600 iterations.
full) train full --preset released "${FAST[@]}" --train.holdout 0 "$@" ;;
# The same images in a quarter of the iterations: the rate grows with the batch, after a warm-up.
full-16) train full-16 --preset released "${FAST[@]}" --train.holdout 0 --train.batch 16 --optimizer.base-batch 4 \
    --optimizer.warmup-epochs 5 --train.ema 0.992 "$@" ;;
small) train small --preset small "${FAST[@]}" --train.epochs 400 --optimizer.constant-epochs 200 "$@" ;;
evaluate)
    # shellcheck disable=SC2086  # several words
    logged "evaluate-$1" "$PYTHON" -m hida evaluate --weights "$RUNS/$1" --target "$TEST" --out "$RUNS/$1/evaluation" \
        --label "$1" --metrics $METRICS
    cp "$RUNS/$1/evaluation/scores.json" "$OUT/$1.scores.json"
    cp "$RUNS/$1/evaluation/scores.md" "$OUT/$1.scores.md"
    ;;
sheet)
    logged "sheet-$1" "$PYTHON" -m hida sketch "$PHOTO" --weights "$RUNS/$1" --sheet --out "$RUNS/$1/sheet"
    mkdir -p "$OUT/sheet-$1"
    cp "$RUNS/$1"/sheet/* "$OUT/sheet-$1/"
    ;;
fetch)
    weights=$RUNS/$1/weights.safetensors
    [ -f "$weights" ] || { echo "$weights is not there: the run has not ended" >&2; exit 2; }
    rm -f "$RUNS/$1"/weights.part-*
    split -b 15M -d -a 2 "$weights" "$RUNS/$1/weights.part-"
    find "$RUNS/$1" -name 'weights.part-*' | sort | tail -n "+$((4 * ${2:-0} + 1))" | head -n 4 | xargs -r cp -t "$OUT"
    (cd "$RUNS/$1" && sha256sum weights.safetensors) | tee "$OUT/weights.sha256"
    find "$RUNS/$1" -name 'weights.part-*' | wc -l
    ;;
help)
    sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//'
    ;;
*)
    echo "there is no part '$part': bash bench/gpu/run.sh help tells them" >&2
    exit 2
    ;;
esac
