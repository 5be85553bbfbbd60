#!/usr/bin/env bash
# The long benchmarks and checks on a GPU machine, a command each. Each part ends within ten minutes and leaves its log
# and its results in $OUT; benchmarks that are cut short go on where they stopped when they are run again. What a quarter
# of an hour can do, training included, is bench/gpu/short.sh.
#
#   bash bench/gpu/run.sh build                   compile the native ops for the GPU there, say what is installed
#   bash bench/gpu/run.sh test                    the tests that need a GPU
#   bash bench/gpu/run.sh test-cpu                the ops', the network's and the engine's other tests, there
#   bash bench/gpu/run.sh sanitize [TOOL…]        every kernel under compute-sanitizer: memcheck racecheck synccheck
#                                                 initcheck, or the tools named
#   bash bench/gpu/run.sh bench-ops [OPTION…]     bench/ops.py, then bench/deform.py, options of both
#   bash bench/gpu/run.sh bench-sketch [OPTION…]  decoder and generator
#   bash bench/gpu/run.sh bench-train [OPTION…]   the training iteration
#   bash bench/gpu/run.sh results [OPTION…]       what the results in $OUT make; --write: one file of all of them, and the
#                                                 tables of docs/kernels.md
#
# --dry before the part runs it without a GPU: the build goes beside the results, the tests are a few of those that need
# no GPU, the sanitizer's commands are told, the benchmarks are tiny and on the CPU. It proves the commands, no speed.
#
# The machine: python3 with torch ≥ 2.11 and torchvision, nvcc, a C++ compiler; no network. Its python needs numpy,
# Pillow, safetensors, tqdm, tyro, pytest, ninja, pybind11 and setuptools. The wheels in WHEELS, which are there where
# bash bench/gpu/short.sh pack put them, are installed into build/site. Every part builds the ops where they are not yet.
#
# BEFORE is a folder with results of earlier runs (ops.json and so on), to go on with where $OUT is empty.
set -euo pipefail
cd "$(dirname "$0")/../.."

DRY=${DRY:-}
[ "${1:-}" != --dry ] || { DRY=1; shift; }
PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu-out}
BEFORE=${BEFORE:-}
WHEELS=${WHEELS:-gpu-pack/wheels}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

logged() { # logged NAME COMMAND…: run it, its output shown and kept
    local name=$1
    shift
    "$@" 2>&1 | tee "$OUT/$name.log"
}

# What the machine lacks, from the wheels that came along.
install() {
    if [ -n "$(find "$WHEELS" -name '*.whl' 2>/dev/null)" ]; then
        [ -d build/site ] || "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target build/site "$WHEELS"/*.whl
        export PYTHONPATH="$PYTHONPATH:$PWD/build/site"
    fi
}

# For the GPU that is there only, which is quicker; TORCH_CUDA_ARCH_LIST says otherwise.
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
build | test | test-cpu | sanitize | bench-* | results)
    mkdir -p "$OUT"
    install
    ;;
esac
case $part in
test | test-cpu | sanitize | bench-*)
    [ -n "$DRY" ] || [ -f hida/_ops_cuda.so ] || logged build build
    ;;
esac
on=() # where benchmarks run
if [ -n "$DRY" ]; then
    export OMP_NUM_THREADS=1
    on=(--device cpu) tiny=(--preset "$OUT/tiny.toml" --rounds 2)
    [ ! -d "$OUT" ] || printf '[generator]\nbase_width = 2\n[discriminator]\nbase_width = 1\n' >"$OUT/tiny.toml"
fi
case $part in
build)
    logged build build
    logged info "$PYTHON" -m hida info
    ;;
test)
    if [ -n "$DRY" ]; then # all of tests/gpu skips; a few others run
        logged test-gpu "$PYTHON" -m pytest -q -p no:cacheprovider -rs --junitxml "$OUT/test-gpu.xml" \
            -o addopts= tests/gpu tests/ops/contract/test_oracle.py "$@"
    else
        logged test-gpu timeout 570 "$PYTHON" -m pytest -q --durations 10 --junitxml "$OUT/test-gpu.xml" \
            -m "gpu and not slow" --maxfail 30 tests/gpu tests/ops tests/training tests/metrics tests/depth "$@"
    fi
    ;;
test-cpu)
    logged test-cpu timeout 570 "$PYTHON" -m pytest -q --junitxml "$OUT/test-cpu.xml" \
        -m "not slow and not gpu" -k "not emulated" tests/ops tests/nn tests/models tests/training "$@"
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
    [ -z "$DRY" ] || few=("${tiny[@]}" --methods reference native --direction fwd fwd+bwd)
    logged bench-sketch "$PYTHON" bench/network.py "${on[@]}" "${few[@]}" --json "$OUT/sketch.json" "$@"
    ;;
bench-train)
    earlier train_step.json
    few=(--seconds 5 --minutes 8)
    [ -z "$DRY" ] || few=("${tiny[@]}" --batch 2 --methods ours)
    logged bench-train "$PYTHON" bench/train_step.py "${on[@]}" "${few[@]}" --json "$OUT/train_step.json" "$@"
    ;;
results) logged results "$PYTHON" bench/results.py "$OUT" "$@" ;;
help)
    sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//'
    ;;
*)
    echo "there is no part '$part': bash bench/gpu/run.sh help tells them" >&2
    exit 2
    ;;
esac
