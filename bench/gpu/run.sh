#!/usr/bin/env bash
# One command for each part of the work on a GPU machine. Each part ends within ten minutes and leaves its log and its
# results in $OUT; what is cut short (benchmarks, training) goes on where it stopped when it is run again.
#
#   bash bench/gpu/run.sh wheels                  where there is a network: fetch what the GPU machine lacks
#   bash bench/gpu/run.sh build                   compile the native ops for the GPU at hand, say what is installed
#   bash bench/gpu/run.sh test                    the tests that need a GPU
#   bash bench/gpu/run.sh test-cpu                the ops', the network's and the engine's other tests, there
#   bash bench/gpu/run.sh sanitize [TOOL…]        every kernel under compute-sanitizer: memcheck racecheck synccheck
#                                                 initcheck, or the tools named
#   bash bench/gpu/run.sh bench-ops [OPTION…]     bench/ops.py, then bench/deform.py, options of both
#   bash bench/gpu/run.sh bench-sketch [OPTION…]  decoder and generator
#   bash bench/gpu/run.sh bench-train [OPTION…]   the training iteration
#   bash bench/gpu/run.sh results                 one file of all the results, and the tables of docs/kernels.md
#   bash bench/gpu/run.sh train NAME [OPTION…]    train runs/NAME for $MINUTES; again to go on; options as hida train's
#   bash bench/gpu/run.sh evaluate NAME           draw and score the test pairs
#   bash bench/gpu/run.sh sheet NAME              draw the free photo in all styles
#   bash bench/gpu/run.sh fetch NAME K            the K-th four pieces (from 0) of 15 MiB of the weights, to put together
#                                                 by: cat weights.part-* > weights.safetensors
#   bash bench/gpu/run.sh RECIPE                  train with one of the recipes below
#
# --dry before the part runs it without a GPU: the build goes beside the results, the tests are a few of those that need
# no GPU, the sanitizer's commands are told, the benchmarks are tiny and on the CPU. It proves the commands, no speed.
#
# The machine: python3 with torch ≥ 2.11 and torchvision, nvcc, a C++ compiler; no network. Its python needs numpy,
# Pillow, safetensors, tqdm, tyro, pytest, ninja, pybind11 and setuptools. What is missing there, usually tyro and the two
# packages that it needs, is pure Python: "wheels" fetches it into .wheels/, which git ignores; take that folder along.
# NAMES says what to fetch, PYTHON_VERSION for which Python, WHEELS where to. Every part installs what lies there into
# build/site, and builds the ops where they are not built yet.
#
# TRAIN and TEST are the data, prepared folders or files of hida pack (train.zip, test.zip). BEFORE is a folder with
# results of earlier runs (ops.json and so on), to go on with where $OUT is empty.
set -euo pipefail
cd "$(dirname "$0")/../.."

DRY=${DRY:-}
[ "${1:-}" != --dry ] || { DRY=1; shift; }
PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-out}
BEFORE=${BEFORE:-}
RUNS=${RUNS:-runs}
TRAIN=${TRAIN:-train.zip}
TEST=${TEST:-test.zip}
MINUTES=${MINUTES:-8.5}
PHOTO=${PHOTO:-docs/images/astronaut.jpg}
METRICS=${METRICS:-fid kid lpips scoot fsim}
NAMES=${NAMES:-tyro docstring-parser typeguard}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
WHEELS=${WHEELS:-.wheels}
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

# What the machine lacks, from the wheels that were taken along.
install() {
    if [ -n "$(find "$WHEELS" -name '*.whl' 2>/dev/null)" ]; then
        [ -d build/site ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target build/site "$WHEELS"/*.whl
        export PYTHONPATH="$PYTHONPATH:$PWD/build/site"
    fi
}

# For the GPU at hand only, which is quicker; TORCH_CUDA_ARCH_LIST says otherwise.
build() {
    if [ -n "$DRY" ]; then
        "$PYTHON" setup.py build_ext --build-lib "$OUT/lib" --build-temp "$OUT/build"
        "$PYTHON" -c 'import sys, torch; torch.ops.load_library(sys.argv[1]); print("loaded")' "$OUT/lib/hida/_ops.so"
        return
    fi
    local capability
    capability=$("$PYTHON" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}.{b}" + "a" * (a == 9))')
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} HIDA_BUILD_CUDA=1 \
        NVCC_APPEND_FLAGS=${NVCC_APPEND_FLAGS:--Xptxas --warn-on-spills} "$PYTHON" setup.py build_ext --inplace
}

# Where a part was cut short, its results so far are in BEFORE, or in $OUT still.
earlier() {
    [ -z "$BEFORE" ] || [ -f "$OUT/$1" ] || [ ! -f "$BEFORE/$1" ] || cp "$BEFORE/$1" "$OUT/$1"
}

sanitize() { # sanitize TOOL
    local options=(--tool "$1" --error-exitcode 9 --print-limit 20) filter=(--kernel-name kns=hida) environment=() known=""
    # torch hands out parts of large blocks: with its cache off, every tensor has bounds that the tool knows.
    case $1 in
    memcheck) environment=(PYTORCH_NO_CUDA_MEMORY_CACHING=1) ;;
    racecheck | synccheck) ;;
    initcheck) environment=(PYTORCH_NO_CUDA_MEMORY_CACHING=1) filter=() ;; # all kernels: it must see who else writes
    *)
        echo "compute-sanitizer has no tool '$1': memcheck, racecheck, synccheck or initcheck" >&2
        return 2
        ;;
    esac
    if command -v compute-sanitizer >/dev/null; then
        known=$(compute-sanitizer --help 2>&1 || true)
        for option in --tool --error-exitcode --print-limit; do
            grep -q -e "$option" <<<"$known" || echo "warning: this compute-sanitizer's --help does not name $option"
        done
        grep -q -e --kernel-name <<<"$known" || filter=() # all kernels then, torch's too, which takes longer
    fi
    set -- "$1" env "${environment[@]}" timeout "$SECONDS_A_TOOL" compute-sanitizer "${options[@]}" "${filter[@]}" \
        "$PYTHON" bench/gpu/launches.py
    if [ -z "$known" ]; then
        echo "no compute-sanitizer here, its options are not checked: ${*:2}"
    elif [ -n "$DRY" ]; then
        echo "${*:2}"
    else
        logged "sanitize-$1" "${@:2}"
    fi
}

part=${1:-help}
shift || true
case $part in
build | test* | sanitize | bench-* | results | train | full* | small | evaluate | sheet | fetch)
    mkdir -p "$OUT" "$RUNS"
    install
    ;;
esac
case $part in
test* | sanitize | bench-*)
    [ -n "$DRY" ] || [ -f hida/_ops_cuda.so ] || logged build build
    ;;
esac
on=() # where benchmarks run
[ -z "$DRY" ] || { on=(--device cpu); export OMP_NUM_THREADS=1; }
case $part in
wheels)
    # shellcheck disable=SC2086  # several words
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version "$PYTHON_VERSION" -d "$WHEELS" $NAMES
    ls "$WHEELS"
    ;;
build)
    logged build build
    logged info "$PYTHON" -m hida info
    ;;
test)
    if [ -n "$DRY" ]; then # all of tests/gpu skips; a few others run
        logged test-gpu "$PYTHON" -m pytest -q -p no:cacheprovider -rs --junitxml "$OUT/test-gpu.xml" \
            -o addopts= tests/gpu tests/ops/test_ida.py "$@"
    else
        logged test-gpu timeout 570 "$PYTHON" -m pytest -q --durations 10 --junitxml "$OUT/test-gpu.xml" \
            -m gpu --maxfail 30 tests/gpu tests/training tests/metrics tests/depth "$@"
    fi
    ;;
test-cpu)
    logged test-cpu timeout 570 "$PYTHON" -m pytest -q --junitxml "$OUT/test-cpu.xml" \
        -m "not slow and not gpu" tests/ops tests/nn tests/models tests/training "$@"
    ;;
sanitize)
    [ $# -gt 0 ] || set -- memcheck racecheck synccheck initcheck
    SECONDS_A_TOOL=$((560 / $#))
    status=0
    for tool in "$@"; do # a tool that fails or runs out of time keeps no other from running
        sanitize "$tool" || { status=$?; echo "$tool: status $status" | tee -a "$OUT/sanitize-$tool.log"; }
    done
    exit $status
    ;;
bench-ops)
    earlier ops.json
    earlier deform.json
    few=(--minutes 4.2)
    [ -z "$DRY" ] || few=(--side 16 --seconds 0.02 --without compile --memory kept)
    logged bench-ops "$PYTHON" bench/ops.py "${on[@]}" "${few[@]}" --json "$OUT/ops.json" "$@"
    [ -z "$DRY" ] || few=(--side 2 --seconds 0.02 --without compile --memory kept)
    logged bench-deform "$PYTHON" bench/deform.py "${on[@]}" "${few[@]}" --json "$OUT/deform.json" "$@"
    ;;
bench-sketch)
    earlier sketch.json
    few=(--minutes 8)
    [ -z "$DRY" ] || few=(--preset "$OUT/tiny.toml" --rounds 2 --methods reference native --direction fwd fwd+bwd)
    [ -z "$DRY" ] || printf '[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n' >"$OUT/tiny.toml"
    logged bench-sketch "$PYTHON" bench/sketch.py "${on[@]}" "${few[@]}" --json "$OUT/sketch.json" "$@"
    ;;
bench-train)
    earlier train_step.json
    few=(--rounds 5 --iterations 10 --minutes 6)
    [ -z "$DRY" ] || few=(--preset "$OUT/tiny.toml" --batch 2 --rounds 2 --methods released bf16 ours)
    [ -z "$DRY" ] || printf '[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n' >"$OUT/tiny.toml"
    logged bench-train "$PYTHON" bench/train_step.py "${on[@]}" "${few[@]}" --json "$OUT/train_step.json" "$@"
    ;;
results) logged results "$PYTHON" bench/results.py "$OUT" "$@" ;;
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
