# make quickstart   train, evaluate and look at a panoptic model on generated scenes
# make test         lint, types and the default test suite
# make test-all     the same with the slow tests
# make docs         build the documentation into runs/site
# make interop      an environment with FiftyOne and Label Studio's SDK, for the tests that need them
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART := runs/quickstart

# Threads that spin while they wait starve each other on shared cores.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test test-all lint docs interop clean

$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e .
	touch $@

# panopticapi-lite is the test oracle only; its own numpy pin must not reach the environment.
$(VENV)/.dev: $(VENV)/.base
	$(RUN) -m pip install --quiet -e ".[dev]"
	$(RUN) -m pip install --quiet --no-deps panopticapi-lite
	touch $@

# FiftyOne and Label Studio's SDK pin numpy and OpenCV: an environment of their own, ours behind it.
interop: $(VENV)/interop/.done

$(VENV)/interop/.done: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/interop
	$(VENV)/interop/bin/python -m pip install --quiet fiftyone label-studio-sdk
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$($(VENV)/interop/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
	touch $@

quickstart: $(VENV)/.base
	$(RUN) tools/make_shapes.py $(QUICKSTART)/data --train 1000 --val 100 --size 192
	$(RUN) tools/train.py --task panoptic --config configs/quickstart.yaml \
	  --data $(QUICKSTART)/data --out $(QUICKSTART) --overwrite
	$(RUN) tools/predict.py $(QUICKSTART)/data/val2017 --limit 12 --scale 2 \
	  --checkpoint $(QUICKSTART)/model.safetensors --out $(QUICKSTART)/pictures
	$(RUN) tools/compare.py --checkpoint $(QUICKSTART)/model.safetensors \
	  --data $(QUICKSTART)/data --out $(QUICKSTART)/comparison.jpg

$(VENV)/.docs: $(VENV)/.base
	$(RUN) -m pip install --quiet -e ".[docs]"
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --config-file tools/docs/mkdocs.yml

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-all: lint interop
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
