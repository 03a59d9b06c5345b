# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: run test test-slow lint notebooks bench clean

# the environment, made once and again only when pyproject.toml changes
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	# peers to compare with; their own requirements (torchdyn, torchvision) are not needed
	$(BIN)/pip install --quiet --no-deps torchcfm==1.0.7 flow_matching==1.0.10
	$(BIN)/pip install --quiet --no-deps torchsde==0.2.6 trampoline==0.1.2
	touch $(READY)

# trains the default experiment and leaves a figure, metrics and a checkpoint in runs/quickstart
run: $(READY)
	$(BIN)/python train.py hydra.run.dir=runs/quickstart

test: $(READY)
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# executes each notebook's readable .py and writes the .ipynb beside it
notebooks: $(READY)
	cd notebooks && for f in *.py; do ../$(BIN)/jupytext --to ipynb --execute $$f; done

bench: $(READY)
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.matching
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.likelihood
	$(BIN)/python -m benchmarks.sliced time
	$(BIN)/python -m benchmarks.multiplicative step
	$(BIN)/python -m benchmarks.unet

clean:
	rm -rf .venv runs dist
