# What people type: `make up` runs everything on this machine; `make` lists the rest.
# The environment is .venv; a stamp inside it, older than pyproject.toml, means: install again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --progress-bar on --disable-pip-version-check
TO_RUN := $(VENV)/.installed-to-run
TO_DEVELOP := $(VENV)/.installed-to-develop
ROWS :=
PEERS :=
POLICIES :=
PARTS :=

.DEFAULT_GOAL := help
.PHONY: help up install test test-faults check protos bench-dynamo bench-engine bench-fleet bench-gateway bench-kv-index bench-overload bench-routing bench-routing-overhead bench-routing-sim bench-shards bench-streams bench-vllm clean demo-shards

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(TO_RUN) ## Run everything on this machine with a small model; Ctrl-C ends it
	@exec $(BIN)/deepinfer up

install: $(TO_RUN) ## Make .venv with what it takes to run

test: $(TO_DEVELOP) ## Run every test but the slow rows of the fault suite
	$(BIN)/python -m pytest -m "not faults"

test-faults: $(TO_DEVELOP) ## Kill, stop and cut off everything, as root, in about 10 minutes (ROWS=faults: the slow rows only)
	$(BIN)/python -m pytest tests/faults -m "$(ROWS)"

check: $(TO_DEVELOP) ## Check style, types and which part may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_architecture.py

protos: $(TO_DEVELOP) ## Compile the .proto files to descriptors
	$(BIN)/python -m deepinfer.protos.generate

bench-dynamo: $(TO_DEVELOP) ## Measure routing beside NVIDIA Dynamo's, each over simulated engines of the same timing
	$(BIN)/python -u -m benchmarks.routing_sim.against_dynamo

bench-engine: $(TO_DEVELOP) ## Measure decoding beside transformers on this machine
	$(BIN)/python -u -m benchmarks.engine

bench-fleet: $(TO_DEVELOP) ## Measure the control plane with 1,000 simulated nodes on one real etcd
	$(BIN)/python -u -m benchmarks.fleet

bench-gateway: $(TO_DEVELOP) ## Measure the gateway beside nginx, vllm-router, sglang-router, litellm and dynamo (PEERS=nginx,vllm-router: these only)
	$(BIN)/python -u -m benchmarks.gateway $(if $(PEERS),--peers $(PEERS))

bench-streams: $(TO_DEVELOP) ## Hold 2,000 slow streams open through one gateway process
	$(BIN)/python -u -m benchmarks.gateway.streams

bench-overload: $(TO_DEVELOP) ## Measure the gateway under three times the load that its engines can answer
	$(BIN)/python -u -m benchmarks.overload

bench-routing: $(TO_DEVELOP) ## Measure routing policies beside vllm-router's over two real vLLMs (POLICIES=deepinfer:kv,...: these only)
	$(BIN)/deepinfer engine install vllm --cpu
	$(BIN)/python -u -m benchmarks.routing $(if $(POLICIES),--policies $(POLICIES))

bench-routing-overhead: $(TO_DEVELOP) ## Measure what routing by KV contents costs the gateway beyond relaying
	$(BIN)/python -u -m benchmarks.routing_overhead

bench-kv-index: $(TO_DEVELOP) ## Measure the router's index: a long prompt in a million blocks of 64 replicas
	$(BIN)/python -u -m benchmarks.kv_index

bench-routing-sim: $(TO_DEVELOP) ## Measure routing beside its peers' formulas on fleets of simulated engines, in virtual time
	$(BIN)/python -u -m benchmarks.routing_sim

bench-shards: $(TO_DEVELOP) ## Measure pipelines of stages beside one stage, transformers and vLLM (PARTS=hop,stages,delay,losing,peers: these only)
	@case ",$(or $(PARTS),peers)," in *,peers,*) $(BIN)/deepinfer engine install vllm --cpu ;; esac
	$(BIN)/python -u -m benchmarks.shards $(if $(PARTS),--parts $(PARTS))

bench-vllm: $(TO_DEVELOP) ## Measure a vLLM behind deepinfer beside a bare one on this machine
	$(BIN)/deepinfer engine install vllm --cpu
	$(BIN)/python -u -m benchmarks.vllm

demo-shards: $(TO_RUN) ## Cut a model over three workers that are too small for it, and kill one of them; a minute
	@exec $(BIN)/python -m benchmarks.shards.demo

clean: ## Remove .venv and caches; models and data stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find deepinfer tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON); install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old; deepinfer needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(TO_RUN): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) -e '.[layer-shard]'
	@touch $@

$(TO_DEVELOP): pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) -e '.[layer-shard,test,check]'
	@touch $(TO_RUN) $@
