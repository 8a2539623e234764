#!/usr/bin/env bash
# All that has to be tried on a GPU, in one command of less than ten minutes:
#
#   bash tools/gpu_check.sh                      every stage; logs and results.json in $OUT, or runs/gpu
#   bash tools/gpu_check.sh --stage 2,6          these stages alone
#   bash tools/gpu_check.sh --rehearse           small sizes, without a GPU
#
# On a machine without network `make gpu-bundle`, run elsewhere before, brings what is missing in .gpu/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
if [[ " $* " != *" --rehearse "* ]] && compgen -G ".gpu/*.whl" >/dev/null; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .gpu/*.whl
  export PYTHONPATH=$site
fi
exec "$PYTHON" tools/gpu_check.py "$@"
