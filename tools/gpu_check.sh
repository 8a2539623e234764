#!/usr/bin/env bash
# All that has to be tried on a GPU, in one command of at most eight minutes:
#
#   bash tools/gpu_check.sh                      every stage; logs and results.json in $OUT, or runs/gpu
#   bash tools/gpu_check.sh --stage 2,6          these stages alone
#   bash tools/gpu_check.sh --rehearse           small sizes, without a GPU
#
# On a machine without network `make gpu-bundle`, run elsewhere before, brings what is missing in .gpu/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BEGIN=$(date +%s.%N) # what comes before the stages is in the time of the day
PYTHON=${PYTHON:-python3}
if [[ " $* " != *" --rehearse "* ]]; then
  if compgen -G ".gpu/*.whl" >/dev/null; then
    "$PYTHON" tools/gpu_bundle.py --check
    install=("$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target)
    PYTHONPATH=$(mktemp -d)
    GPU_CHECK_PEERS=$(mktemp -d) # only what is compared with them sees them
    "${install[@]}" "$PYTHONPATH" .gpu/*.whl
    "${install[@]}" "$GPU_CHECK_PEERS" .gpu/peers/*.whl || echo "without the peers of the kernels" >&2
    export PYTHONPATH GPU_CHECK_PEERS
  elif ! (cd / && "$PYTHON" -c "import fourdthinker.kernels, fourdthinker._video") 2>/dev/null; then
    echo "the package is not installed for $PYTHON, and there is no .gpu/*.whl: run make gpu-bundle elsewhere" \
      "and carry .gpu/ here, or install the package with make setup" >&2
    exit 2
  fi
  # A fresh machine reads gigabytes of libraries at the first import: not in the time of a stage.
  timeout 60 "$PYTHON" -c "import torch, transformers, triton; torch.zeros(1).cuda()" || true
fi
exec "$PYTHON" tools/gpu_check.py --begin "$BEGIN" "$@"
