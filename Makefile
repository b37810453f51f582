# The daily commands; CONTRIBUTING.md says when to use which. Each stage prints how long it took.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:

# What takes long to make and outlives a checkout: the control plane's programs, models, Python environments.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stowage

# In CI every checkout is fresh, so there the build is kept in the cache as well, apart for each compiler.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(CACHE)/target/$(shell rustc --version | cut -d' ' -f2)
# Every checkout has another path and other times, so what is kept for incremental builds would only grow.
export CARGO_INCREMENTAL ?= 0
endif
# Asked of cargo where it is not set, for the folder may also be set in cargo's configuration. (What make exports reaches recipes, not its own `shell`.)
TARGET = $(or $(CARGO_TARGET_DIR),$(shell cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'))

STAGE := scripts/stage.sh
# Layers on simulated GPUs, for machines that have none, and workers that try to break out of their confinement. A release is built without either. Single
# programs are built with `--workspace` too: then their dependencies have the features that they have everywhere else, and are not compiled again.
SIMULATED := --features stowage-agent/simulated-gpu,stowage-agent/hostile-worker
# The GPUs of tests of the CUDA backend, whose kernels run on the CPU, not in a release either; and what looks for real ones.
EMULATED := --features stowage-engine/emulated-cuda,stowage-engine/cuda
MODEL := $(CACHE)/models/smollm2-135m-instruct-q4_1.gguf
CLIENTS := $(wildcard tests/clients/requirements.txt)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: run
run: build models control-plane ## everything up on this machine, a model deployed and asked (ONCE=1: and then ended; CLUSTER=current: on kubectl's cluster)
	@exec $(TARGET)/debug/stowage-up --model $(MODEL) $(if $(ONCE),--once) $(if $(CLUSTER),--cluster $(CLUSTER)) --environment target/run.env $(ARGS)

.PHONY: build
build: ## what `run` and the tests start
	@$(STAGE) build cargo build --workspace $(SIMULATED)

.PHONY: models
models: ## the small model of the tests, into the cache
	@$(STAGE) models scripts/models.sh $(CACHE)/models

# What is kept of a checkout that is gone: no other one uses it, and each would add gigabytes.
.PHONY: sweep
sweep:
	@$(STAGE) 'removing what was built of other checkouts' cargo clean --quiet --workspace

.PHONY: control-plane
control-plane: ## etcd, Kubernetes and helm, built into the cache (minutes, once)
	@$(STAGE) 'build of control-plane' cargo build --quiet --workspace $(SIMULATED) --bin control-plane
	@$(STAGE) 'control plane' $(TARGET)/debug/control-plane

.PHONY: test
test: build control-plane models test-rust test-cuda $(if $(CLIENTS),test-clients) ## all tests

.PHONY: test-rust
test-rust:
	@$(STAGE) 'rust tests' scripts/rust-tests.sh --workspace $(SIMULATED) --no-fail-fast

.PHONY: test-aarch64
test-aarch64: ## the engine built for aarch64, its tests run there by QEMU
	@$(STAGE) 'engine on aarch64' scripts/aarch64.sh $(TARGET)/aarch64

# The engine alone, so that what all other programs are built with stays as it is.
.PHONY: test-cuda
test-cuda: ## the CUDA backend on emulated GPUs
	@$(STAGE) 'cuda tests, on emulated GPUs' scripts/rust-tests.sh --package stowage-engine $(EMULATED) --lib --test reference_models cuda

.PHONY: test-clients
test-clients:
	@python=$$($(STAGE) 'python environment' scripts/python-environment.sh $(CLIENTS) $(CACHE)); \
	$(STAGE) 'python clients' $(TARGET)/debug/stowage-up --model $(MODEL) --also tests/clients/assistant.yaml -- $$python -m pytest -q tests/clients

# A client that can't be built here is said to be missing, loudly, and is no failure.
.PHONY: test-ollama
test-ollama: build control-plane models ## Ollama's command-line client, built from its Go module, against a running agent
	@python=$$($(STAGE) 'python environment' scripts/python-environment.sh $(CLIENTS) $(CACHE)); \
	if client=$$($(STAGE) "Ollama's client" scripts/ollama-client.sh $(CACHE)/ollama); then \
		STOWAGE_OLLAMA=$$client $(STAGE) "ollama's program" $(TARGET)/debug/stowage-up --model $(MODEL) --simulated-gpu 8 \
			--also tests/clients/assistant.yaml --also tests/clients/program/split.yaml --also tests/clients/program/on-cpu.yaml \
			-- $$python -m pytest -q tests/clients/program; \
	else \
		echo "==> SKIPPED: Ollama's command-line client was not tried, for the reason above" >&2; \
	fi

# DURATION in seconds, at the worker and again at the door.
.PHONY: soak
soak: build control-plane models ## requests of every kind at once, for half an hour
	@python=$$($(STAGE) 'python environment' scripts/python-environment.sh $(CLIENTS) $(CACHE)); \
	STOWAGE_SOAK_SECONDS=$(or $(DURATION),900) $(STAGE) soak $(TARGET)/debug/stowage-up --model $(MODEL) -- $$python -m pytest -q -rP tests/clients/test_soak.py

# DURATION in seconds; SEED: of a run to be repeated.
.PHONY: chaos
chaos: build control-plane models ## kills, pauses and changes of everything at once, a quarter of an hour
	@$(STAGE) chaos $(TARGET)/debug/chaos --duration $(or $(DURATION),900) $(if $(SEED),--seed $(SEED))

# 50 nodes' agents share one process; nothing is loaded.
.PHONY: fleet
fleet: build control-plane models ## how long from apply to Scheduled, with 50 nodes and 200 ModelDeployments
	@$(STAGE) fleet $(TARGET)/debug/fleet

# Where a node can't be raised, `e2e` says what is missing and ends with 77, which is a failure; with OPTIONAL=1 it is said as loudly and no failure.
E2E := $(TARGET)/debug/e2e
.PHONY: e2e
e2e: build ## a real node, as root: the chart installed, used, upgraded and uninstalled, with containers (OPTIONAL=1: skipped where it can't run)
	@status=0; $(STAGE) 'can a node be raised here' $(E2E) check || status=$$?; \
	if [ $$status -eq 0 ]; then $(MAKE) --no-print-directory e2e-here; \
	elif [ $$status -eq 77 ] && [ -n "$(OPTIONAL)" ]; then echo '==> SKIPPED: the end-to-end test on a real node, for the reason above' >&2; \
	else exit $$status; fi

.PHONY: e2e-here
e2e-here: models control-plane
	@$(STAGE) 'programs of a node' $(TARGET)/debug/control-plane node
	@$(MAKE) --no-print-directory image PROFILE=debug
	@$(STAGE) 'image of the test' scripts/image.py in-pod $(TARGET)/debug/in-pod $(TARGET)/images/debug --tag e2e --without-sbom
	@$(STAGE) e2e $(E2E) run --model $(MODEL) --images $(TARGET)/images/debug

.PHONY: verify
verify: test ## the tests, those that take long, divergences, Ollama's client, the soak, chaos and fuzzing
	@$(STAGE) 'long tests' scripts/rust-tests.sh --workspace $(SIMULATED) --no-fail-fast -- --ignored
	@$(MAKE) --no-print-directory test-aarch64
	@$(MAKE) --no-print-directory kl
	@$(MAKE) --no-print-directory test-ollama
	@$(MAKE) --no-print-directory soak
	@$(MAKE) --no-print-directory chaos
	@$(MAKE) --no-print-directory fleet
	@$(STAGE) fuzz scripts/fuzz.sh $(TARGET) $(or $(DURATION),600)

.PHONY: kl
kl: models ## how far the engine is from exact arithmetic, in every quantisation (TYPES, TOKENS); beside llama.cpp's
	@$(STAGE) 'release build' cargo build --release --package stowage-engine --example kl
	@$(STAGE) kl scripts/kl.sh $(TARGET)/release/examples/kl $(CACHE) $(MODEL)

# DURATION in seconds; INPUT: a file to run again.
.PHONY: fuzz
fuzz: ## the header reader and the parsers of requests against hostile bytes, 10 minutes each
	@$(STAGE) fuzz scripts/fuzz.sh $(TARGET) $(or $(DURATION),600) $(INPUT)

.PHONY: lint
lint: ## formatting, clippy, generated files, dependencies
	@$(STAGE) format cargo fmt --all --check
	@$(STAGE) clippy cargo clippy --quiet --workspace --all-targets -- -D warnings
	@$(STAGE) 'clippy, simulated GPU' cargo clippy --quiet --workspace --all-targets $(SIMULATED),stowage-agent/fuzzed -- -D warnings
	@$(STAGE) 'clippy, CUDA' cargo clippy --quiet --workspace --all-targets --features stowage-agent/cuda,stowage-agent/gpu-test -- -D warnings
	@$(STAGE) 'clippy, emulated CUDA' cargo clippy --quiet --workspace --all-targets --features stowage-agent/emulated-cuda,stowage-agent/gpu-test -- -D warnings
	@$(STAGE) 'build of crdgen' cargo build --quiet --workspace $(SIMULATED) --bin crdgen
	@$(STAGE) 'generated files' $(TARGET)/debug/crdgen --check
	@$(STAGE) 'build of control-plane' cargo build --quiet --workspace $(SIMULATED) --bin control-plane
	@helm=$$($(STAGE) helm $(TARGET)/debug/control-plane helm); $(STAGE) chart scripts/chart-lint.sh $$helm; \
	if kube_score=$$($(STAGE) kube-score $(TARGET)/debug/control-plane kube-score); then \
		$(STAGE) 'chart, by kube-score' scripts/chart-score.py $$helm $$kube_score; \
	else \
		echo '==> SKIPPED: kube-score did not look at the chart, for the reason above' >&2; \
	fi
	@if actionlint=$$($(STAGE) actionlint $(TARGET)/debug/control-plane actionlint); then \
		$(STAGE) workflows $$actionlint -shellcheck= -pyflakes= .github/workflows/*.yaml; \
	else \
		echo '==> SKIPPED: actionlint did not look at the workflows, for the reason above' >&2; \
	fi
	@$(STAGE) 'python syntax' scripts/python-syntax.sh
	@$(STAGE) dependencies scripts/deny.sh

# What `cuda` and an image with CUDA embed: kernels for every architecture, by NVIDIA's compiler from PyPI. Neither a GPU nor a toolkit is needed.
KERNELS = $(TARGET)/cuda-kernels
.PHONY: cuda-kernels
cuda-kernels:
	@$(STAGE) 'build of cuda_kernels' cargo build --quiet --package stowage-engine --features cuda --example cuda_kernels
	@$(STAGE) 'CUDA kernels' scripts/cuda-kernels.sh $(TARGET)/debug/examples/cuda_kernels $(CACHE) $(KERNELS)

.PHONY: cuda
cuda: cuda-kernels ## the agent with CUDA, kernels for every GPU from compute capability 7.5 on embedded; built without a GPU
	@STOWAGE_CUDA_KERNELS=$(KERNELS) $(STAGE) 'build with CUDA' cargo build --workspace --features stowage-agent/cuda --bin stowage-agent

# A program with its kernels in it, and a script: enough for a machine with a GPU and no network.
GPU_TEST = $(TARGET)/gpu-test
.PHONY: gpu-test-folder
gpu-test-folder: cuda-kernels ## what to take along for `gpu-test`, into target/gpu-test/, at most 64 MiB; built without a GPU
	@STOWAGE_CUDA_KERNELS=$(KERNELS) $(STAGE) 'release build of gpu_test' cargo build --release --locked --package stowage-agent --features stowage-agent/cuda,stowage-agent/gpu-test --example gpu_test
	@$(STAGE) 'folder of gpu-test' scripts/gpu-test-folder.sh $(TARGET)/release/examples/gpu_test $(GPU_TEST)

.PHONY: gpu-test
gpu-test: ## CUDA tried on this machine's GPU with models made here: divergence, bytes, contexts, speed; fails where there is none (EMULATED=1: small models on an emulated one)
ifdef EMULATED
	@$(STAGE) 'build of gpu_test, emulated' cargo build --workspace --features stowage-agent/emulated-cuda,stowage-agent/gpu-test --example gpu_test
	@$(STAGE) 'gpu-test, emulated' $(TARGET)/debug/examples/gpu_test --emulated --folder $(TARGET)/gpu-test-models
else
	@[ -x $(GPU_TEST)/run.sh ] || $(MAKE) --no-print-directory gpu-test-folder
	@$(STAGE) gpu-test $(GPU_TEST)/run.sh
endif

.PHONY: bench
bench: ## beside llama.cpp, in turns: prefill, decode, start, memory; and requests together (ROUNDS, MODELS="smollm2 gemma3 random", INSTRUCTIONS=avx2)
	@$(STAGE) 'release build' cargo build --release --package stowage-agent
	@$(STAGE) 'release build of examples' cargo build --release --package stowage-engine --package stowage-agent --example first_token --example serving --example worker_memory
	@$(STAGE) bench scripts/bench.sh $(TARGET)/release/stowage-agent $(TARGET)/release/examples $(CACHE)

.PHONY: crds
crds: ## crds/generated/, the chart's templates of it and the API reference, from the Rust types
	@$(STAGE) 'build of crdgen' cargo build --quiet --workspace $(SIMULATED) --bin crdgen
	@$(STAGE) crds $(TARGET)/debug/crdgen

.PHONY: chart
chart: crds ## the chart's generated parts: its definitions and the table of its values
	@$(STAGE) 'README of the chart' scripts/chart-readme.py

.PHONY: golden
golden: ## what is planned for real models, written again (placement/tests/golden/cases/*.output.yaml)
	@GOLDEN_REWRITE=1 $(STAGE) golden cargo test --quiet --package stowage-placement --test golden every_case
	@git diff --stat -- placement/tests/golden

# PROFILE=debug: what `make build` made, simulated GPUs included, for tests; a release takes minutes to compile.
PROFILE ?= release
WITH_CUDA := $(if $(CUDA),--features stowage-agent/cuda)
.PHONY: image
image: $(if $(CUDA),cuda-kernels) ## an OCI archive each of operator and agent, with its SBOM, without a container runtime (CUDA=1: with GPUs; PROFILE=debug for tests, TAG)
ifeq ($(PROFILE),debug)
	@$(STAGE) build cargo build --workspace $(SIMULATED)
else
	@$(if $(CUDA),STOWAGE_CUDA_KERNELS=$(KERNELS)) $(STAGE) 'release build' cargo build --release --locked --package stowage-operator --package stowage-agent $(WITH_CUDA)
endif
	@for program in stowage-operator stowage-agent; do \
		$(STAGE) $$program scripts/image.py $$program $(TARGET)/$(PROFILE)/$$program $(TARGET)/images/$(PROFILE) $(if $(TAG),--tag $(TAG)) \
			$(if $(filter debug,$(PROFILE)),$(SIMULATED),$(WITH_CUDA)); \
	done

.PHONY: clean
clean: ## removes what was built; the cache stays
	@cargo clean
	@echo 'kept: $(CACHE)'
