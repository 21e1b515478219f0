# hbn: every command starts from a fresh clone and sets up what it needs.
# `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Suites share build folders, and ninja fills the processors.
.NOTPARALLEL:

venv := .venv
python := $(venv)/bin/python
cmake := $(venv)/bin/cmake
ninja := $(venv)/bin/ninja
ctest := $(venv)/bin/ctest
cpack := $(venv)/bin/cpack
jobs ?= $(shell nproc)

# A line of progress for each file, with its share of the whole and the seconds so far.
export NINJA_STATUS := [%p %es] 

site = $(shell $(python) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
halide_cmake = $(site)/halide/lib64/cmake
configure = $(cmake) --preset $(1) --log-level=WARNING -Wno-deprecated -DCMAKE_MAKE_PROGRAM=$(abspath $(ninja)) \
	-DHalide_DIR=$(halide_cmake)/Halide -DHalideHelpers_DIR=$(halide_cmake)/HalideHelpers \
	-DHBN_WERROR=$(if $(CI)$(WERROR),ON,OFF)
# For who works on hbn, and in CI: WERROR=1 takes compilers' warnings for errors.
WERROR ?=
build = $(ninja) -C build/$(1) -j $(jobs) | $(python) cmake/progress.py
run_tests = $(ctest) --test-dir build/$(1) -j $(jobs) --output-on-failure --no-tests=error

test_packages := libgtest-dev g++-aarch64-linux-gnu qemu-user pocl-opencl-icd ocl-icd-libopencl1 \
	g++-arm-linux-gnueabihf gcc-arm-none-eabi libstdc++-arm-none-eabi-newlib qemu-system-arm \
	clang lld llvm libclang-rt-14-dev wasi-libc libclang-rt-14-dev-wasm32 pkg-config dpkg-dev \
	chromium-headless-shell
docs_packages := doxygen

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Packages are pinned in requirements.txt; --no-deps where only a package's files are wanted, not its code.
pip := $(python) -m pip install --quiet --disable-pip-version-check --constraint requirements.txt

$(venv)/.installed: requirements.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hbn needs Python 3.11 or newer, python3 is " + sys.version)'
	@echo "Setting up .venv"
	@python3 -m venv $(venv)
	@$(pip) halide cmake ninja
	@touch $@

# For its data: photographs and handwritten digits.
$(venv)/.installed-scikit-learn: $(venv)/.installed
	@echo "Fetching photographs and digits"
	@$(pip) --no-deps scikit-learn
	@touch $@

$(venv)/.installed-demo: $(venv)/.installed-scikit-learn
	@echo "Fetching file format libraries"
	@$(pip) --no-deps mlx-cpu cmeel-zlib
	@touch $@

# What cannot be had is left out of the comparison, and tried again next time. PyTorch comes without what it
# depends on, since only its C++ library is used: where pip would fetch the CUDA build, which needs gigabytes of
# that, point pip at PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL).
$(venv)/.installed-bench: $(venv)/.installed
	@echo "Fetching PyTorch, oneDNN and matplotlib: 1 GB"
	@$(pip) matplotlib tqdm
	@all=1; \
	$(pip) --no-deps torch || { all=; echo "PyTorch could not be installed"; }; \
	$(pip) onednn onednn-devel intel-opencl-rt || { all=; echo "oneDNN could not be installed"; }; \
	if [ "$$all" ]; then touch $@; fi

$(venv)/.installed-compare: $(venv)/.installed
	@$(pip) tqdm
	@touch $@

$(venv)/.installed-tune: $(venv)/.installed
	@echo "Fetching Optuna"
	@$(pip) optuna tqdm matplotlib jinja2 onnx scikit-learn
	@touch $@

$(venv)/.installed-wasm: $(venv)/.installed
	@$(pip) wasmtime
	@touch $@

# Where pip would fetch the CUDA build of PyTorch, point it at PyTorch's index of CPU builds (PIP_EXTRA_INDEX_URL).
$(venv)/.installed-python: $(venv)/.installed
	@echo "Fetching PyTorch, JAX, ONNX and pytest: 1 GB"
	@$(pip) torch jax ml_dtypes onnx scikit-learn pytest expecttest hypothesis mypy pdoc tqdm
	@touch $@

$(venv)/.installed-coverage: $(venv)/.installed
	@$(pip) gcovr
	@touch $@

$(venv)/.installed-format: $(venv)/.installed
	@$(pip) clang-format ruff
	@touch $@

demo_options = -DHBN_BUILD_DEMO=ON -DMLX_DIR=$(site)/mlx/share/cmake/MLX -DZLIB_DIR=$(site)/cmeel.prefix/lib64/cmake/zlib
# Its kernels are those of float32, and of another dtype that ARGS names.
space := $() $()
demo_dtypes = $(subst $(space),;,$(strip float32 $(filter float64 bfloat16 float16,$(subst =, ,$(ARGS)))))

.PHONY: demo
demo: $(venv)/.installed-demo ## Build what it needs and normalize real photographs; INPUT=x.npy WEIGHTS=w.npz for yours
	@$(call configure,x86) $(demo_options) '-DHBN_DEMO_DTYPES=$(demo_dtypes)'
	@$(ninja) -C build/x86 -j $(jobs) demo | $(python) cmake/progress.py
	@$(python) examples/demo/cut_photographs.py build/demo/photographs.npy
	@build/x86/examples/demo/demo --input '$(or $(INPUT),build/demo/photographs.npy)' \
	    --picture build/demo/before_and_after.png $(if $(WEIGHTS),--weights '$(WEIGHTS)') $(ARGS)

.PHONY: build
build: $(venv)/.installed ## Build the library and the examples for this CPU: build/x86/libhbn.a
	@$(call configure,x86)
	@$(call build,x86)

build/digits.csv: $(venv)/.installed-scikit-learn
	@mkdir -p build
	@$(python) -c 'import gzip, sys; sys.stdout.buffer.write(gzip.open(sys.argv[1]).read())' \
	    $(site)/sklearn/datasets/data/digits.csv.gz > $@.part
	@mv $@.part $@

.PHONY: train-digits
train-digits: build build/digits.csv ## Train a small network, without PyTorch, to read handwritten digits
	@build/x86/examples/train_digits build/digits.csv

PREFIX ?= /usr/local
.PHONY: install
install: build ## Install library, headers and hbn-info for CMake and pkg-config: PREFIX=/usr/local DESTDIR=
	@DESTDIR='$(DESTDIR)' $(cmake) --install build/x86 --prefix '$(PREFIX)'

# Without dpkg-dev the .deb lacks the versions of libraries that hbn-info asks for.
.PHONY: package
package: build ## The same as packages: build/package/libhbn-dev_*.deb and hbn-*.tar.gz
	@umask 022; $(cpack) --config build/x86/CPackConfig.cmake -B build/package | sed -n 's/^CPack: - package: //p'
	@rm -rf build/package/_CPack_Packages

# The wheel with the kernels that `build` made; `pip install .` makes the same with its own.
wheel = build/python/hbn-*.whl
.PHONY: wheel
wheel: build ## The Python package as a wheel: build/python/hbn-*.whl
	@rm -rf build/python
	@$(python) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/python \
	    -C cmake.define.HBN_KERNELS_FROM=$(abspath build/x86) .
	@ls $(wheel)

# The program that emits kernels, which packs are made with.
generators := build/x86/hbn_generators
emit = --generators $(generators) --halide-include $(site)/halide/include
.PHONY: generators
generators: $(venv)/.installed
	@$(call configure,x86)
	@$(ninja) -C build/x86 -j $(jobs) hbn_generators | $(python) cmake/progress.py

# What is tuned: this machine, unless the command line names a TARGET.
tune_target := $(if $(filter command,$(origin TARGET)),$(TARGET),host)
tune_preset := $(patsubst host,x86,$(tune_target))
TARGET ?= baremetal-arm64
OPS ?= forward_inference
DTYPE ?= float32
LAYOUT ?= nchw
THREADS ?= none
.PHONY: pack
pack: generators ## A library for a board: TARGET=baremetal-arm64 OPS=forward_inference DTYPE= LAYOUT= SHAPE=1,64,56,56 PARAMETERS=
	@$(python) cmake/pack.py $(emit) --target $(TARGET) --ops $(OPS) --dtype $(DTYPE) --layout $(LAYOUT) \
	    --shape '$(SHAPE)' --threads $(THREADS) --parameters '$(PARAMETERS)' --out build/pack/$(TARGET)

# What it measures with: worker and kernels are those of `build`, or of the preset for another target.
.PHONY: tune-worker
tune-worker: $(if $(filter x86,$(tune_preset)),build,generators)
	@$(call configure,$(tune_preset)) -DHBN_BUILD_BENCH=ON
	@$(ninja) -C build/$(tune_preset) -j $(jobs) tune_worker | $(python) cmake/progress.py

.PHONY: tune
tune: OPS := forward_training,forward_inference,backward
tune: $(venv)/.installed-tune tune-worker ## Find faster schedules for your shapes: SHAPES=32x256x56x56 OPS= DTYPES= LAYOUTS= TARGET=host ARGS=--help
	@$(python) bench/hbn-tune tune $(if $(SHAPES),--shapes $(SHAPES)) --ops '$(OPS)' $(if $(DTYPES),--dtypes '$(DTYPES)') \
	    $(if $(LAYOUTS),--layouts '$(LAYOUTS)') --target '$(tune_target)' $(ARGS)

# Emulators and cross compilers are Debian's, and asked for where they are missing.
FOR ?= size
.PHONY: tune-pack
tune-pack: generators $(venv)/.installed-tune $(if $(filter wasm,$(TARGET)),$(venv)/.installed-wasm) ## Find a pack's PARAMETERS: TARGET= OPS= DTYPE= LAYOUT= SHAPE= FOR=size or cycles CPU= ARGS=--help
	@$(python) bench/hbn-tune pack --target $(TARGET) --ops '$(OPS)' --dtype $(DTYPE) --layout $(LAYOUT) --shape '$(SHAPE)' \
	    --threads $(THREADS) --for $(FOR) $(if $(CPU),--cpu $(CPU)) $(ARGS)

.PHONY: bench
bench: $(venv)/.installed-bench ## Compare with the memory bound, PyTorch and oneDNN; QUICK=1 for a look, ARGS=--help
	@$(call configure,x86) -DHBN_BUILD_BENCH=ON -DTORCH_DIR=$(site)/torch -DONEDNN_DIR=$(abspath $(venv))
	@$(ninja) -C build/x86 -j $(jobs) contestants | $(python) cmake/progress.py
	@$(python) bench/bench.py $(if $(QUICK),--quick) $(ARGS)

.PHONY: compare
compare: $(venv)/.installed-compare ## Time this build against another one: BASE=its build folder, ARGS=--help
	@[ -n '$(BASE)' ] || { echo "make compare needs BASE=<build folder>, where the other build's libhbn.a is"; exit 1; }
	@$(call configure,x86) -DHBN_BUILD_BENCH=ON
	@$(ninja) -C build/x86 -j $(jobs) hbn compare_worker | $(python) cmake/progress.py
	@$(python) bench/compare.py --base '$(BASE)' $(ARGS)

.PHONY: bench-python
bench-python: install-wheel ## What Python adds to a call, beside C++ and beside PyTorch's module
	@$(call configure,x86) -DHBN_BUILD_BENCH=ON
	@$(ninja) -C build/x86 -j $(jobs) contestant_hbn | $(python) cmake/progress.py
	@$(python) bench/python_calls.py $(ARGS)

.PHONY: bench-embedded
bench-embedded: test-packages generators ## What packs cost: bytes on boards, cycles an element on ARM beside plain C++
	@command -v llvm-mca >/dev/null || { echo "This needs llvm-mca: sudo apt-get install llvm"; exit 1; }
	@$(python) bench/embedded.py $(emit)

.PHONY: test
test: test-packages tidy test-x86 test-examples test-install test-python test-tune test-asan test-tsan test-portable test-arm test-pack test-opencl test-cuda docs ## Run everything: all suites below
	@echo "make test: all suites passed"

# $(1): what needs them, $(2): Debian packages
define install_packages
	@missing=$$(for p in $(2); do dpkg -s $$p >/dev/null 2>&1 || printf '%s ' $$p; done); \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then \
	        echo "Installing $$missing"; \
	        apt-get update -qq; \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	    else \
	        echo "The $(1) some Debian packages. Please run:"; \
	        echo "  sudo apt-get install $$missing"; \
	        exit 1; \
	    fi; \
	fi
endef

.PHONY: test-packages
test-packages: ## Install the Debian packages that tests need (as root), or say which
	$(call install_packages,tests need,$(test_packages))

# $(1): preset, $(2): further CMake options, $(3): further ctest options
define suite
	@echo "== $(1)"
	@$(call configure,$(1)) -DHBN_BUILD_TESTS=ON $(2)
	@$(call build,$(1))
	@$(call run_tests,$(1)) $(3)
endef

.PHONY: test-x86
test-x86: $(venv)/.installed test-packages ## The whole suite, on AVX-512, AVX2 and SSE4.1
	$(call suite,x86,,-LE giant)

.PHONY: test-examples
test-examples: build build/digits.csv $(venv)/.installed-demo test-packages ## The examples do what they say; the demo with files that don't
	@echo "== examples"
	@build/x86/examples/quickstart
	@build/x86/examples/quickstart_c
	@build/x86/examples/train_digits build/digits.csv
	@$(call configure,x86) -DHBN_BUILD_TESTS=ON $(demo_options)
	@$(ninja) -C build/x86 -j $(jobs) test_demo | $(python) cmake/progress.py
	@$(call run_tests,x86) -L demo

.PHONY: install-wheel
install-wheel: wheel $(venv)/.installed-python
	@$(pip) --no-deps --force-reinstall $(wheel)

.PHONY: test-python
test-python: install-wheel ## The Python package on NumPy, JAX and ONNX, PyTorch's modules by hbn, and bench's report
	@echo "== python"
	@$(python) -m pytest -q tests/python tests/bench
	@$(python) -m mypy -p hbn
	@$(python) examples/pytorch_conversion.py

.PHONY: test-tune
test-tune: test-packages install-wheel $(venv)/.installed-tune tune-worker ## The tuner: its search by a model of a machine, killed and resumed; a small real tuning, and one of a pack
	@echo "== tune"
	@$(python) -m pytest -q --skip-none tests/tune

.PHONY: test-asan
test-asan: build test-packages $(venv)/.installed-demo ## The same under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call suite,asan,$(demo_options),-LE giant)

# What they find is kept and comes first in the next run; a case that fails is written to build/fuzz/.
FUZZ_SECONDS ?= 300
.PHONY: fuzz
fuzz: build test-packages ## The property tests of test-x86 by libFuzzer, each for FUZZ_SECONDS=300
	@echo "== fuzz"
	@$(call configure,fuzz) -DHBN_BUILD_TESTS=ON
	@$(ninja) -C build/fuzz -j $(jobs) hbn_fuzzers | $(python) cmake/progress.py
	@for fuzzer in build/fuzz/fuzzers/*; do \
	    echo "$$fuzzer: $(FUZZ_SECONDS) s"; \
	    mkdir -p build/fuzz/corpus/$${fuzzer##*/}; \
	    $$fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -len_control=0 -verbosity=0 \
	        -print_final_stats=1 -artifact_prefix=build/fuzz/ build/fuzz/corpus/$${fuzzer##*/}; \
	done

# Programs add to what earlier ones counted, so each run begins at none. Packs are built apart: test-pack has their tests.
.PHONY: coverage
coverage: build test-packages $(venv)/.installed-coverage ## Which lines of runtime/ the tests run: build/coverage/index.html; fails below 95 %
	@mkdir -p build/coverage
	@find build/coverage -name '*.gcda' -delete
	$(call suite,coverage,,-LE giant)
	@$(venv)/bin/gcovr --root . --object-directory build/coverage --filter runtime/ --merge-lines -j $(jobs) \
	    --gcov-suspicious-hits-threshold 0 \
	    --txt --html-details build/coverage/index.html --html-single-page --fail-under-line 95
	@echo "build/coverage/index.html"

.PHONY: test-tsan
test-tsan: build test-packages ## Everything by clang; wrapper and conformance under its ThreadSanitizer
	$(call suite,tsan,,-L 'conformance|wrapper')

.PHONY: test-portable
test-portable: build test-packages ## Conformance of the kernels for any processor
	$(call suite,portable,,-L conformance)

# What the wrapper's own tests see on 64-bit ARM is what they see on x86-64; qemu takes minutes for them.
.PHONY: test-arm
test-arm: build test-packages ## The same on 64-bit and 32-bit ARM, under qemu-aarch64 and qemu-arm
	$(call suite,arm64,,-LE wrapper)
	$(call suite,armv7)

.PHONY: test-pack
test-pack: test-packages $(venv)/.installed-wasm generators ## Packs: on this CPU, on ARM under qemu, in WebAssembly, and as firmware of whole boards under qemu
	@echo "== packs"
	@$(python) tests/pack/run.py $(emit) --folder build/pack/test $(ARGS)

.PHONY: test-install
test-install: test-packages package ## Programs in C and C++ with an installed hbn: CMake, pkg-config, .deb, .tar.gz; add_subdirectory
	@echo "== install"
	@$(python) tests/install/run.py --build build/x86 --packages build/package --folder build/install-test $(ARGS)

.PHONY: test-opencl
test-opencl: build test-packages ## Conformance of the OpenCL kernels, on PoCL
	$(call suite,opencl,,-L conformance)

.PHONY: test-cuda
test-cuda: build test-packages ## Emit PTX, and assemble it where there is a ptxas
	$(call suite,cuda,,-L ptx)

.PHONY: test-giant
test-giant: $(venv)/.installed test-packages ## Tensors of more than 2^31 elements (needs 10 GB of memory)
	$(call suite,x86,,-L giant)

.PHONY: docs
docs: docs-cpp docs-python ## The reference, in build/docs/; fails where something public is undocumented

.PHONY: docs-cpp
docs-cpp:
	$(call install_packages,reference needs,$(docs_packages))
	@rm -rf build/docs/cpp
	@mkdir -p build/docs/cpp
	@doxygen cmake/Doxyfile
	@python3 cmake/check_reference.py build/docs/cpp/xml
	@echo "build/docs/cpp/html/index.html"

.PHONY: docs-python
docs-python: install-wheel
	@$(python) -m pytest -q tests/python/test_arrays.py -k documented
	@rm -rf build/docs/python
	@$(python) -W error -m pdoc --docformat google --no-show-source --output-directory build/docs/python \
	    hbn hbn.torch hbn.onnx
	@echo "build/docs/python/index.html"

sources = $(shell git ls-files '*.h' '*.cpp' '*.c')
python_sources := python tests/python tests/bench tests/tune bench/tune bench/hbn-tune examples/pytorch_conversion.py

# Without the kernels, which are Halide's; with the flags that matter to what it looks for.
.PHONY: tidy
tidy: build ## Look for mistakes in runtime/ by clang-tidy
	$(call install_packages,checks need,clang-tidy)
	@echo "== clang-tidy"
	@git ls-files 'runtime/*.cpp' | xargs -P $(jobs) -I {} clang-tidy --quiet {} -- -std=c++17 -Iinclude -I. -Ibuild/x86 \
	    -isystem $(site)/halide/include 2>/dev/null || { echo "clang-tidy found the above"; exit 1; }

.PHONY: format
format: $(venv)/.installed-format ## Format the sources in place
	@$(venv)/bin/clang-format -i $(sources)
	@$(venv)/bin/ruff format --quiet $(python_sources)

.PHONY: format-check
format-check: $(venv)/.installed-format ## Fail where `make format` would change something
	@$(venv)/bin/clang-format --dry-run -Werror $(sources)
	@$(venv)/bin/ruff format --quiet --check $(python_sources)
	@$(venv)/bin/ruff check --quiet $(python_sources)

.PHONY: clean
clean: ## Remove build/ and .venv/
	@rm -rf build $(venv)
