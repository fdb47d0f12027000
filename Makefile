# make demo    edit the example image with the built-in model, in an environment of its own without PyTorch
# make test    every test, in an environment of its own
# make check   style and types
# make format  what of the style can be mended, mended
# make test-oldest  the export's tests and an edit with the oldest versions that pyproject.toml allows
# make bench   the CPU benchmarks: benchmarks/REPORT.md and benchmarks/results/, about 15 minutes
# make clean   remove what the above made, environments included
#
# An environment is made once, and again when pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_BUNDLE ?= demo
DEMO_IMAGE ?= $(firstword $(wildcard freeprompt/examples/*.png))
DEMO_PROMPT ?= $(shell cat freeprompt/examples/prompt.txt 2>/dev/null)
# What suits the embedded model (benchmarks/embedded/README.md); the command's own defaults are the published method's.
DEMO_OPTIONS ?= --guidance 3 --replace-fraction 1
DEMO_OUTPUT := demo-output

PINNED := pyproject.toml constraints.txt
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-oldest check format bench clean
.DELETE_ON_ERROR:

demo: .venv-demo/installed
	mkdir -p $(DEMO_OUTPUT)
	@echo "Editing $(DEMO_IMAGE) by the prompt \"$(DEMO_PROMPT)\":"
	.venv-demo/bin/freeprompt edit "$(DEMO_IMAGE)" "$(DEMO_PROMPT)" --bundle "$(DEMO_BUNDLE)" $(DEMO_OPTIONS) \
		-o $(DEMO_OUTPUT)/edited.png --side-by-side $(DEMO_OUTPUT)/side-by-side.png

test: .venv/installed
	.venv/bin/python -m pytest -W error $(PYTEST_ARGS)

# What pyproject.toml claims to work with (constraints-oldest.txt): the parts of it that libraries can break.
OLDEST_TESTS := tests/export/test_export.py tests/export/test_hub.py tests/export/test_checkpoint_kinds.py tests/cli/commands/test_export.py
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -W error $(OLDEST_TESTS) $(PYTEST_ARGS)
	mkdir -p build/oldest
	.venv-oldest/bin/freeprompt edit "$(DEMO_IMAGE)" "$(DEMO_PROMPT)" $(DEMO_OPTIONS) -o build/oldest/edited.png

bench: .venv/installed
	.venv/bin/python -m benchmarks.cpu.run $(BENCH_ARGS)

check: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p freeprompt -p benchmarks -p tests

format: .venv/installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.venv-demo/installed: $(PINNED)
	rm -rf .venv-demo
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP_INSTALL) --editable .
	touch $@

.venv/installed: $(PINNED)
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev]'
	touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable '.[export]' pytest
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-oldest build $(DEMO_OUTPUT) .pytest_cache .ruff_cache .hypothesis *.egg-info
