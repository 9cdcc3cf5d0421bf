#!/usr/bin/env bash
# Real text to a frontier with intervals, in about 15 minutes on two cores: MosaicBERT with a run for every budget, the same budgets
# off one trunk, and the BERT baseline, three seeds each, scored on the GLUE tasks that GLUE_FOLDER has. Interrupted, the same
# command continues; runs/books-seeds/loss.html and pareto.html are the pages to open.
#
#     bash benchmarks/books.sh CORPUS_FOLDER GLUE_FOLDER VOCAB
#
# CORPUS_FOLDER holds books-train*.json.gz and books-validation*.json.gz, VOCAB is bert-base-uncased's vocab.txt.
set -euo pipefail
if [ $# -ne 3 ]; then
    echo "error: usage: bash benchmarks/books.sh CORPUS_FOLDER GLUE_FOLDER VOCAB" >&2
    exit 2
fi
corpus=$(realpath "$1") glue=$(realpath "$2") vocabulary=$(realpath "$3")
cd "$(dirname "$0")/.."
books=benchmarks/books runs=runs/books-seeds results=benchmarks/results/books-seeds
[ -f data/books/dataset.json ] || .venv/bin/python -m recipe.prepare "$books/data.yaml" \
    "train.files=[$corpus/books-train*.json.gz]" "validation.files=[$corpus/books-validation*.json.gz]" \
    "tokenizer.vocab_file=$vocabulary"

# One thread on one core for each of two commands at a time, so that what is timed shares its core with nothing of its own.
export OMP_NUM_THREADS=1
for seed in 17 18 19; do
    words="seeds=[$seed] 'glue=$books/glue-tiny.yaml data=$glue'"
    echo "sweep $books/sweep-tiny-bert.yaml out=$runs/bert-$seed $words"
    echo "sweep $books/sweep-tiny.yaml out=$runs/mosaic-$seed $words"
    echo "trunk $books/sweep-tiny.yaml out=$runs/trunk-$seed $words"
done | xargs -P "${JOBS:-2}" -L 1 --process-slot-var=CORE \
    sh -c 'exec taskset -c "$CORE" .venv/bin/python -m recipe.pareto "$@"' run

# The records, without weights, are what the figure is drawn from.
rm -rf "$results"
for file in "$runs"/*/{runs,trunks}/*/run.json; do
    [ -f "$file" ] || continue
    mkdir -p "$results/$(dirname "${file#"$runs"/}")"
    cp "$file" "$results/${file#"$runs"/}"
done
for measure in score loss; do
    .venv/bin/python -m recipe.pareto plot "$results"/*/runs --out "$runs" --measure "$measure"
done
cp "$runs"/{pareto,loss}.{png,csv} "$results"
