"""Checkpoint folders: atomic, versioned, and typed errors for damaged files."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asys_bench.sae import (
    ARCHITECTURES,
    CheckpointError,
    CheckpointStore,
    SAEConfig,
    SAETrainer,
    SparseAutoencoder,
    build_sae,
    load_sae,
    save_sae,
)
from asys_bench.sae.architectures.scaling import (
    InputScaling,
    JointScaling,
    PairScaling,
    RowScaling,
)
from asys_bench.sae.checkpoint.checkpoint_store import check_seal, latest_checkpoint


def _scaling(sae: SparseAutoencoder, scale: float) -> InputScaling:
    return InputScaling(scale, torch.linspace(-0.5, 0.5, sae.d_in))


def _save(folder: Path, architecture: str = "topk") -> Path:
    sae = build_sae(
        SAEConfig.model_validate({"architecture": architecture, "d_sae": 24, "k": 3}), 6
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_sae(folder, sae, _scaling(sae, 2.5), {"model_name": "m", "hook_name": "h"})
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_sae_comes_back_with_its_scale_folded_in(tmp_path: Path, architecture: str) -> None:
    split = {"hook_widths": (2, 4)} if architecture == "crosscoder" else {}
    config = SAEConfig.model_validate({"architecture": architecture, "d_sae": 24, "k": 3, **split})
    transcodes = architecture == "skip_transcoder"
    sae = build_sae(config, 6, 5 if transcodes else None)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name != "W_dec":
                tensor.add_(0.3 * torch.rand(tensor.shape))
    scaling: RowScaling = _scaling(sae, 2.5)
    if transcodes:
        scaling = PairScaling(scaling, InputScaling(0.4, torch.linspace(1, 2, 5)))
    if split:
        scaling = JointScaling(
            (InputScaling(2.5, torch.ones(2)), InputScaling(0.4, torch.linspace(1, 2, 4)))
        )
    save_sae(tmp_path, sae, scaling, {"hook_name": "pi"})
    loaded, metadata = load_sae(tmp_path)
    x_BD = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    rows_BD = torch.cat([x_BD, torch.zeros(10, 5)], 1) if transcodes else x_BD
    input_BD, _ = sae.split(scaling.apply(rows_BD))
    torch.testing.assert_close(loaded.encode(x_BD), sae.encode(input_BD))
    torch.testing.assert_close(loaded(x_BD), scaling.undo(sae(input_BD)))
    assert metadata["hook_name"] == "pi"
    assert metadata["training_architecture"] == architecture
    assert loaded.saelens_name == sae.saelens_name


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _edit(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        cfg = json.loads((folder / "cfg.json").read_text()) | changes
        kept = {key: value for key, value in cfg.items() if value is not None}
        (folder / "cfg.json").write_text(json.dumps(kept))

    return damage


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (_truncate("cfg.json"), "cfg.json", "cannot be read as JSON"),
        (_truncate("sae_weights.safetensors"), "sae_weights", "cannot be read as safetensors"),
        (lambda f: (f / "cfg.json").unlink(), "cfg.json", "cannot be read"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "sae_weights", "cannot be read"),
        (lambda f: (f / "cfg.json").write_text("[]"), "cfg.json", "holds a list"),
        (lambda f: (f / "cfg.json").write_bytes(b"\xff\xfe"), "cfg.json", "cannot be read"),
        (_edit(architecture="temporal"), "cfg.json", "valid: asys_crosscoder, gated, jumprelu"),
        (_edit(d_in=7), "cfg.json", "d_in is 7, the weights have 6"),
        (_edit(d_in="6"), "cfg.json", "d_in is '6'"),
        (_edit(d_sae=10**12), "cfg.json", "d_sae is 1000000000000, the weights have 24"),
        (_edit(metadata=5), "cfg.json", "metadata is 5"),
        (_edit(k=None), "cfg.json", "'k' is missing"),
        (_edit(k=-1), "cfg.json", "greater than or equal"),
        (_edit(normalize_activations="layer_norm"), "cfg.json", "layer_norm"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(
    tmp_path: Path, damage: Callable[[Path], None], file: str, reason: str
) -> None:
    damage(_save(tmp_path))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_sae(tmp_path)
    assert file in caught.value.path.name


def test_non_finite_weights_or_metadata_are_not_written(tmp_path: Path) -> None:
    sae = build_sae(SAEConfig(d_sae=24, k=3), 6)
    with pytest.raises(CheckpointError, match="Out of range float"):
        save_sae(tmp_path, sae, _scaling(sae, 1.0), {"fvu": math.nan})
    with pytest.raises(CheckpointError, match="not finite"):
        save_sae(tmp_path, sae, _scaling(sae, 1e-45), {})
    with torch.no_grad():
        sae.W_enc[0, 0] = math.inf
    with pytest.raises(CheckpointError, match="W_enc"):
        save_sae(tmp_path, sae, _scaling(sae, 1.0), {})


def test_a_writer_killed_while_it_removes_an_old_checkpoint_leaves_whole_ones_only(
    tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def fill(folder):
        for name in ("a", "b"):
            (folder / name).write_text(name)

    def half(path, **_):
        (Path(path) / "a").unlink()
        raise Killed

    store = CheckpointStore(tmp_path, keep_last=1)
    store.write(1, fill)
    with monkeypatch.context() as patch:
        patch.setattr("asys_bench.sae.checkpoint.checkpoint_store.shutil.rmtree", half)
        with pytest.raises(Killed):
            store.write(2, fill)
    assert store.checkpoints() == [tmp_path / "step_000000002"]
    assert sorted(os.listdir(store.latest())) == ["a", "b", "manifest.json"]
    store.write(3, fill)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_000000003"]


def test_the_store_keeps_the_last_ones_and_latest_points_at_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 5, 5, 20):
        written = store.write(step, lambda folder: _save(folder) and None)
        assert store.latest() == written
    assert [path.name for path in store.checkpoints()] == ["step_000000020", "step_000000005.1"]
    assert (tmp_path / "latest").readlink() == Path("step_000000020")
    load_sae(tmp_path / "latest")


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    good = store.write(1, lambda folder: _save(folder) and None)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise CheckpointError(folder, "no")

    with pytest.raises(CheckpointError, match="no"):
        store.write(2, fail)
    assert store.latest() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", good.name]


def test_a_killed_writers_leftovers_are_invisible_and_cleaned_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / ".tmp-dead").mkdir()
    (tmp_path / ".tmp-latest").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step_old").mkdir()
    assert store.latest() is None
    store.write(3, lambda folder: _save(folder) and None)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "step_old", "step_000000003", "latest"}


def test_latest_is_found_without_its_symlink(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    written = store.write(3, lambda folder: _save(folder) and None)
    (tmp_path / "latest").unlink()
    assert store.latest() == written
    (tmp_path / "latest").symlink_to("step_000000099")
    assert store.latest() == written


def test_an_unwritable_place_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not written"):
        CheckpointStore(tmp_path / "file").write(1, lambda folder: None)


def _trained(folder: Path) -> SAETrainer:
    trainer = SAETrainer(SAEConfig(d_sae=24, k=3, batch_rows=32, buffer_rows=64))
    trainer.ingest(torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), (0, 0, 0))
    trainer.train(max_steps=2, wait_for_fill=False)
    trainer.save(folder)
    return trainer


@pytest.mark.parametrize("file", ["trainer_state.json", "trainer_state.safetensors"])
def test_resume_falls_back_to_an_older_checkpoint_when_the_newest_is_damaged(
    tmp_path: Path, file: str
) -> None:
    trainer = _trained(tmp_path)
    older = CheckpointStore(tmp_path).latest()
    trainer.train(max_steps=1)
    newest = trainer.save(tmp_path)
    assert newest is not None
    _truncate(file)(newest)
    again = SAETrainer(trainer.config)
    assert again.load(tmp_path) == older
    assert older is not None
    _truncate(file)(older)
    with pytest.raises(CheckpointError, match=file):
        SAETrainer(trainer.config).load(tmp_path)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    _trained(tmp_path)
    folder = CheckpointStore(tmp_path).latest()
    assert folder is not None
    assert sorted(path.name for path in folder.iterdir()) == [
        "cfg.json",
        "lives.safetensors",
        "manifest.json",
        "sae_weights.safetensors",
        "trainer_state.json",
        "trainer_state.safetensors",
    ]


def test_every_nth_checkpoint_is_kept_besides_the_last_ones_whoever_wrote_those_before(
    tmp_path: Path,
) -> None:
    for step in range(10, 120, 10):  # a restart before each
        CheckpointStore(tmp_path, keep_last=2, keep_every=4).write(
            step, lambda folder: (folder / "a").write_text("x") and None
        )
    names = [
        int(path.name.removeprefix("step_")) for path in CheckpointStore(tmp_path).checkpoints()
    ]
    assert names == [110, 100, 80, 40]
    assert check_seal(tmp_path / "step_000000040")
    CheckpointStore(tmp_path, keep_last=1).write(
        120, lambda folder: (folder / "a").write_text("x") and None
    )
    assert [path.name for path in CheckpointStore(tmp_path).checkpoints()] == ["step_000000120"], (
        "without it only the last ones"
    )


def test_a_history_that_begins_late_counts_what_is_there(tmp_path: Path) -> None:
    def write(step: int, keep_every: int | None) -> None:
        store = CheckpointStore(tmp_path, keep_last=1, keep_every=keep_every)
        store.write(step, lambda folder: (folder / "a").write_text("x") and None)

    for step in (1, 2, 3):
        write(step, None)
    for step in range(4, 10):
        write(step, 3)
    steps = [
        int(path.name.removeprefix("step_")) for path in CheckpointStore(tmp_path).checkpoints()
    ]
    assert steps == [9, 8, 5], (
        "3 is number 1, for it was the only one; 5 and 8 are the third and sixth"
    )


def test_the_newest_checkpoint_of_a_run_is_found_by_real_folders_alone(tmp_path: Path) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    assert latest_checkpoint(run_dir, "mid") is None
    for folder in (run_dir / "sae" / "mid", outside):
        for step in (5, 11):
            CheckpointStore(folder).write(step, lambda path: (path / "cfg.json").write_text("{}"))
    (run_dir / "sae" / "linked").symlink_to(outside)
    latest = latest_checkpoint(run_dir, "mid")
    assert latest == run_dir / "sae" / "mid" / "step_000000011"
    with pytest.raises(OSError, match="symbolic link"):
        latest_checkpoint(run_dir, "linked")
