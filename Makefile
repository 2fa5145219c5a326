# `make` prints this list. Everything happens in .venv beside this file; nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
PY := $(VENV)/bin/python
NAME ?=
# Real CTs beside the clone, where there are any.
DATA := $(if $(wildcard ../shared/data/misc_ct),--data ../shared/data)
ARGS ?=
# Tiny tensors: threads cost more than they give, and one thread keeps float sums identical between machines.
TEST_ENV := OMP_NUM_THREADS=1
# Test processes, about 3 GB each. A file stays in one, so what it sets up is set up once.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-full lint bench bench-eval peers sweep clean

help: ## this list
	@echo "make TARGET, where TARGET is one of:"
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Keyed on the files that say what to install: edit a floor and the next target installs again.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old: torch, numpy and scipy need 3.11 or newer. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "This Python cannot create virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## the environment alone, in .venv (5 GB, minutes)

quickstart: $(VENV)/.installed ## phantom CT studies -> 3D encoder -> held-out zero-shot table -> a folder open_clip loads
	$(PY) -m pretrain.fit --config ct3d.yaml $(ARGS)

test: $(VENV)/.installed ## the tests, minutes (ARGS='-k name' narrows, WORKERS=8 hurries, WORKERS=0 is one process)
	$(TEST_ENV) $(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

test-full: $(VENV)/.installed ## the slow ones: killed and resumed runs, several ranks, every README block
	$(TEST_ENV) $(PY) -m pytest -q -m full $(ARGS)

lint: $(VENV)/.installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(VENV)/.installed ## our performance claims, measured on this machine
	$(PY) -m benchmarks.packed_text $(ARGS)
	$(PY) -m benchmarks.cpu_attention
	$(PY) -m benchmarks.data_roads $(DATA)
	$(PY) -m benchmarks.whole_stream
	$(PY) -m benchmarks.build_speed $(DATA)
	$(PY) -m benchmarks.worker_memory
	$(PY) -m benchmarks.tiled_loss
	$(PY) -m benchmarks.local_contrast --threads 2
	$(PY) -m benchmarks.training_step
	$(PY) -m benchmarks.chunked_step
	$(PY) -m benchmarks.model_sizes
	$(PY) -m benchmarks.graph_matching
	$(if $(DATA),$(PY) -m benchmarks.images_per_second $(DATA))

bench-eval: $(VENV)/.installed peers ## evaluation against CLIP_benchmark and scikit-learn; the probe takes half an hour
	$(PY) -m benchmarks.bootstrap_speed
	$(PY) -m benchmarks.retrieval_speed
	$(PY) -m benchmarks.probe_speed

peers: $(PEERS)/.installed ## the systems we compare with, in an environment of their own
$(PEERS)/.installed: benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet -r benchmarks/peers.txt
	@touch $@

sweep: $(VENV)/.installed ## one comparison of benchmarks/RESULTS.md, resumable: make sweep NAME=infonce_vs_sentence
	@test -n "$(NAME)" || { echo "Which one? make sweep NAME=..." >&2; exit 2; }
	$(PY) -m benchmarks.sweep $(NAME) $(ARGS)

clean: ## remove the environments and caches (runs/ and shards/ stay)
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
