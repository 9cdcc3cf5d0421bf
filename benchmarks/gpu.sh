#!/usr/bin/env bash
# Everything that needs a GPU, within nine minutes, on a machine that need have nothing but torch >= 2.10 with triton >= 3.6 and
# numpy: whether the kernels are right, how fast they and a training step are beside their rivals, the kernels' tests. The
# parts stand in benchmarks/gpu.py, in the order of their worth, each with a limit; one that fails, dies or hangs costs only itself.
# transformers (for a rival), pytest, git and nvidia-smi are used where they are there. Where Composer and Streaming are installed
# or lie in WHEELS, also the tests marked gpu, and on a dataset prepared with BERT's vocabulary (benchmarks/books/data.yaml) what
# is the trainer's.
#
#     OUT=FOLDER bash benchmarks/gpu.sh [PYTHON [DATASET]]
#
# After each part OUT holds summary.txt, to be read, and results.tar.gz, in which are all results and logs so far.
#
#     OUT      the folder of results (gpu-results)
#     LIMIT    seconds of everything (535)
#     PARTS    names of the only parts to run, as in summary.txt
#     COMMIT   the commit, where there is no git; or a file of that name beside README.md holds it
#     CACHE    a folder that keeps what was compiled, from an earlier run on the same versions (a temporary one)
#     WHEELS   a folder of wheels, installed into CACHE and not into PYTHON (wheels)
#     SMALL    1: a rehearsal, every problem so small that a processor could do it; its figures mean nothing
#
# All sizes and lengths take longer: python -m benchmarks.throughput. A whole run with its scores: gpu_point.sh.
#
# Folders are named as seen from the project's.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-python3}
. benchmarks/gpu_settings.sh
unset TRITON_INTERPRET
exec "$PYTHON" -m benchmarks.gpu "${2:-data/books}"
