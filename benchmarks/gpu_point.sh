#!/usr/bin/env bash
# One measured point of cost and score, meant to take 20 to 25 minutes of one H200: Base on the books, the GLUE tasks that
# GLUE_FOLDER has, and the frontier of it. Stopped at any time, the same command goes on from the last checkpoint and the last
# finished task. The records, without weights, are left in OUT, also of a run that was stopped. Needs all of requirements.txt;
# what a machine lacks of it may lie in WHEELS.
#
#     bash benchmarks/gpu_point.sh PYTHON DATASET GLUE_FOLDER [key=value ...] [-- key=value ...]
#
# DATASET is what recipe.prepare wrote with benchmarks/books/data.yaml. Words before `--` are recipe.train's, those behind it
# recipe.glue's. Folders are named as seen from the project's.
#
#     OUT              the folder of records (benchmarks/results/base-books)
#     RUN              the run's own folder (runs/base-books); to go on on another machine, one that both see
#     COMMIT, CACHE, WHEELS    as for gpu.sh
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: usage: bash benchmarks/gpu_point.sh PYTHON DATASET GLUE_FOLDER [key=value ...] [-- key=value ...]" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
PYTHON=$1 DATASET=$2 GLUE=$3 run=${RUN:-runs/base-books} results=${OUT:-benchmarks/results/base-books}
shift 3
. benchmarks/gpu_settings.sh
pretraining=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    pretraining+=("$1")
    shift
done
[ $# -eq 0 ] || shift

keep() {
    mkdir -p "$results"
    for file in run.json glue/scores.md pareto/pareto.png pareto/pareto.csv; do
        [ ! -f "$run/$file" ] || cp "$run/$file" "$results"
    done
}
trap keep EXIT

"$PYTHON" -m recipe.train benchmarks/books/base.yaml "data.path=$DATASET" "${pretraining[@]}" "out=$run" autoresume=true
keep
"$PYTHON" -m recipe.glue benchmarks/books/glue-base.yaml "data=$GLUE" "$@" "checkpoint=$run"
keep
"$PYTHON" -m recipe.pareto plot "$results" --out "$run/pareto"
