# Everything runs in .venv, which the first command makes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready-

.PHONY: demo vllm test check prove bench fuzz clean

# embedded, vllm (after `make vllm`) or auto
ENGINE ?= embedded
demo: $(STAMP)run
	$(BIN)/stateset-agents demo --engine $(ENGINE)

# vLLM in an environment of its own, beside .venv
vllm: $(STAMP)run
	$(BIN)/stateset-agents policy install-vllm

# Several files at a time: make test JOBS=2
JOBS ?= 0
test: $(STAMP)dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

check: $(STAMP)dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks examples scripts
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_shape.py
	$(BIN)/python scripts/draw_layers.py --check
	$(BIN)/python tests/check_wheel.py

prove: $(STAMP)dev
	$(BIN)/python -m benchmarks.prove

bench: $(STAMP)dev
	$(BIN)/python benchmarks/world.py
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python -m benchmarks.traces
	$(BIN)/python -m benchmarks.rewards
	$(BIN)/python -m benchmarks.trainer
	$(BIN)/python -m benchmarks.serving --engine embedded
	if [ -f .venv-vllm/.ready ]; then $(BIN)/python -m benchmarks.serving --engine vllm; fi

$(STAMP)run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[trl,api]"
	touch $@

$(STAMP)dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# As many calls on the shop as asked for, other ones each time: make fuzz N=100000
N ?= 100000
fuzz: $(STAMP)dev
	STATESET_FUZZ_CALLS=$(N) $(BIN)/python -m pytest -s tests/tools/shop/test_fuzz.py

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info
