# make repro   set up and run the whole pipeline          make test    set up and run the tests
# make check   lint, types, layers, docs site               make bench   run the benchmarks
# make slow    run the tests that take minutes            make clean   forget the virtual environment
# make lock    resolve requirements*.lock anew            make effect  does density sampling help? an hour

PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# torch brings its own CUDA packages where there are any, so it is left out of the lock files; pip is
# that of the virtual environment
LOCK   := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
          --no-header --no-annotate --quiet $(foreach p,pip torch triton cuda-bindings cuda-pathfinder \
          cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
          nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver \
          nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
          nvidia-nvshmem-cu13 nvidia-nvtx,--no-emit-package $(p))

.PHONY: repro test slow check bench effect lock clean
.DELETE_ON_ERROR:

repro: .venv/runtime
	. $(BIN)/activate && dvc repro
	@echo
	@echo "What was made, against what this commit pins:"
	@. $(BIN)/activate && isodense verify --against HEAD || true
	@echo
	@echo "Done. Look at:"
	@echo "  . .venv/bin/activate"
	@echo "  reports/index.html       the report: map, weights, duplicate clusters, training, answers"
	@echo "  isodense inspect         the most and least weighted prompts"
	@echo "  dvc exp run -S density.k=10 density && isodense experiments    an experiment, and a table"

# Two workers fill two cores: threads within them would only wait for each other.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m 'slow and not gpu and not network'

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: .venv/dev
	$(PIP) --no-deps sentence-transformers==6.2.0 geosketch==1.3 fbpca==1.0
	for script in $(filter-out $(addprefix benchmarks/,effect.py intents.py labelled.py encoders.py int8.py lists.py million.py),$(wildcard benchmarks/*.py)); do \
	  $(BIN)/python $$script || exit 1; done

effect: .venv/dev
	$(BIN)/python benchmarks/effect.py

lock:
	$(LOCK) --extra pipeline --extra plots --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf .venv

.venv/torch: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isodense needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	sed 's/ *\\$$//; /--hash/d' requirements.lock > .venv/constraints.txt
	$(PIP) --constraint .venv/constraints.txt '$(TORCH)'
	touch $@

.venv/runtime: .venv/torch requirements.lock pyproject.toml
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

.venv/dev: .venv/runtime requirements-dev.lock
	$(PIP) --no-deps --require-hashes --requirement requirements-dev.lock
	touch $@
