# `make demo` and `make test` do everything from a fresh clone: the environment is made once, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install demo test quick fuzz folders model lint format types house wheel clean

install: $(STAMP)

# torch comes first and alone, so that what depends on it cannot draw in another build of it.
$(STAMP): constraints.txt setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[cpu,demo,beir,parquet,dev]'
	touch $@

demo: install
	$(BIN)/funnel demo

# Threads that wait do not spin: where the machine has other work too, spinning makes the tests ten times slower.
test: export OMP_WAIT_POLICY = PASSIVE
# pytest ends with 5 where it found no tests; said in words, since make turns every failure into 2.
test: install
	@$(BIN)/python -m pytest $(ARGS) || { status=$$?; \
	  if [ $$status -eq 5 ]; then echo 'make test: FAILED, no tests were collected' >&2; fi; \
	  exit $$status; }

# Without the tests that are marked slow.
quick: export ARGS := -m "not slow" $(ARGS)
quick: test

# Every target for so many seconds under atheris; stops at the first error that is not documented.
SECONDS_PER_TARGET ?= 10
FUZZED := manifest jsonl csv calibration-json calibration-arrays adaptor-json adaptor-tensors
fuzz: install
	$(PIP) install --quiet --constraint constraints.txt --editable '.[fuzz]'
	@for target in $(FUZZED); do \
	  $(BIN)/python -m tests.fuzz $$target $(SECONDS_PER_TARGET) || exit 1; done

# Altered folders with right checksums, by workers under a limit on memory; says what came out that should not.
TRIALS ?= 20000
folders: install
	$(BIN)/python -m tests.fuzz.folders $(TRIALS) $(SEED)

# Random sequences of changes and searches against a plain Python model; prints its seed where they differ.
SECONDS ?= 60
SEED ?= 0
model: install
	$(BIN)/python -m tests.model $(SECONDS) $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# As on every system; a cache for each, since they would empty one another's. Tests and benchmarks fork: not on Windows.
types: install
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 funnel indexes

# The plan of the house, measured: its rooms and the contracts of .importlinter, and how far a search runs.
house: install
	$(BIN)/python -m tests.house

# Wheel and sdist, checked; the wheel installed into an empty environment by the README's commands, and used there.
wheel: install
	$(BIN)/python -m tests.wheel

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis demo-index demo-report
	find funnel indexes benchmarks tests -type d -name __pycache__ -exec rm -rf {} +
