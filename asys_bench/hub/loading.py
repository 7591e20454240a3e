"""Code that opens an SAE of a pushed folder: with SAELens, sparsify, or torch alone.

Tests run these blocks as they stand in the card, and compare what they compute with ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from asys_bench.hub.facts import HubSAE

_ENCODE = {
    "standard": "    f = torch.relu((x - w['b_dec']) @ w['W_enc'] + w['b_enc'])",
    "topk": """\
    pre = torch.relu((x - w['b_dec']) @ w['W_enc'] + w['b_enc'])
    top = pre.topk(cfg['k'], dim=-1)
    f = torch.zeros_like(pre).scatter(-1, top.indices, top.values)""",
    "jumprelu": """\
    pre = (x - w['b_dec']) @ w['W_enc'] + w['b_enc']
    f = torch.relu(pre) * (pre > w['threshold'])""",
    "gated": """\
    pre = (x - w['b_dec']) @ w['W_enc']
    size = torch.relu(pre * w['r_mag'].exp() + w['b_mag'])
    f = size * (pre + w['b_gate'] > 0)""",
    "transcoder": "    f = torch.relu(x @ w['W_enc'] + w['b_enc'])",
    "jumprelu_transcoder": """\
    pre = x @ w['W_enc'] + w['b_enc']
    f = torch.relu(pre) * (pre > w['threshold'])""",
}
_ENCODE["skip_transcoder"] = _ENCODE["transcoder"]
_ENCODE["jumprelu_skip_transcoder"] = _ENCODE["jumprelu_transcoder"]
"""SAELens's architecture -> the body of `encode`; see `sae.exchange.weights`."""

SAELENS_HUB = """\
from sae_lens import SAE

sae = SAE.from_pretrained("{repo}", "{folder}")
"""
SAELENS = """\
from sae_lens import SAE

sae = SAE.load_from_disk("{folder}")
"""
SPARSIFY = """\
import json
from pathlib import Path
from safetensors.torch import load_file
from sparsify import SparseCoder, SparseCoderConfig

cfg = json.loads(Path("{folder}/cfg.json").read_text())
w = load_file("{folder}/sae_weights.safetensors")
config = SparseCoderConfig(num_latents=cfg["d_sae"], k={k}, normalize_decoder=False)
coder = SparseCoder(cfg["d_in"], config, dtype=w["W_dec"].dtype)
coder.load_state_dict({{
    "encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"],
}})
"""
_OUTLYING = """

def outlying(x):  # rows that were not trained on: they have no features, and stay as they are
    return x.norm(dim=-1, keepdim=True) > cfg["metadata"]["outlier_norm"]
"""
TORCH = """\
import json
from pathlib import Path
import torch
from safetensors.torch import load_file

cfg = json.loads(Path("{folder}/cfg.json").read_text())
w = load_file("{folder}/sae_weights.safetensors")
{outlying}
def encode(x):  # float32[N, d_in] -> float32[N, d_sae]
{encode}{mask}
    return f

def reconstruct(x):  # -> float32[N, {width}]
    y = encode(x) @ w['W_dec'] + w['b_dec']{skip}{outliers}
    return y
"""


def blocks_of(sae: HubSAE, repo: str) -> Iterator[tuple[str, str]]:
    """(What opens it, the code) for one SAE of the repository."""
    weights = sae.weights
    yield "SAELens, from the hub", SAELENS_HUB.format(repo=repo, folder=sae.folder)
    yield "SAELens, in a downloaded folder", SAELENS.format(folder=sae.folder)
    if weights.architecture in ("topk", "standard"):
        k = 'cfg["k"]' if weights.architecture == "topk" else 'cfg["d_sae"]'
        yield "sparsify, in a downloaded folder", SPARSIFY.format(folder=sae.folder, k=k)
    skip = "\n    y = y + x @ w['W_skip'].T" if "W_skip" in weights.tensors else ""
    mask = outliers = ""
    if weights.outlier_norm is not None:
        mask = "\n    f = f.masked_fill(outlying(x), 0)"
        if not weights.transcodes:
            outliers = "\n    y = torch.where(outlying(x), x, y)"
    yield (
        "torch alone, in a downloaded folder",
        TORCH.format(
            folder=sae.folder,
            encode=_ENCODE[weights.architecture],
            width="d_out" if weights.transcodes else "d_in",
            skip=skip,
            outliers=outliers,
            outlying=_OUTLYING if mask else "",
            mask=mask,
        ),
    )
