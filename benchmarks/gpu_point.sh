#!/usr/bin/env bash
# One measured point of cost and score, meant to take 20 to 25 minutes of one H200: Base on the books corpus, five GLUE tasks, and the frontier of
# it. Stopped at any time, the same command goes on from the last checkpoint and the last finished task. The records, without
# weights, are left in benchmarks/results/base-books/. Needs all of requirements.txt.
#
#     bash benchmarks/gpu_point.sh [PYTHON [DATASET]] [key=value ...] [-- key=value ...]
#
# Words before `--` are recipe.train's, those behind it recipe.glue's; DATASET is prepared first where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=python3 DATASET=data/books run=runs/base-books results=benchmarks/results/base-books
[ $# -gt 0 ] && [[ $1 != *=* && $1 != -- ]] && PYTHON=$1 && shift
[ $# -gt 0 ] && [[ $1 != *=* && $1 != -- ]] && DATASET=$1 && shift
pretraining=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    pretraining+=("$1")
    shift
done
[ $# -eq 0 ] || shift

[ -f "$DATASET/dataset.json" ] || "$PYTHON" -m recipe.prepare yamls/data/books.yaml "out=$DATASET"
"$PYTHON" -m recipe.train yamls/pretrain/books-base.yaml "data.path=$DATASET" "${pretraining[@]}" "out=$run" autoresume=true
"$PYTHON" -m recipe.glue yamls/glue/books-base.yaml "$@" "checkpoint=$run"

mkdir -p "$results"
cp "$run"/run.json "$run"/glue/scores.md "$results"
"$PYTHON" -m benchmarks.pareto plot "$results" --out "$run/pareto"
cp "$run"/pareto/pareto.{png,csv} "$results"
