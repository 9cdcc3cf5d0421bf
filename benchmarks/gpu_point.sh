#!/usr/bin/env bash
# One measured point of cost and score, meant to take 20 to 25 minutes of one H200: Base on the books, the GLUE tasks that
# GLUE_FOLDER has, and the frontier of it. Stopped at any time, the same command goes on from the last checkpoint and the last
# finished task. The records, without weights, are left in benchmarks/results/base-books/. Needs all of requirements.txt.
#
#     bash benchmarks/gpu_point.sh PYTHON DATASET GLUE_FOLDER [key=value ...] [-- key=value ...]
#
# DATASET is what recipe.prepare wrote with benchmarks/books/data.yaml. Words before `--` are recipe.train's, those behind it
# recipe.glue's. Folders are named as seen from the project's.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "error: usage: bash benchmarks/gpu_point.sh PYTHON DATASET GLUE_FOLDER [key=value ...] [-- key=value ...]" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
PYTHON=$1 DATASET=$2 GLUE=$3 run=runs/base-books results=benchmarks/results/base-books
shift 3
pretraining=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    pretraining+=("$1")
    shift
done
[ $# -eq 0 ] || shift

"$PYTHON" -m recipe.train benchmarks/books/base.yaml "data.path=$DATASET" "${pretraining[@]}" "out=$run" autoresume=true
"$PYTHON" -m recipe.glue benchmarks/books/glue-base.yaml "data=$GLUE" "$@" "checkpoint=$run"

mkdir -p "$results"
cp "$run"/run.json "$run"/glue/scores.md "$results"
"$PYTHON" -m recipe.pareto plot "$results" --out "$run/pareto"
cp "$run"/pareto/pareto.{png,csv} "$results"
