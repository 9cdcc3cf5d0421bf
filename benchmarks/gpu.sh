#!/usr/bin/env bash
# Everything that needs a GPU, within nine minutes: the kernels' tests on the real device, the kernel benchmark and the
# bare training step beside Hugging Face's, for which torch >= 2.10 with triton >= 3.6, numpy and pytest suffice (transformers for
# the rival). Where Composer and Streaming are installed too, also the tests marked gpu, and on a dataset prepared with BERT's
# vocabulary (benchmarks/books/data.yaml) the trainer's own row, where a step's time goes, and the trainer beside a bare loop. Each part
# has a limit and runs whatever came of the last; what it measured until then stands in benchmarks/results/.
#
#     bash benchmarks/gpu.sh [PYTHON [DATASET]]
#
# All sizes and lengths take longer: python -m benchmarks.throughput. A whole run with its scores: gpu_point.sh.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-python3}
DATASET=${2:-data/books}
ALL=535  # seconds of everything
LEAST=15 # that a part must have left to begin
unset TRITON_INTERPRET
export PYTHONUNBUFFERED=1
LOGS=$(mktemp -d)
failed=()

say() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }
has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

# part NAME SECONDS COMMAND...: within the seconds given and what is left of all
part() {
    local name=$1 limit=$2 room=$((ALL - SECONDS))
    shift 2
    say "$name"
    if [ "$room" -lt "$LEAST" ]; then
        failed+=("$name (not begun: no time was left)")
        return
    fi
    timeout $((limit < room ? limit : room)) "$@" || failed+=("$name (exit $?)")
}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "error: $PYTHON sees no CUDA GPU through torch" >&2
    exit 2
fi
"$PYTHON" -m kernels.backends

# Compiling takes longer than running, and on one core only: a process for each file. The ahead-of-time compilation of
# tests/kernels/test_compile.py needs no GPU and is left to continuous integration.
say "kernel tests on the device"
pids=() names=()
for file in tests/kernels/test_*.py; do
    [ "$file" = tests/kernels/test_compile.py ] && continue
    if grep -q '^from hypothesis' "$file" && ! has hypothesis; then
        echo "  $file: left out, hypothesis is not installed"
        continue
    fi
    timeout 140 "$PYTHON" -m pytest -q -p no:cacheprovider --confcutdir=tests/kernels "$file" >"$LOGS/$(basename "$file").log" 2>&1 &
    pids+=($!) names+=("$file")
done
for i in "${!pids[@]}"; do
    wait "${pids[$i]}"
    status=$?
    log="$LOGS/$(basename "${names[$i]}").log"
    if [ "$status" -eq 0 ]; then
        echo "  ${names[$i]}: $(tail -n 1 "$log")"
    else
        failed+=("${names[$i]} (exit $status)")
        tail -n 40 "$log"
    fi
done

part "kernels beside their rivals" 120 "$PYTHON" -m benchmarks.kernels --seconds 100

if ! has composer || ! has streaming; then
    part "the bare training step" 240 "$PYTHON" -m benchmarks.throughput --turns 4 --seconds 150
    echo "left out: all that is the trainer's needs composer and streaming, which are not both installed"
else
    part "the bare training step, Base" 170 "$PYTHON" -m benchmarks.throughput --turns 4 --lengths 128 512 --seconds 80
    say "tests marked gpu"
    timeout 80 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu --ignore=tests/kernels 2>&1 | tail -n 15
    status=${PIPESTATUS[0]}
    # 5: none was collected
    [ "$status" -eq 0 ] || [ "$status" -eq 5 ] || failed+=("tests marked gpu (exit $status)")
    if [ -f "$DATASET/dataset.json" ]; then
        yaml=yamls/pretrain/mosaic-bert-base.yaml
        words=("data.path=$DATASET" autoresume=false)
        part "the training step in the trainer" 60 "$PYTHON" -m benchmarks.throughput "$yaml" --data "$DATASET" --turns 4 \
            --lengths 128 512 --only this "this, trainer" --out benchmarks/results/throughput-gpu-trainer.json
        for length in 128 512; do
            part "where a step's time goes, $length" 60 "$PYTHON" -m benchmarks.profile "$yaml" "${words[@]}" \
                "data.sequence_length=$length" "batch_size=$((262144 / length))" --steps 6 \
                --out "benchmarks/results/profile-base-$length-gpu"
        done
        part "the trainer beside a bare loop" 80 "$PYTHON" -m benchmarks.trainer "$yaml" "${words[@]}" \
            batch_size=1024 --rounds 5 --out benchmarks/results/trainer-gpu.json
    else
        echo "left out: the trainer's own figures need a dataset; prepare $DATASET, or give another as the second word"
    fi
fi

say "done"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
