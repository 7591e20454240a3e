"""docs/migration.md: other libraries' lines fit what is installed of them, and ours run."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.unit.test_documents import SETTING, blocks_of

pytestmark = [pytest.mark.interop, pytest.mark.rest]
PAGE = (Path(__file__).parents[2] / "docs/migration.md").read_text()
SECTIONS = dict(re.findall(r"^## From (\S+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
LIBRARIES = {
    "SAELens": ("sae_lens", "sae-lens"),
    "sparsify": ("sparsify", "eai-sparsify"),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning"),
    "wandb.watch": ("wandb", "wandb"),
}


def theirs(title):
    return PYTHON.findall(SECTIONS[title])[0]


def imported(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, exc_type=ImportError)


def names_of(tree):
    """What each imported name is."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            found |= {alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def called(node, names):
    """The callable that a call names; None where it is the reader's own or a result of another call."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = names.get(node.value.id)
        return getattr(owner, node.attr) if owner is not None else None
    return None


def signature_of(function):
    import wandb

    if function is wandb.watch:  # a stand-in until wandb.init() was called
        return inspect.signature(wandb.Run.watch.__get__(object()))
    return inspect.signature(function)


@pytest.mark.parametrize("title", LIBRARIES)
def test_their_lines_fit_the_installed_library(title):
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    module, distribution = LIBRARIES[title]
    imported(module)
    written = re.search(rf"{title.partition('.')[0]} (\d+\.\d+)", PAGE)[1]
    assert version(distribution).startswith(f"{written}."), "the page names another version"
    tree = ast.parse(theirs(title))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = names_of(tree)
    checked = 0
    for node in ast.walk(tree):
        function = called(node.func, names) if isinstance(node, ast.Call) else None
        if function is not None:
            given = {keyword.arg: None for keyword in node.keywords}
            signature_of(function).bind(*node.args, **given)
            checked += 1
    assert checked >= 2


def test_the_trainers_of_dictionary_learning_take_these_settings():
    imported("dictionary_learning")
    before = theirs("dictionary_learning").partition("buffer = ")[0]
    settings = re.search(
        r"^common = .*^trainers = .*?$", theirs("dictionary_learning"), re.M | re.S
    )[0]
    scope = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(before + settings, "dictionary_learning", "exec"), scope)
    for trainer in scope["trainers"]:
        made = trainer.pop("trainer")
        inspect.signature(made).bind(**trainer)


def test_their_configurations_are_accepted(tmp_path, monkeypatch):
    """What is only a configuration is made as it stands."""
    monkeypatch.chdir(tmp_path)
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    for title in ("SAELens", "sparsify"):
        imported(LIBRARIES[title][0])
        lines = theirs(title).partition("config = ")
        body = lines[0] + lines[1] + lines[2].partition("\n)\n")[0] + "\n)\n"
        scope = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(body, title, "exec"), scope)
        assert "k=32" in repr(scope["config"])


def test_our_lines_run(tmp_path):
    ours = [block.text for block in blocks_of(PAGE, "migration") if block.mark == "runs"]
    assert len(ours) == 2
    after = 'assert gradients.shape[1] == 16 and len(gradients) > 0\nprint("all ran")\n'
    (tmp_path / "ours.py").write_text("\n".join([SETTING, *ours, after]))
    done = subprocess.run(
        [sys.executable, "ours.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "all ran" in done.stdout
    first = min((tmp_path / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    assert sorted(path.name for path in (first / "sae").iterdir()) == ["layers.5", "layers.6"]
