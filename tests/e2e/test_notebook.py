"""docs/examples/observe.ipynb: committed without outputs, runs from top to bottom, and plots."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "observe.ipynb"
PATIENCE_S = 240
nbformat = pytest.importorskip("nbformat")


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_compiles_and_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        source = re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)
        compile(source, f"{NOTEBOOK.name}:{cell.id}", "exec")


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.soak("about 15 s on a quiet machine")
@pytest.mark.filterwarnings("default")
def test_it_runs_without_a_screen_and_plots_inline(notebook, tmp_path, monkeypatch):
    """The kernel's `__main__` has no file: workers must not need one."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    client = nbclient.NotebookClient(
        notebook,
        timeout=PATIENCE_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = {
        cell.id: [output.get("data", {}) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    images = {
        cell: [d["image/png"] for d in found if "image/png" in d] for cell, found in outputs.items()
    }
    assert [len(found) for found in images.values() if found] == [1, 1, 1]
    assert all(len(image) > 5000 for found in images.values() for image in found)
    said = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    packets = re.search(r"([\d,]+) steps, ([\d,]+) packets", said)
    assert packets is not None, said
    assert int(packets[2].replace(",", "")) > 10
    (run,) = tmp_path.glob("asys-notebook-*/*/summary.json")
    assert (run.parent / "sae" / "1" / "latest" / "cfg.json").exists()
    assert "Warning" not in said
