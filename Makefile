# Two commands: `make demo` (the main job on a fresh machine) and `make test`. Needs Python >= 3.10 with venv and pip, and g++.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= out

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/fastsample info
	$(BIN)/fastsample sample --model digits --solver dpmpp-2m --steps 20 -n 64 --seed 0 --guidance 2 --out $(OUT)
	@echo "picture: $(CURDIR)/$(OUT)/samples.png"

test: $(VENV)/.dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

# All benchmarks, under 25 minutes on 2 idle cores, and docs/benchmarks.md; BENCH=--quick: under 5 minutes.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(BENCH)

# On a machine with a GPU and a CUDA build of torch: build, tests/gpu, sanitizers, benchmarks; results in benchmarks/results.
gpu:
	$(PYTHON) benchmarks/gpu.py

# The checkout is installed editable: the library is built at first use and follows its sources.
$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf build *.egg-info out .pytest_cache .mypy_cache .ruff_cache
