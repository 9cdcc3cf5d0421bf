#!/usr/bin/env bash
# The frontier of score and cost on CPU cores, for cents: MosaicBERT and BERT at 10, 30 and 90 minutes of one reference core, three
# seeds, their floors, a trunk, and one longer run. The cheapest budgets of all models come first and one seed of everything before the second,
# so stopped early it is a smaller whole one; killed at any point, the same command goes on. Some 25 hours of one core.
#
#     bash benchmarks/frontier.sh GLUE_FOLDER CORPUS_FOLDER [BLIMP_FOLDER]
#
# CORPUS_FOLDER holds books-train*.json.gz and books-validation*.json.gz. The first start measures the models' steps on this processor,
# which must be idle then, unless benchmarks/results/frontier/campaign/reference.json is there. Once it is, the same command with CORE=1
# works on the second core at the same time.
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "error: usage: bash benchmarks/frontier.sh GLUE_FOLDER CORPUS_FOLDER [BLIMP_FOLDER]" >&2
    exit 2
fi
glue=$(realpath "$1") corpus=$(realpath "$2") pairs=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
frontier=benchmarks/frontier results=benchmarks/results/frontier/campaign
[ -f data/frontier/dataset.json ] || .venv/bin/python -m recipe.prepare "$frontier/data.yaml" \
    "train.files=[$corpus/books-train*.json.gz]" "validation.files=[$corpus/books-validation*.json.gz]"

export OMP_NUM_THREADS=1
campaign() {
    taskset -c "${CORE:-0}" .venv/bin/python -m benchmarks.campaign "$1" "$frontier/campaign.yaml" \
        "glue='yamls/glue/glue5.yaml data=$glue'" ${pairs:+"pairs='yamls/pairs/blimp.yaml data=$pairs'"}
}
[ -f "$results/reference.json" ] || campaign reference
campaign run

for measure in score loss ${pairs:+pairs}; do
    .venv/bin/python -m recipe.pareto plot "$results/runs" --floor "$results/floor" --measure "$measure" --out "$results"
done
