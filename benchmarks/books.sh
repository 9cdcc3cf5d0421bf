#!/usr/bin/env bash
# Real text to a frontier with intervals, in about 15 minutes on two cores: MosaicBERT with a run for every budget, the same budgets
# off one trunk, and the BERT baseline, three seeds each, scored on the five tasks of ../shared/data/glue. Interrupted, the same
# command continues; runs/books-seeds/loss.html and pareto.html are the pages to open.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=runs/books-seeds results=benchmarks/results/books-seeds
[ -f data/books/dataset.json ] || .venv/bin/python -m recipe.prepare yamls/data/books.yaml

# One thread on one core for each of two commands at a time, so that what is timed shares its core with nothing of its own.
export OMP_NUM_THREADS=1
for seed in 17 18 19; do
    echo "sweep yamls/sweep/books-tiny-bert.yaml out=$runs/bert-$seed seeds=[$seed]"
    echo "sweep yamls/sweep/books-tiny.yaml out=$runs/mosaic-$seed seeds=[$seed]"
    echo "trunk yamls/sweep/books-tiny.yaml out=$runs/trunk-$seed seeds=[$seed]"
done | xargs -P "${JOBS:-2}" -L 1 --process-slot-var=CORE \
    sh -c 'exec taskset -c "$CORE" .venv/bin/python -m benchmarks.pareto "$@"' run

# The records, without weights, are what the figure is drawn from.
rm -rf "$results"
for file in "$runs"/*/{runs,trunks}/*/run.json; do
    [ -f "$file" ] || continue
    mkdir -p "$results/$(dirname "${file#"$runs"/}")"
    cp "$file" "$results/${file#"$runs"/}"
done
for measure in score loss; do
    .venv/bin/python -m benchmarks.pareto plot "$results"/*/runs --out "$runs" --measure "$measure"
done
cp "$runs"/{pareto,loss}.{png,csv} "$results"
