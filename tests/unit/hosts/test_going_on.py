"""A host that was saved, loaded and run on ends bit-equal to one that was not interrupted."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from asys_bench.hosts import ppo
from asys_bench.hosts.host_state import load_state, save_state
from asys_bench.hosts.text_corpus import TextBatch
from asys_bench.hosts.transformers import TransformersHost, TransformersOptions
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError


class Clock:
    """Counts; asks to stop once `until` steps have passed."""

    label_horizon = 0

    def __init__(self, until: int | None = None) -> None:
        self.host_step, self._until = 0, until

    @property
    def should_stop(self) -> bool:
        return self._until is not None and self.host_step >= self._until

    def step(self, n: int = 1) -> None:
        self.host_step += n

    def weights_updated(self) -> None: ...

    def report(self, name: str, value: float) -> None: ...

    def label(self, **labels: object) -> None: ...


def live(host, clock, folder: Path | None = None) -> None:
    """`host.run`, saved at its first whole point after it was asked to stop."""

    def whole_at(step: int) -> None:
        if folder is not None and clock.should_stop and not folder.exists():
            folder.mkdir()
            host.save(folder)

    host.whole_at, host.is_saved = whole_at, folder is not None
    host.run(clock)


def weights_of(host) -> dict[str, torch.Tensor]:
    model = host._model.policy if isinstance(host, ppo.PPOHostProcess) else host._model
    optimizer = model.optimizer if isinstance(host, ppo.PPOHostProcess) else host._optimizer
    moments = optimizer.state_dict()["state"]
    found = {f"{i}.{n}": v for i, entries in moments.items() for n, v in entries.items()}
    return {**model.state_dict(), **found, "rng": torch.get_rng_state()}


def same(ours, theirs) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def agent(**options):
    host = ppo.PPOHostProcess(
        ppo.PPOOptions(total_timesteps=256, n_envs=2, n_steps=16, batch_size=16, n_epochs=2, **options), 5
    )  # fmt: skip
    host.build()
    return host


@pytest.mark.parametrize("stop", [33, 130])
def test_ppo_goes_on_in_the_middle_of_its_episodes(tmp_path: Path, stop: int) -> None:
    straight = agent()
    live(straight, Clock())
    wanted, episodes = weights_of(straight), list(straight._model.ep_info_buffer)
    first = agent()
    live(first, Clock(stop), tmp_path / "saved")
    assert stop <= first._model.num_timesteps < 256
    random.random()
    np.random.rand()
    torch.rand(3)
    second = agent()
    step = second.load(tmp_path / "saved")
    assert step == first._model.num_timesteps == -(-stop // 32) * 32
    live(second, Clock())
    assert second._model.num_timesteps == 256
    assert same(weights_of(second), wanted)
    lengths = [(one["r"], one["l"]) for one in second._model.ep_info_buffer]
    assert lengths == [(one["r"], one["l"]) for one in episodes]


class Batches:
    """A corpus: `batches` begins at the first one each time, as `TextCorpus` does."""

    pad_id = 0

    def batches(self, batch_size: int, *, repeat: bool):
        draw = torch.Generator().manual_seed(3)
        for _ in range(12):
            ids_BT = torch.randint(1, 30, (batch_size, 8), generator=draw)
            yield TextBatch(ids_BT, torch.ones_like(ids_BT))


def language_host():
    """One that trains, with dropout, so that it draws from torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    options = TransformersOptions(task="train", batch_size=2, total_tokens=10_000)
    host = TransformersHost(options, 5)
    host._model, host._corpus = GPT2LMHeadModel(config).train(), Batches()
    host._optimizer = torch.optim.AdamW(host._model.parameters(), lr=1e-2)
    return host


@pytest.mark.rest
def test_a_language_model_goes_on_at_its_place_in_the_texts(tmp_path: Path) -> None:
    straight = language_host()
    live(straight, Clock())
    wanted = weights_of(straight)
    first = language_host()
    live(first, Clock(5), tmp_path / "saved")
    assert first._steps == 5
    torch.rand(7)
    second = language_host()
    assert second.load(tmp_path / "saved") == 5
    live(second, Clock())
    assert (second._steps, second._tokens) == (12, 12 * 2 * 8)
    assert same(weights_of(second), wanted)


def test_a_state_of_another_network_is_refused_with_what_differs(tmp_path: Path) -> None:
    host = agent()
    (tmp_path / "saved").mkdir()
    host._model._setup_learn(32)
    host.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="is of another model"):
        agent(policy="MlpPolicy", env_id="Acrobot-v1").load(tmp_path / "saved")
    document = json.loads((tmp_path / "saved" / "host.json").read_text())
    document["random"]["numpy"]["key"] = ["x"]
    (tmp_path / "saved" / "host.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="damaged"):
        agent().load(tmp_path / "saved")


def test_tied_weights_numbers_of_an_optimizer_and_all_generators_come_back(tmp_path: Path) -> None:
    def made():
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
        )
        model[1].weight = model[0].weight
        return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    model, optimizer = made()
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    save_state(tmp_path, {"steps": 7}, model, optimizer)
    draws = (torch.rand(1).item(), float(np.random.normal()), random.random())
    again, moments = made()
    assert load_state(tmp_path, again, moments) == {"steps": 7}
    assert (torch.rand(1).item(), float(np.random.normal()), random.random()) == draws
    assert torch.equal(again[0].weight, model[0].weight)
    assert again[0].weight is again[1].weight
    assert moments.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    (buffer,) = (one["momentum_buffer"] for one in moments.state_dict()["state"].values())
    assert torch.equal(buffer, optimizer.state_dict()["state"][0]["momentum_buffer"])
