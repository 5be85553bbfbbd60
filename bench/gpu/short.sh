#!/usr/bin/env bash
# A quarter of an hour on a GPU: what proves the kernels, measures them and trains, in the order of its worth.
#
#   bash bench/gpu/short.sh pack --data data/fs2k     before, where there is a network: what must travel, into gpu-pack/
#   bash bench/gpu/short.sh first                     on the GPU machine: correctness, ratios, and training begins
#   bash bench/gpu/short.sh second                    there, right after: waits for the training, brings the weights out
#   bash bench/gpu/short.sh fetch --from 4            there: pieces of the weights that did not fit
#
# Every part has a limit of its own and never stops the next; what is finished is in $OUT (gpu-out) at once. Options:
# bash bench/gpu/short.sh PART --help. The machine needs python3 with torch ≥ 2.11 and the usual packages, no network.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" bench/gpu/short.py "$@"
