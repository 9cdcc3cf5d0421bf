#!/usr/bin/env bash
# A hundred faults: preparation, training on one and two ranks, fine-tuning, a sweep and an export, each broken off at a drawn moment
# and started again, and what they then hold held against a run that nothing disturbed. No further fault begins after 60 minutes;
# stopped at any time, or out of time, the same command goes on. What each fault does, and which need mounting: soak_faults.py.
#
#     bash benchmarks/soak.sh [--faults 100] [--minutes 60] [--subjects NAME ...] [--out FILE] [--work FOLDER] [--seed N]
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m benchmarks.soak "$@"
