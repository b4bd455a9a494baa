"""Every recipe in configs/ runs, and says at its top what to expect."""

import json
import re
from pathlib import Path

import pytest
import yaml

import lightning_fold as lf
from lightning_fold.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml"))

# The class of data module -> the folder that must be there.
FOLDERS = {
    "MNISTDataModule": "MNIST",
    "FashionMNISTDataModule": "FashionMNIST",
    "CIFAR10DataModule": "cifar-10-batches-py",
}

# Recipes for a GPU take minutes on a CPU even when shortened.
HEAVY = [path for path in RECIPES if "GPU" in (REPOSITORY / path).read_text()]

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=str)
run_every_recipe = pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=pytest.mark.slow) if path in HEAVY else path for path in RECIPES],
    ids=str,
)


def test_there_are_recipes():
    assert {"digits_mlp.yaml", "mnist_mlp.yaml"} <= {path.name for path in RECIPES}


@run_every_recipe
def test_recipe_compresses(recipes_in, recipe, request):
    config = yaml.safe_load(recipe.read_text())
    if config["data"]["class_path"].rpartition(".")[2] in FOLDERS:
        folder = request.getfixturevalue("real_data") / FOLDERS[config["data"]["class_path"].rpartition(".")[2]]
        if not folder.is_dir():
            pytest.skip(f"no {folder}: this recipe's data is not here")
    if config["model"]["init_args"]["network"].endswith("CausalTransformer"):
        pytest.importorskip("transformers", reason="this recipe needs the extra transformers")
    main(["fit", "--config", str(recipe)])
    summary = json.loads(Path("runs/version_0/compression.json").read_text())
    squeezes = [c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("SqueezeRelease")]
    cycles = sum(callback["init_args"]["cycles"] for callback in squeezes)
    assert [m["method"] for m in summary["methods"]].count("squeeze-release") == cycles
    small = lf.load("runs/version_0/compressed.pt")
    assert lf.count_parameters(small) == summary["compressed"]["parameters"] < summary["dense"]["parameters"]


@every_recipe
def test_recipe_says_command_hardware_time_and_result(recipe):
    lines = (REPOSITORY / recipe).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    header = " ".join(lines[:first])
    assert f"lightning-fold fit --config {recipe}" in header
    assert re.search(r"\b(CPU|core|GPU|H100|H200)", header), "no hardware"
    assert re.search(r"\d+ ?(s|seconds?|min|minutes?|h|hours?)\b", header), "no time"
    assert re.search(r"\d(\.\d+)? ?%", header) and re.search(r"\d ?x\b", header), "no accuracy or no factor"


@every_recipe
def test_recipe_names_no_folder_of_one_machine(recipe):
    data = yaml.safe_load((REPOSITORY / recipe).read_text())["data"]
    arguments = data.get("init_args", {})
    if data["class_path"].rpartition(".")[2] in FOLDERS:
        assert (arguments["data_dir"], arguments["download"]) == ("data", True)
    assert not re.search(r"(?<![\w.])/\w+/", (REPOSITORY / recipe).read_text())
