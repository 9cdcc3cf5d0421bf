# For the scripts that run on somebody else's machine with a GPU; they source it. Nothing is written into the home, which may be
# read-only: what is compiled or kept goes to CACHE, a folder that may be brought along; without it, to a temporary one.
# COMMIT names the commit where there is no git. Wheels in WHEELS are installed for this run only, without what they ask for.
CACHE=${CACHE:-$(mktemp -d)}
mkdir -p "$CACHE" || exit 2
CACHE=$(cd "$CACHE" && pwd)
[ -d "${HF_HOME:-$HOME/.cache/huggingface}" ] || export HF_HOME=$CACHE/huggingface
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface} XDG_CACHE_HOME=$CACHE MPLCONFIGDIR=$CACHE/matplotlib
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$CACHE/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$CACHE/inductor}
export TORCH_EXTENSIONS_DIR=$CACHE/extensions CUDA_CACHE_PATH=$CACHE/cuda PYTHONUNBUFFERED=1
if [ -n "${COMMIT:-}" ]; then
    printf '%s\n' "$COMMIT" >COMMIT || echo "the commit cannot be noted in this folder, so results will not name it" >&2
fi
WHEELS=${WHEELS:-wheels} site=$CACHE/site
if compgen -G "$WHEELS/*.whl" >/dev/null; then
    if [ -f "$site/installed" ] || { "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
        --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl && touch "$site/installed"; }; then
        export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    else
        echo "error: the wheels in $WHEELS cannot be installed; what needs them is left out" >&2
    fi
fi
