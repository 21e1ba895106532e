# With PYTHON=/path/to/python, use that Python with its torch and detectron2; install nothing.
# Otherwise scripts/setup_env.sh creates .venv with all packages, once.

ifdef PYTHON
PY := "$(PYTHON)"
set_up = command -v $(PY) >/dev/null || { echo 'PYTHON=$(PYTHON) is not an executable.' >&2; exit 1; }; $(PY) scripts/check_env.py $@
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
PY := .venv/bin/python
set_up = scripts/setup_env.sh
unexport PYTHONHOME PYTHONPATH # of another environment
endif

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint benchmark docs

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s%s\n", $$1, $$2}' Makefile
	@echo
	@echo 'ARGS="..."          additional arguments: make test ARGS="tests/test_activation.py -k gradient"'
	@echo 'PYTHON=/path        use a Python that has torch and detectron2; install nothing'
	@echo 'BASE_PYTHON=/path   create .venv with this Python (3.10 to 3.13)'

# OMP_WAIT_POLICY=PASSIVE: waiting threads do not occupy cores.
quickstart: ## generate a small long-tailed dataset, train, evaluate and draw detections
	@$(set_up)
	OMP_WAIT_POLICY=PASSIVE $(PY) tools/quickstart.py $(ARGS)

test: ## run the tests
	@$(set_up)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: ## check style and format with ruff
	@$(set_up)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

docs: ## build the documentation with the API reference in site/
	@$(set_up)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

benchmark: ## measure speed and memory of activations, losses, layers, models and evaluation
	@$(set_up)
	$(PY) -m benchmarks $(ARGS)
