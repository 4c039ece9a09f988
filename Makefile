# `make demo` and `make test` each set up what they need; Python >= 3.11 is all that has to be there.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
# An NVIDIA GPU wants the CUDA build of torch and the Triton kernels; elsewhere the pinned CPU build is taken.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
INSTALL := -c constraints.txt -e .[dev]
else
INSTALL := -e .[dev]
endif

# Bytecode is written even where the environment forbids it. Hundreds of processes of the tests import torch,
# and compiling it anew takes each of them two seconds.
unexport PYTHONDONTWRITEBYTECODE

# Test processes side by side; each computes on one thread.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What `make check` leaves to `make test`: other processes, training, interpreted kernels, many draws, many figures.
SLOW := $(addprefix tests/, benchmarks checks cli engine examples loggers/test_wandb.py model/kernels train \
	model/test_depth.py model/test_fused.py model/test_ssd_mamba.py report/test_browser.py report/test_browser_lists.py report/test_figures.py \
	report/test_lengths.py report/test_report_comparison.py report/test_report_folder.py report/test_report_page.py \
	report/test_report_shapes.py report/test_reports_index.py report/test_serve.py run/test_crash.py \
	search/test_forecast.py \
	search/test_loop.py search/test_plan_data.py search/test_sampling.py search/stages/test_basin.py \
	search/stages/test_elr_ewd.py search/stages/test_joint.py search/stages/test_micro.py search/stages/test_micro_passes.py \
	search/stages/test_surface.py \
	test_response_surface.py test_stats.py test_stats_landscapes.py transfer/test_load.py transfer/test_loops.py)

.PHONY: setup check test lint demo clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mup-tune needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile $(INSTALL)
	@touch $@

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) $(addprefix --ignore=,$(SLOW))

test: lint
	$(PYTEST)

demo: setup
	$(BIN)/mup-tune sweep quickstart --run $(DEMO)/run
	test -f $(DEMO)/falcon-h1-0.5b/config.json || $(BIN)/mup-tune transfer $(DEMO)/run --from best --target falcon-h1-0.5b --out $(DEMO)/falcon-h1-0.5b
	$(BIN)/mup-tune report $(DEMO)/run
	@echo "Open $(DEMO)/run/report/index.html; train from $(DEMO)/falcon-h1-0.5b/README.md"

clean:
	rm -rf .venv $(DEMO)
