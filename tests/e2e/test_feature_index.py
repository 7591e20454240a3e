"""A text model is observed over a bus: every feature's examples are of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.rundir.verify import State, verify_run
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling

pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
WORDS, CALLS, BATCH, LENGTH = 24, 40, 4, 30


class Text(torch.nn.Module):
    """The row of a token is its one-hot code."""

    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(WORDS, WORDS)
        self.mid = torch.nn.Identity()
        with torch.no_grad():
            self.emb.weight.copy_(torch.eye(WORDS))

    def forward(self, input_ids, attention_mask=None):
        return self.mid(self.emb(input_ids))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """(the run, host step -> ids and mask)."""
    folder = tmp_path_factory.mktemp("runs")
    sae = build_sae(SAEConfig(architecture="relu", d_sae=WORDS), WORDS)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(WORDS))
        sae.W_dec.copy_(torch.eye(WORDS))
    (folder / "known").mkdir()
    save_sae(folder / "known", sae, InputScaling.identity(WORDS), {"hook_name": "mid"})
    generator = torch.Generator().manual_seed(0)
    truth = {}
    observation = asys_bench.observe(
        model := Text(),
        hooks="mid",
        run={"dir": str(folder), "drain_timeout_s": 100},
        bus={"on_full": "block", "block_timeout_s": 50},
        sinks={
            "trainer": None,
            "archive": None,
            "index": {
                "kind": "feature_index",
                "options": {"saes": {"*": str(folder / "known")}, "cpu_share": 1.0},
            },
        },
        quiet=True,
    )
    with observation, torch.no_grad():
        for step in range(CALLS):
            ids = torch.randint(1, WORDS, (BATCH, LENGTH), generator=generator)
            mask = torch.ones_like(ids)
            for text in range(BATCH):
                mask[text, LENGTH - text * 3 :] = 0
            truth[step] = ids, mask
            model(ids, attention_mask=mask)
            observation.step()
    return observation.run_dir, truth


def test_every_example_is_of_its_token_in_its_own_sequence(seen):
    run_dir, truth = seen
    index = asys_bench.open_run(run_dir).features("mid")
    assert index.rows == sum(int(mask.sum()) for _, mask in truth.values())
    looked_at = 0
    for feature in range(1, WORDS):
        for kind in ("top", "random"):
            for one in index.examples(feature, kind):
                ids, mask = truth[one.host_step]
                sequences = [row[kept] for row, kept in zip(ids, mask.bool(), strict=True)]
                starts = np.cumsum([0, *map(len, sequences)])
                text = int(np.searchsorted(starts, one.row, side="right")) - 1
                at = one.row - int(starts[text])
                assert one.token_position == at
                begin = at - one.position
                whole = sequences[text][begin : begin + len(one.tokens)]
                assert one.tokens.tolist() == whole.tolist()
                assert begin == 0 or one.position == 20
                assert one.tokens[one.position] == feature
                assert np.array_equal(one.activations > 0, one.tokens == feature)
                looked_at += 1
    assert looked_at > 23 * 20
    ids = torch.cat([ids[mask.bool()] for ids, mask in truth.values()])
    wanted = np.bincount(ids.numpy(), minlength=WORDS) / len(ids)
    assert index.density_F == pytest.approx(wanted, rel=1e-5)


def test_every_file_is_known_to_verify(seen):
    findings = verify_run(seen[0]).findings
    assert [one for one in findings if one.state is not State.OK] == []
    assert any(one.kind == "index" for one in findings)
