# PYTHON=/path/to/python uses that Python, with its own torch and detectron2, as it is.
# Without it, scripts/setup_env.sh makes .venv and installs everything there, once.

ifdef PYTHON
PY := "$(PYTHON)"
set_up = command -v $(PY) >/dev/null || { echo 'PYTHON=$(PYTHON) is no program' >&2; exit 1; }; $(PY) scripts/check_env.py $@
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := .venv/bin/python
set_up = scripts/setup_env.sh
endif

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint benchmark

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile
	@echo
	@echo 'ARGS="..."          more arguments: make test ARGS="tests/test_activation.py -k gradient"'
	@echo 'PYTHON=/path        use a Python that has torch and detectron2; nothing is installed'
	@echo 'BASE_PYTHON=/path   make .venv with this Python (3.10 to 3.13)'

# Passive: threads that wait for one another leave the cores to whatever else runs.
quickstart: ## make a small long-tailed dataset, train, evaluate and draw detections
	@$(set_up)
	OMP_WAIT_POLICY=PASSIVE $(PY) tools/quickstart.py $(ARGS)

test: ## run the tests
	@$(set_up)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: ## check style and format with ruff
	@$(set_up)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

benchmark: ## measure the speed and memory of activation, layers, models and evaluation
	@$(set_up)
	$(PY) benchmarks/benchmark.py $(ARGS)
