"""Rows of heads in an archive: their labels, tokens and places are those of the tokens that they are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.token_rows import token_rows

STEPS, BATCH, LENGTH = 5, 3, 6


class Words(torch.nn.Module):
    """Each token's row is its id, ten, a hundred and a thousand times: two heads of two numbers."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 1)
        self.mid = torch.nn.Linear(1, 4, bias=False)
        with torch.no_grad():
            self.embed.weight.copy_(torch.arange(50.0)[:, None])
            self.mid.weight.copy_(torch.tensor([[1.0], [10.0], [100.0], [1000.0]]))

    def forward(self, input_ids, attention_mask=None):
        return self.mid(self.embed(input_ids))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    ids_BT = torch.randint(1, 50, (BATCH, LENGTH), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 2:] = 0
    return ids_BT, mask_BT


def observed(tmp_path, keep):
    model = Words().eval()
    settings = {
        "run": {"dir": str(tmp_path), "drain_timeout_s": 60},
        "bus": {"on_full": "block", "block_timeout_s": 50},
    }
    rule = {"match": "mid", "preprocess": [{"heads": {"count": 2, "keep": keep}}]}
    with (
        torch.no_grad(),
        asys_bench.observe(model, settings, hooks=[rule], sae=False, archive={}) as run,
    ):
        for step in range(STEPS):
            ids_BT, mask_BT = batch(step)
            model(ids_BT, mask_BT)
            run.label(loss=ids_BT.float(), sequence=torch.arange(BATCH))
            run.step()
    return asys_bench.open_run(run.run_dir)


@pytest.mark.rest
@pytest.mark.parametrize("keep", [None, [1]], ids=["all", "one"])
def test_labels_tokens_and_places_are_the_tokens_own(tmp_path, keep):
    run = observed(tmp_path, keep)
    each = 2 if keep is None else 1
    wanted = [ids[mask.bool()] for ids, mask in map(batch, range(STEPS))]
    columns = ("values", "row", "grid", "host_step", "label.loss", "label.sequence")
    rows = run.archive.numpy("mid", columns)
    assert len(rows["values"]) == each * sum(map(len, wanted))
    heads = np.array([[1, 10], [100, 1000]] if keep is None else [[100, 1000]])
    for step, ids_N in enumerate(wanted):
        mine = rows["host_step"] == step
        order = np.argsort(rows["row"][mine])
        expected = (ids_N.numpy()[:, None, None] * heads).reshape(-1, 2)
        assert np.array_equal(rows["values"][mine][order], expected)
        assert rows["label.loss"][mine][order].tolist() == np.repeat(ids_N.numpy(), each).tolist()
    parts = list(token_rows(run.archive, "mid"))
    found = np.concatenate([part.token_id_N for part in parts])
    scale = np.tile(heads[:, 0], len(found) // each)
    values = np.concatenate([part.values_ND[:, 0] for part in parts])
    assert np.array_equal(values, found * scale)
    if keep is None:
        with pytest.raises(ReadingError, match="2 for each token"):
            run.archive.torch(["mid", "tokens"])
        places = run.archive.places("mid")
        assert set(places[:, 1].tolist()) == {0, 1}
    else:
        joined = run.archive.torch(["mid", "tokens"], batch_rows=64)
        for part in joined:
            assert torch.equal(part["mid"][:, 0], 100.0 * part["tokens"][:, 0])
