# Everything starts here: `make demo` and `make test` need Python 3.11 and g++, nothing else.
#
# VENV=    (empty) uses the packages of $(PYTHON) as they are: for machines whose torch must not be touched.
# INDEX=   where torch and torchvision come from, which must fit each other. PyPI's builds for Linux bring CUDA; for the small CPU builds:
#          make test INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(or $(shell command -v python3.11 2>/dev/null),python3)
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
INDEX ?=
FROM_INDEX := $(addprefix --index-url ,$(INDEX))

SOURCES := setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FORMATTED := $(filter %.cpp %.h %.cu %.cuh,$(SOURCES))

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
READY :=
EVERYTHING :=
# nothing is installed: scripts find the library here
export PYTHONPATH := $(CURDIR)$(addprefix :,$(PYTHONPATH))
# what this Python lacks is skipped, with the reason
export VTKERNELS_BUILD ?= auto
else
PY := $(VENV)/bin/python
# what training needs; and what tests, benchmarks and documentation need beside it
READY := $(VENV)/.ready
EVERYTHING := $(VENV)/.everything
export VTKERNELS_BUILD ?= cpu
endif
# nvcc, where installers leave it off the path
export PATH := $(PATH):$(or $(CUDA_HOME),/usr/local/cuda)/bin
NATIVE := build/native/.built
# a first look need not wait for kernels of other processors than this one; everything else builds all
NATIVE_HERE := $(if $(wildcard $(NATIVE)),$(NATIVE),build/native/.built-here)
CPU_KNOWS := $(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null)
ISAS_HERE := portable $(or $(filter avx512_bf16,$(CPU_KNOWS)),$(if $(filter avx512vl,$(CPU_KNOWS)),avx512),$(filter avx2,$(CPU_KNOWS)))
OTHER_TRITON := build/triton-3.6/.ready
# tests run in as many processes as there are cores, each with one thread
WORKERS ?= $(shell nproc)
PARALLEL := $(if $(READY),-n $(WORKERS) --dist worksteal)

.PHONY: demo demo-attention test bench claims check docs gpu-check gpu-bench wheel clean

demo: $(NATIVE_HERE)
	$(PY) examples/demo.py

# the attention kernels alone, with a plot
demo-attention: $(NATIVE) $(EVERYTHING)
	$(PY) benchmarks/attn.py --demo

test: $(NATIVE) $(EVERYTHING) $(if $(READY),$(OTHER_TRITON))
	$(PY) -m pytest $(PARALLEL) $(PYTEST_ARGS)

# BENCH=all, or one of them: attn, class_attn, talking_heads, sam, jsd, drloc, linear, augmix, train_step, trainer
BENCH ?= all
BENCHMARK = benchmarks/$(BENCH).py
bench: $(NATIVE) $(EVERYTHING)
	$(PY) $(BENCHMARK) $(BENCH_ARGS)

check: $(NATIVE) $(EVERYTHING)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(READY),$(VENV)/bin/)clang-format --dry-run --Werror $(FORMATTED)
	$(PY) -m pytest -q $(PARALLEL) -m "not slow" $(PYTEST_ARGS)

# the documentation as a site, in build/site
docs: $(EVERYTHING)
	$(PY) -m mkdocs build --strict

# what the sources claim, tested by training; docs/claims.md has the cost of each. Stopped, the same command goes on where it was.
# CLAIMS="sam drloc" picks some, CLAIM_ARGS="--seeds 10", "--minutes 30" or "--scale full --path FOLDER" are passed on
CLAIMS ?= distillation data_hunger drloc sam augmix ablation depth noisy_student frozen_features
claims: $(NATIVE)
	$(foreach claim,$(CLAIMS),$(PY) -m benchmarks.claims.$(claim) $(CLAIM_ARGS) &&) $(PY) -m benchmarks.claims.table

gpu-check: $(NATIVE) $(EVERYTHING)
	$(PY) benchmarks/gpu_check.py $(GPU_ARGS)

gpu-bench: $(NATIVE) $(EVERYTHING)
	$(PY) benchmarks/gpu_models.py $(GPU_ARGS)

# dist/: the sources, a wheel without native code for every platform, and one for this platform with what can be built here
WHEEL = $(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .
wheel: $(NATIVE)
	rm -rf dist build/lib* build/bdist*
	$(PY) setup.py -q sdist
	VTKERNELS_BUILD=none $(WHEEL)
	rm -rf build/lib* build/bdist*
	VTKERNELS_BUILD=auto $(WHEEL)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip "setuptools>=77" wheel ninja pybind11
	$(PY) -m pip install -q $(TORCH) $(FROM_INDEX)
	VTKERNELS_BUILD=none $(PY) -m pip install -q --no-build-isolation -e ".[models,data,train]"
	@touch $@

# torchvision asks for the very torch it was built against, which may differ by a local version: hence --no-deps
$(EVERYTHING): $(READY)
	$(PY) -m pip install -q --no-deps $(TORCHVISION) $(FROM_INDEX)
	$(PY) -m pip install -q --no-deps timm
	VTKERNELS_BUILD=none $(PY) -m pip install -q --no-build-isolation -e ".[test,bench,dev,docs]"
	$(PY) -m pip install -q triton || echo "triton could not be installed: its backend and tests are skipped"
	$(PY) -m pip install -q lightning transformers accelerate || echo "the trainers could not be installed: their examples' tests are skipped"
	@touch $@

# Triton's other supported line, beside the installed one; without it a few tests are skipped
$(OTHER_TRITON): $(EVERYTHING)
	@mkdir -p $(@D)
	@$(PY) -m pip install -q --upgrade --no-deps --target $(@D) "triton==3.6.*" && touch $@ \
		|| echo "triton 3.6 could not be installed: the tests of Triton's other supported line are skipped"

build/native/.built-here: export VTKERNELS_ISAS := $(ISAS_HERE)
$(sort $(NATIVE) $(NATIVE_HERE)): $(READY) $(SOURCES)
	$(if $(READY),,-)$(PY) setup.py -q build_ext --inplace
	@mkdir -p $(@D) && touch $@

clean:
	rm -rf build dist *.egg-info vtkernels/*.so benchmarks/out
