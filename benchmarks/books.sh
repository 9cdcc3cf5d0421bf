#!/usr/bin/env bash
# Real text to a frontier with intervals, on two cores: MosaicBERT with a run for every budget, the same budgets off one trunk a seed, and
# the BERT baseline, three seeds each, scored on the five tasks of ../shared/data/glue. Interrupted, the same command continues.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f data/books/dataset.json ] || .venv/bin/python -m recipe.prepare yamls/data/books.yaml

# One thread on one core for each of two commands at a time, so that what is timed shares its core with nothing of its own.
export OMP_NUM_THREADS=1
printf '%s\n' "sweep yamls/sweep/books-tiny-bert.yaml" "sweep yamls/sweep/books-tiny.yaml" \
    "trunk yamls/sweep/books-tiny.yaml out=runs/books-tiny-trunk" |
    xargs -P "${JOBS:-2}" -L 1 --process-slot-var=CORE \
        sh -c 'exec taskset -c "$CORE" .venv/bin/python -m benchmarks.pareto "$@"' run

# The records, without weights, are what the figure is drawn from.
results=benchmarks/results/books-seeds
rm -rf "$results"
for file in runs/books-tiny*/{runs,trunks}/*/run.json; do
    [ -f "$file" ] || continue
    to="$results/${file#runs/}"
    mkdir -p "$(dirname "$to")"
    cp "$file" "$to"
done
.venv/bin/python -m benchmarks.pareto plot "$results"/*/runs --out runs/books-seeds
cp runs/books-seeds/pareto.{png,csv} "$results"
