#!/usr/bin/env bash
# Everything that needs a GPU, meant to take under nine minutes on one H200: the kernels' tests on the real device, the kernel
# benchmark, and, where Composer is installed, the tests marked gpu and the whole training step. Needs torch >= 2.10 with
# triton >= 3.6, numpy and pytest. Results: benchmarks/results/. Each part has its own limit and runs whatever came of the last.
#
#     bash benchmarks/gpu.sh [python]
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-python3}
unset TRITON_INTERPRET
export PYTHONUNBUFFERED=1
LOGS=$(mktemp -d)
failed=()

say() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }
has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null; }

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

say "tests marked gpu"
if ! has composer || ! has streaming; then
    echo "left out: the other tests need composer and streaming, which are not installed here"
else
    timeout 40 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu --ignore=tests/kernels 2>&1 | tail -n 15
    status=${PIPESTATUS[0]}
    # 5: none was collected
    [ "$status" -eq 0 ] || [ "$status" -eq 5 ] || failed+=("tests marked gpu (exit $status)")
fi

say "kernels beside their rivals"
timeout 150 "$PYTHON" -m benchmarks.kernels --seconds 110 || failed+=("benchmarks.kernels (exit $?)")

# Bare steps need neither Composer nor Streaming; the trainer's own row needs both, a YAML and a dataset (--data), and is not here.
say "the whole training step"
has composer && has streaming || echo "  composer and streaming are not both installed: bare steps alone"
timeout 230 "$PYTHON" -m benchmarks.throughput --turns 4 || failed+=("benchmarks.throughput (exit $?)")

say "done"
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
