# The commands of the README. Each makes .venv when needed; a second call starts at once.
#
#   make demo                 the whole loop on rendered scenes; ARGS="--quick" is passed on
#   make test                 all lanes but gpu and others, with coverage of the first two
#   make test LANE=unit       one lane of tests/, as unit or gpu; ARGS="-k name" is passed on
#   make lint                 style and types of Python, style of C++
#   make clean                removes .venv and build/

PYTHON ?= python3
VENV ?= .venv
LANE ?=
ARGS ?=

# Where a CPU build of torch comes from when pip's own source offers only CUDA builds and this machine has
# no NVIDIA GPU. The only place that names such a host.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
export TORCH_CPU_INDEX

READY := $(VENV)/.ready

.PHONY: setup demo test lint gpu-bundle clean

setup: $(READY)

$(READY): pyproject.toml CMakeLists.txt requirements/constraints.txt tools/prepare.py tools/install_torch.py $(wildcard csrc/* csrc/cuda/*)
	$(PYTHON) tools/prepare.py --venv $(VENV)

demo: $(READY)
	$(VENV)/bin/fourdthinker demo $(ARGS)

test: $(READY)
	$(VENV)/bin/python tools/lanes.py $(LANE) $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	git ls-files '*.cpp' '*.hpp' '*.inl' '*.cu' | xargs $(VENV)/bin/clang-format --dry-run --Werror

gpu-bundle: $(READY)
	$(VENV)/bin/python tools/gpu_bundle.py $(ARGS)

clean:
	rm -rf $(VENV) build
