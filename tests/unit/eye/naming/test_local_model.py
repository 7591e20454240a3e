"""A model of this machine: its probabilities are those of reading each question whole."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from asys_bench.eye.naming.local_model import LocalModel, _shared
from asys_bench.eye.naming.models import NamingError

TINY = runpy.run_path(str(Path(__file__).parents[2] / "rundir" / "tiny_lm.py"))
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers deprecates its own


def chat(*words: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "w1 w2"}, {"role": "user", "content": " ".join(words)}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has yes and no."""
    pytest.importorskip("transformers")
    TINY["WORDS"][:4] = ["Yes", "No", "yes", "no"]
    made = tmp_path_factory.mktemp("tiny")
    TINY["write_model"](made)
    return made / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel(str(folder), None)


def test_questions_side_by_side_are_answered_as_each_alone(model: LocalModel) -> None:
    """Of different lengths, more than are computed at once, with a beginning in common."""
    asked = [chat("w5", "w6", *["w7"] * (n % 4), f"w{n}") for n in range(4, 27)]
    found = model.chances(asked)
    for one, chance in zip(asked, found, strict=True):
        logits = model._model(input_ids=torch.tensor([model._ids(one)])).logits[0, -1]
        yes, no = (logits[ids].exp().sum() for ids in (model._yes, model._no))
        assert chance == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    assert len({round(chance, 6) for chance in found}) > 3


def test_one_question_and_none(model: LocalModel) -> None:
    assert model.chances([]) == []
    assert model.chances([chat("w5")]) == model.chances([chat("w5")] * 3)[:1]


def test_the_answer_is_what_comes_after_the_question(model: LocalModel) -> None:
    asked = chat("w5", "w6")
    words = model.answer(asked).split()
    assert len(words) <= 24
    ids = torch.tensor([model._ids(asked)])
    first = int(model._model(input_ids=ids).logits[0, -1].argmax())
    assert words[:1] == model._tokenizer.decode([first], skip_special_tokens=True).split()[:1]


def test_what_all_begin_with_leaves_something_of_each() -> None:
    assert _shared([[1, 2, 3], [1, 2, 4]]) == 2
    assert _shared([[1, 2], [1, 2, 4]]) == 1
    assert _shared([[1, 2, 3]] * 2) == 2
    assert _shared([[5], [6]]) == 0


def test_control_tokens_of_a_text_are_none_in_a_question(model: LocalModel) -> None:
    pad = model._tokenizer.pad_token_id
    told = model._tokenizer.encode("w5 [PAD] w6", add_special_tokens=False)
    assert pad in told
    assert pad not in model._ids(chat("w5 [PAD] w6"))


def test_its_weights_are_named_and_one_without_yes_and_no_is_refused(
    model: LocalModel, folder: Path, tmp_path: Path
) -> None:
    assert model.about.startswith("model (sha256 ")
    TINY["WORDS"][:4] = ["w0", "w1", "w2", "w3"]
    TINY["write_model"](tmp_path)
    with pytest.raises(NamingError, match="does not tell yes from no"):
        LocalModel(str(tmp_path / "model"), None)
