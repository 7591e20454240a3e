"""The reader of feature indices: whatever the files hold, it says what is wrong and raises nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from asys_bench.change.feature_index.files import IndexFiles
from asys_bench.change.feature_index.index import Index
from asys_bench.rundir.feature_index import FeatureIndex, indexed_hooks
from asys_bench.rundir.feature_index_layout import Sizes
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.verify import State, verify_run

HOOK = "policy/mlp"
ABOUT = {"sae": "sae/x/step_000000005", "sae_step": 5, "unix_ns": 1}


@pytest.fixture
def written(tmp_path):
    index = Index(Sizes(6, 1, True))
    index.rows = 9
    index.columns["fires"][2], index.columns["rows"][:] = 3, 9
    IndexFiles(tmp_path, HOOK, sync=False).write(index, ABOUT)
    (folder,) = (tmp_path / "feature_index").iterdir()
    return tmp_path, folder


def test_other_tools_open_the_columns(written):
    run_dir, folder = written
    columns = load_file(folder / "columns-1.safetensors")
    assert columns["fires"].tolist() == [0, 0, 3, 0, 0, 0]
    assert columns["tokens"].shape == (6, 10, 32)
    index = FeatureIndex.open(run_dir, HOOK)
    assert (index.hook, index.d_sae, index.rows, index.weights_step) == (HOOK, 6, 9, 5)
    assert index.density_F.tolist() == pytest.approx([0, 0, 1 / 3, 0, 0, 0])
    assert indexed_hooks(run_dir) == [HOOK]


def test_a_feature_that_never_fired_has_nothing(written):
    index = FeatureIndex.open(written[0], HOOK)
    assert index.examples(0) == index.examples(0, "random") == index.cofiring(0) == []
    assert [len(part) for part in index.histogram(0)] == [1, 0]
    assert [len(part) for part in index.density_over_time(0)] == [0, 0]
    tokens, activations = index.top_tokens()
    assert (tokens == -1).all()
    assert not activations.any()
    assert (index.random_tokens() == -1).all()
    with pytest.raises(IndexError, match="there are 6"):
        index.examples(6)
    with pytest.raises(ValueError, match="top or random"):
        index.examples(0, "best")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "asys.feature_index/2"},
        {"columns": "../../secret"},
        {"columns": "columns-9.safetensors"},
        {"columns": None},
        {"d_sae": 7},
        {"d_sae": 1 << 30},
        {"examples_per_bin": -1},
        {"text": "yes"},
        {"rows": "many"},
        {"windows": {"first": 0, "width": 0, "used": 3}},
        {"windows": {"first": 0, "width": 1, "used": 1 << 40}},
        {"windows": None},
    ],
    ids=str,
)
def test_a_document_that_no_sink_writes_is_refused(written, change):
    run_dir, folder = written
    document = json.loads((folder / "index.json").read_text()) | change
    (folder / "index.json").write_text(json.dumps(document))
    with pytest.raises(ReadingError, match=r"index\.json"):
        FeatureIndex.open(run_dir, HOOK)


@pytest.mark.parametrize("damage", ["short", "header", "no header", "link"])
def test_columns_that_are_damaged_are_refused(written, damage, tmp_path):
    run_dir, folder = written
    path = folder / "columns-1.safetensors"
    whole = path.read_bytes()
    if damage == "short":
        path.write_bytes(whole[:-10])
    elif damage == "header":
        path.write_bytes((1 << 60).to_bytes(8, "little") + whole[8:])
    elif damage == "no header":
        path.write_bytes(b"")
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReadingError, match=r"index\.json"):
        FeatureIndex.open(run_dir, HOOK)


def test_a_file_that_is_cut_under_its_reader_is_an_error(written):
    index = FeatureIndex.open(written[0], HOOK)
    path = written[1] / "columns-1.safetensors"
    with path.open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ReadingError, match="shorter than it was"):
        index.examples(5)


def test_numbers_that_no_sink_writes_raise_nothing(written):
    """Lengths, places, partners and levels beyond their tables."""
    run_dir = written[0]
    index = Index(Sizes(6, 1, True))
    draw = np.random.default_rng(0)
    for column in index.columns.values():
        raw = draw.integers(0, 256, column.nbytes, dtype=np.uint8)
        column.reshape(-1)[:] = raw.view(column.dtype)
    with np.errstate(all="ignore"):
        IndexFiles(run_dir, HOOK, sync=False).write(index, ABOUT)
        found = FeatureIndex.open(run_dir, HOOK)
        for feature in range(6):
            for kind in ("top", "random"):
                for example in found.examples(feature, kind):
                    assert example.tokens is None or example.position < len(example.tokens)
            found.top_tokens()
            found.histogram(feature)
            found.density_over_time(feature)
            assert all(0 <= other < 6 for other, *_ in found.cofiring(feature))


def test_verify_knows_the_files_and_finds_what_is_wrong(run):
    index = Index(Sizes(6, 1, False))
    index.rows = 4
    files = IndexFiles(run.path, "policy.mlp", sync=False)
    files.write(index, ABOUT)
    assert open_run(run.path).features("policy.mlp").rows == 4
    folder = run.path / "feature_index" / "policy.mlp"

    def states():
        return {
            found.path.rpartition("/")[2]: found.state
            for found in verify_run(run.path).findings
            if found.path.startswith("feature_index/")
        }

    assert states() == {"columns-1.safetensors": State.OK, "index.json": State.OK}
    (folder / "columns-2.safetensors").write_bytes(b"half")
    assert states()["columns-2.safetensors"] is State.LEFTOVER
    verify_run(run.path, repair=True)
    assert not (folder / "columns-2.safetensors").exists()
    data = bytearray((folder / "columns-1.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "columns-1.safetensors").write_bytes(data)
    assert states()["columns-1.safetensors"] is State.DAMAGED
