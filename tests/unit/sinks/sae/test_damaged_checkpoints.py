"""Checkpoints that were damaged between two lives of a trainer: it goes on from the newest that is whole,
or begins anew and says so, trains on finite numbers, and touches nothing outside its run."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file, save_file

from asys_bench.sae.checkpoint.checkpoint_store import MANIFEST_FILE, seal

FILES = (
    "cfg.json",
    "sae_weights.safetensors",
    "trainer_state.json",
    "trainer_state.safetensors",
    MANIFEST_FILE,
)
STATE, TENSORS = "trainer_state.json", "trainer_state.safetensors"
CASES = int(os.environ.get("ASYS_FUZZ_CASES", "600")) if os.environ.get("ASYS_FUZZ") == "1" else 16
GREW = (73, 410)
"""Numbers at the limit of what is accepted, which grew past it when training went on from them."""
SMALL = {"checkpoint_keep": 3, "min_buffer_fill_ratio": 0.1}
HOOK = "layer.0"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not in pytest's own folder: every pytest that starts closes that to other users."""
    with TemporaryDirectory(prefix="asys-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with TemporaryDirectory(prefix="asys-test-") as folder:
        yield Path(folder) / "sae"


@pytest.fixture
def stored(rig, template, monkeypatch) -> Path:
    """A hook's folder with three whole checkpoints."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    if not template.exists():
        first = type(rig)(template.parent)
        worker = first.start(0, sae=SMALL)
        (training,) = trainings(worker, first)
        for seq in range(1, 7):
            worker.consume([rig.packet(rig.rows(seq), seq)])
            worker.idle()
            if seq % 2 == 0:
                training.save()
        first.page.close()
    shutil.copytree(template, rig.run_dir / "sae", symlinks=True)
    assert len(checkpoints(rig.run_dir / "sae" / HOOK)) == 3
    return rig.run_dir / "sae" / HOOK


def trainings(worker, rig):
    worker.consume([rig.packet(rig.rows(0), 0)])
    return worker._trainings.values()


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*"), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_").partition(".")[0])


# Damages of one checkpoint folder. `outside` holds a whole copy of it.


def flipped(folder: Path, outside: Path, draw: random.Random) -> None:
    path = folder / draw.choice(FILES[:4])
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(folder: Path, outside: Path, draw: random.Random) -> None:
    path = folder / draw.choice(FILES)
    os.truncate(path, draw.randrange(path.stat().st_size - 1))


def emptied(folder: Path, outside: Path, draw: random.Random) -> None:
    (folder / draw.choice(FILES)).write_bytes(b"")


def lost(folder: Path, outside: Path, draw: random.Random) -> None:
    (folder / draw.choice(FILES[:4])).unlink()


def linked_file(folder: Path, outside: Path, draw: random.Random) -> None:
    name = draw.choice(FILES)
    (folder / name).unlink()
    (folder / name).symlink_to(outside / name)


def fifo(folder: Path, outside: Path, draw: random.Random) -> None:
    name = draw.choice(FILES)
    (folder / name).unlink()
    os.mkfifo(folder / name)


def folder_for_a_file(folder: Path, outside: Path, draw: random.Random) -> None:
    name = draw.choice(FILES)
    (folder / name).unlink()
    (folder / name).mkdir()


def linked_folder(folder: Path, outside: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(outside)


def fifo_for_the_folder(folder: Path, outside: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


def file_for_the_folder(folder: Path, outside: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.write_text("step")


def bare(folder: Path, outside: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def huge_header(folder: Path, outside: Path, draw: random.Random) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[:8] = draw.choice((2**63, 2**40, 1 << 20, len(data))).to_bytes(8, "little")
    (folder / TENSORS).write_bytes(data)
    resealed(folder)


def huge_tensor(folder: Path, outside: Path, draw: random.Random) -> None:
    data = (folder / TENSORS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    entry["shape"] = draw.choice(([1 << 40], [1 << 31, 1 << 31], [-1]))
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    resealed(folder)


def of_another_hook(folder: Path, outside: Path, draw: random.Random) -> None:
    document = json.loads((folder / STATE).read_text())
    document["hook_name"] = "layer.1"
    (folder / STATE).write_text(json.dumps(document))
    resealed(folder)


def no_numbers(folder: Path, outside: Path, draw: random.Random) -> None:
    document = json.loads((folder / STATE).read_text())
    name = draw.choice(sorted(document["numbers"]))
    document["numbers"][name] = draw.choice((math.nan, math.inf, 10**400, "1", None, [1], True))
    (folder / STATE).write_text(json.dumps(document))
    resealed(folder)


def not_finite(folder: Path, outside: Path, draw: random.Random) -> None:
    with_tensors(folder, draw, lambda t: t.fill_(draw.choice((math.nan, math.inf))), floats=True)


UNUSABLE = (
    flipped, cut, emptied, lost, linked_file, fifo, folder_for_a_file, linked_folder, fifo_for_the_folder,
    file_for_the_folder, bare, huge_header, huge_tensor, of_another_hook, no_numbers, not_finite,
)  # fmt: skip


# Damages that checksums do not tell: used or not, training is finite.


def other_numbers(folder: Path, outside: Path, draw: random.Random) -> None:
    document = json.loads((folder / STATE).read_text())
    for name in draw.sample(sorted(document["numbers"]), 2):
        document["numbers"][name] = draw.choice((-1, 0, 1, 1e-300, 1e30, 1e300, -1e9, 10**18))
    (folder / STATE).write_text(json.dumps(document))
    resealed(folder)


def other_config(folder: Path, outside: Path, draw: random.Random) -> None:
    document = json.loads((folder / STATE).read_text())
    config = document["config"]
    config[draw.choice(sorted(config))] = draw.choice((None, 0, -1, 3, 1e9, "x", "std", [], True))
    document["d_in"] = draw.choice((document["d_in"], 4, 1 << 40))
    (folder / STATE).write_text(json.dumps(document))
    resealed(folder)


def other_values(folder: Path, outside: Path, draw: random.Random) -> None:
    values = (0.0, -1.0, 1e30, -1e30, 1e-40, 3e38)
    with_tensors(folder, draw, lambda t: t.fill_(draw.choice(values)), floats=True)


def other_integers(folder: Path, outside: Path, draw: random.Random) -> None:
    with_tensors(folder, draw, lambda t: t.fill_(draw.choice((0, 1, 7, 127))), floats=False)


def other_dtype(folder: Path, outside: Path, draw: random.Random) -> None:
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool,
             torch.float8_e4m3fn, torch.complex64)  # fmt: skip
    with_tensors(folder, draw, lambda t: t.to(draw.choice(kinds)))


def other_shape(folder: Path, outside: Path, draw: random.Random) -> None:
    def reshaped(tensor: torch.Tensor) -> torch.Tensor:
        shapes = ((-1,), (1, -1), (*tensor.shape, 1), tensor.shape[::-1])
        return tensor.reshape(draw.choice(shapes)) if draw.random() < 0.6 else tensor[:-1].clone()

    with_tensors(folder, draw, reshaped)


def fewer_tensors(folder: Path, outside: Path, draw: random.Random) -> None:
    tensors = load_file(folder / TENSORS)
    for name in draw.sample(sorted(tensors), 2):
        del tensors[name]
    save_file(tensors, folder / TENSORS)
    resealed(folder)


def unsealed(folder: Path, outside: Path, draw: random.Random) -> None:
    (folder / MANIFEST_FILE).unlink()
    flipped(folder, outside, draw)


def with_tensors(
    folder: Path,
    draw: random.Random,
    change: Callable[[torch.Tensor], torch.Tensor],
    floats: bool | None = None,
) -> None:
    """Change one to three tensors of the trainer's state."""
    tensors = load_file(folder / TENSORS)
    names = [n for n, t in tensors.items() if floats is None or t.is_floating_point() is floats]
    names = [name for name in names if tensors[name].numel()]
    for name in draw.sample(sorted(names), min(len(names), draw.randint(1, 3))):
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / TENSORS)
    resealed(folder)


def resealed(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    seal(folder)


UNSEEN = (
    other_numbers, other_config, other_values, other_integers, other_dtype, other_shape, fewer_tensors,
    unsealed,
)  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below, files with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def check_life(rig, incarnation: int, resumed_from: set[int] | None) -> None:
    """The next trainer starts, goes on from one of these steps (any: None), and trains."""
    worker = rig.start(incarnation, sae=SMALL, final_train_s=0.0)
    (training,) = trainings(worker, rig)
    steps = training.trainer.steps
    assert resumed_from is None or steps in resumed_from
    for seq in range(100 * incarnation, 100 * incarnation + 6):
        worker.consume([rig.packet(rig.rows(seq), seq)])
        worker.idle()
    worker.close()
    assert not training.rejected
    assert training.trainer.steps > (steps if resumed_from is not None else 0)
    assert all(bool(torch.isfinite(p).all()) for p in training.trainer.sae.parameters())
    assert math.isfinite(rig.figure("sae_loss", HOOK))
    assert math.isfinite(rig.figure("sae_fvu", HOOK))


@pytest.mark.parametrize("seed", sorted({*range(CASES), *GREW}))
def test_any_damage_leaves_a_trainer_that_trains(rig, stored, tmp_path, caplog, seed) -> None:
    draw = random.Random(seed)
    found = checkpoints(stored)
    outside = tmp_path / "outside"
    shutil.copytree(found[0], outside)
    before = tree(outside)
    struck = found if draw.random() < 0.4 else found[:1]
    kinds = UNUSABLE if draw.random() < 0.5 else UNSEEN
    for checkpoint in struck:
        draw.choice(kinds)(checkpoint, outside, draw)
    whole = [step_of(path) for path in found if path not in struck]
    wanted = {max(whole, default=0)} if kinds is UNUSABLE else None
    with caplog.at_level(logging.WARNING):
        check_life(rig, 1, wanted)
    assert tree(outside) == before
    said = [r.getMessage() for r in caplog.records if "starts anew" in r.getMessage()]
    assert len(said) == (1 if wanted == {0} else len(said)) <= 1
    check_life(rig, 2, {step_of((stored / "latest").readlink())})


# What lies where the checkpoints should


def outside_of(stored: Path, tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    shutil.copytree(stored, outside, symlinks=True)
    return outside


@pytest.mark.parametrize("place", ["hook", "sae"])
def test_a_folder_replaced_by_a_link_is_neither_read_nor_written(
    rig, stored, tmp_path, caplog, place
) -> None:
    outside = outside_of(stored if place == "hook" else stored.parent, tmp_path)
    before = tree(outside)
    replaced = stored if place == "hook" else stored.parent
    shutil.rmtree(replaced)
    replaced.symlink_to(outside)
    check_life(rig, 1, {0})
    assert tree(outside) == before
    assert rig.figure("sae_checkpoints", HOOK) == 0
    assert rig.figure("sae_checkpoint_failures", HOOK) >= 1
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [text.partition(": /")[0] for text in said] == [
        f"{HOOK}: no checkpoint can be used, training starts anew",
        f"{HOOK}: checkpoint not written, training goes on and the last one stays (further failures are "
        "only counted)",
    ]
    assert all("is a symbolic link, not a folder" in text for text in said)


def test_an_empty_outside_folder_gets_no_folder_of_a_hook(rig, tmp_path) -> None:
    (tmp_path / "outside").mkdir()
    (rig.run_dir / "sae").symlink_to(tmp_path / "outside")
    check_life(rig, 0, {0})
    assert os.listdir(tmp_path / "outside") == []


@pytest.mark.parametrize("kind", ["folder", "fifo", "link out"])
def test_what_is_called_latest_and_is_none_is_replaced(rig, stored, tmp_path, kind) -> None:
    outside = outside_of(stored, tmp_path)
    before = tree(outside)
    newest = checkpoints(stored)[0]
    (stored / "latest").unlink()
    if kind == "folder":
        shutil.copytree(newest, stored / "latest")
    elif kind == "fifo":
        os.mkfifo(stored / "latest")
    else:
        (stored / "latest").symlink_to(outside / checkpoints(outside)[-1].name)
    # A link's last name alone counts: what it names here is there.
    wanted = checkpoints(stored)[-1] if kind == "link out" else newest
    check_life(rig, 1, {step_of(wanted)})
    assert (stored / "latest").readlink().name in os.listdir(stored)
    assert tree(outside) == before
    assert rig.figure("sae_checkpoint_failures", HOOK) == 0
    assert len(checkpoints(stored)) == 3


def test_leftovers_of_any_kind_stop_no_checkpoint(rig, stored) -> None:
    (stored / ".tmp-latest").mkdir()
    os.mkfifo(stored / ".tmp-fifo")
    (stored / ".tmp-dead").mkdir()
    check_life(rig, 1, {step_of(checkpoints(stored)[0])})
    assert rig.figure("sae_checkpoint_failures", HOOK) == 0
    assert [name for name in os.listdir(stored) if name.startswith(".tmp")] == []


def test_after_a_new_beginning_as_many_checkpoints_are_kept_as_ever(rig, stored) -> None:
    for path in checkpoints(stored):
        aside = path.with_name(f"step_{step_of(path) + 10**6:09d}")
        path.rename(aside)
        (aside / STATE).write_bytes(b"")
    worker = rig.start(1, sae=SMALL, final_train_s=0.0)
    (training,) = trainings(worker, rig)
    assert training.trainer.steps == 0
    written = []
    for seq in range(100, 104):
        worker.consume([rig.packet(rig.rows(seq), seq)])
        worker.idle()
        training.save()
        written.insert(0, stored / (stored / "latest").readlink())
    assert checkpoints(stored) == written[:3]


@pytest.fixture
def unprivileged(tmp_path) -> Iterator[None]:
    """root reads whatever its mode is."""
    if os.geteuid() == 0:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("what", ["file", "checkpoint", "hook"])
def test_what_may_not_be_read_is_passed_over(rig, stored, unprivileged, caplog, what) -> None:
    found = checkpoints(stored)
    struck = {"file": found[0] / STATE, "checkpoint": found[0], "hook": stored}[what]
    struck.chmod(0)
    check_life(rig, 1, {0 if what == "hook" else step_of(found[1])})
    struck.chmod(0o700)
    if what == "hook":
        assert f"{HOOK}: no checkpoint can be used, training starts anew: {stored}" in caplog.text
        assert rig.figure("sae_checkpoint_failures", HOOK) >= 1


def test_a_checkpoint_of_the_same_hook_of_a_wider_model_begins_anew(rig, stored, caplog) -> None:
    worker = rig.start(1, sae=SMALL, final_train_s=0.0)
    for seq in range(4):
        worker.consume([rig.packet(rig.rows(seq, width=12), seq)])
        worker.idle()
    (training,) = worker._trainings.values()
    assert training.trainer.d_in == 12
    assert training.trainer.steps > 0
    assert not training.rejected
    assert "its rows were 8 wide, and these are 12" in caplog.text
    # Rows that change their width while it trains are refused as ever.
    worker.consume([rig.packet(rig.rows(9, width=8), 9)])
    assert training.rejected


def test_a_state_that_no_step_goes_on_from_begins_anew(rig, stored, caplog) -> None:
    for path in checkpoints(stored):
        tensors = load_file(path / TENSORS)
        for name in ("learner.sae.W_enc", "learner.sae.W_dec"):
            tensors[name].fill_(9e17)  # a product's square is past float32
        save_file(tensors, path / TENSORS)
        resealed(path)
    check_life(rig, 1, None)
    assert "it starts anew: no step from there is finite" in caplog.text
