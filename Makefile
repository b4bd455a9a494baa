.PHONY: setup lint type test

setup:
	python -m pip install -e '.[test]'
	pre-commit install

lint:
	ruff check .
	ruff format --check .

type:
	pyright

test:
	pytest
