# Every target makes what it needs. PYTHON is the interpreter that environments are made from.
PYTHON ?= python3

.PHONY: demo test test-newest check

demo: .venv/installed                 # pretrain and fine-tune a small MosaicBERT on this machine's own documentation, on the CPU
	.venv/bin/mosaicbert pretrain recipes/quickstart.yaml
	.venv/bin/mosaicbert finetune recipes/finetune/finetune-quickstart.yaml

test: .venv/installed                 # the CPU test suite
	.venv/bin/python -m pytest

test-newest: .venv-newest/installed   # the same suite with the newest torch and transformers that install
	.venv-newest/bin/python -m pytest

check: .venv/installed                # style, types and tests
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright --pythonpath .venv/bin/python && .venv/bin/python -m pytest

.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv-newest/installed: pyproject.toml setup.py overrides-newest.txt
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet uv
	.venv-newest/bin/uv pip install --quiet --python .venv-newest/bin/python --override overrides-newest.txt --editable '.[dev]'
	touch $@
