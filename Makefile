# make demo: the whole main job on samples/, in a virtual environment of its own.
# make test: style, types and the test suite, in the same environment; make test-slow: its slow rest.
# make bench-gpu: speed on this machine's GPU, beside PyTorch, ONNX Runtime and MONAI.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready

# On a busy machine, OpenMP threads that spin while they wait take three times as long.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow test-gpu bench-gpu clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@echo "Installing PyTorch, ONNX Runtime and TensorRT-RTX into $(VENV): some minutes, about 6 GB."
	@# Setuptools warns at length about any editable installation; shown only if it fails.
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train,cpu,rtx,large,report,dev]" \
		2> $(VENV)/install.log || { cat $(VENV)/install.log; exit 1; }
	touch $(READY)

demo: $(READY)
	rm -rf demo
	mkdir demo
	cd demo && $(BIN)/fcn-deploy train ../samples -o runs/demo --head fcn8s --weights none \
		--epochs 28 --crop 160x224 --batch-size 4 --schedule poly --val-every 7 --workers 0 \
		--scale 0.8,1.25 --stretch 1.1
	cd demo && $(BIN)/fcn-deploy export
	cd demo && $(BIN)/fcn-deploy verify --batches 1
	cd demo && $(BIN)/fcn-deploy build-engine --fp16
	cd demo && $(BIN)/fcn-deploy segment ../samples/val/images -o segmented --save mask,overlay
	cd demo && $(BIN)/fcn-deploy evaluate --contact-sheet contact-sheet.png
	cd demo && $(BIN)/fcn-deploy report
	@echo
	@echo "Open demo/contact-sheet.png: image, prediction and ground truth of scenes it never saw,"
	@echo "and demo/runs/demo/report.html: all there is to know about the network, on one page."

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# A file stays with one process, as do its fixtures; more processes would each train the toy network.
	$(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# What takes minutes and rarely breaks alone: the other networks as engines, more ways to start ranks.
test-slow: $(READY)
	$(BIN)/pytest -m slow

test-gpu: $(READY)
	$(BIN)/pytest -m gpu

bench-gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py --work build/bench-gpu

clean:
	rm -rf demo $(VENV)
