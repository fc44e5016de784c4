# `make demo` runs the main job, `make test` and `make slow` the tests, `make docs` builds the site; all set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
READY_DOCS := .venv/.ready-docs

# Tests that run at the same time, each on one thread.
WORKERS ?= 2
# Threads that spin stall whatever else the machine does.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

.PHONY: demo test slow docs tutorials headline lint format clean
demo: $(READY)
	$(BIN)/ollm-rl demo

# The comparison with LoRA, its plots and the tables of its page (benchmarks/README.md): hours, and it goes on where it was interrupted.
headline: $(READY_DEV)
	$(BIN)/ollm-rl compare experiment=headline name=headline
	$(BIN)/ollm-rl compare experiment=headline 'tasks=[shortest_path]' 'agents=[lora_grpo_long_3]' 'seeds=[0,1]' name=headline_long
	$(BIN)/python -m benchmarks.published runs/headline
	$(BIN)/python -m benchmarks.published runs/headline_long --into headline
	$(BIN)/python benchmarks/aims.py runs/headline runs/headline_long --out benchmarks/results/aims.json

# Side by side, but for those that are held to the clock.
test: $(READY_DEV)
	$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not slow and not gpu and not alone'
	$(PYTEST) -m 'alone and not slow and not gpu'
	@echo "The rest: make slow (the real model, minutes) and, with a GPU, $(BIN)/python -m pytest -m gpu"

slow: $(READY_DEV)
	$(PYTEST) -n $(WORKERS) --dist worksteal -m 'slow and not alone'
	$(PYTEST) -m 'slow and alone'

# Into site/: warnings are errors (not with --quiet, which hides them from --strict), and nothing comes from the network.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site: site/index.html, or python -m http.server -d site (with search)"

# All of them on the tiny model, and whether their pages are up to date; `make slow` has them too.
tutorials: $(READY_DEV)
	$(PYTEST) -m 'slow or not slow' tests/tutorials --durations 6

lint: $(READY_DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and pinned: a plain `torch` brings gigabytes of CUDA to a machine without a GPU.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $(READY)

# The tests need Ray and TRL as well.
$(READY_DEV): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY_DEV)

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $(READY_DOCS)

clean:
	rm -rf .venv runs build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
