"""The `transformers` host: a Hugging Face model over real text, encoding, training or generating.

Any `AutoModel` from a local folder, an installed package or a hub name (the hub's own cache and
`HF_HUB_OFFLINE` apply; code from the hub is never run). Padding is left out of what is captured, and
the stream `tokens` says which token and position each row is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from asys_bench.contracts.host import (
    BaseHost,
    EvaluatedText,
    HostClock,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
)
from asys_bench.contracts.run_files import VOCABULARY_FILE
from asys_bench.contracts.sink import Misfit
from asys_bench.hosts.dotted_name import device_misfits
from asys_bench.hosts.host_state import load_state, save_state
from asys_bench.hosts.pretrained import (
    AUTO_CLASSES,
    GGUF_FIX,
    architectures,
    gguf_missing,
    load,
    model_misfit,
    predicts,
)
from asys_bench.hosts.text_corpus import (
    TextBatch,
    TextCorpus,
    vocabulary_document,
)
from asys_bench.hosts.text_sources import OPTION, sources_of


class TransformersOptions(HostOptions):
    """Options of the `transformers` host."""

    model: str = Field(
        default="",
        description="folder of the model, `package:<name>` for one inside an installed Python package, "
        "or its name on the hub",
    )
    gguf_file: str | None = Field(
        default=None,
        description="GGUF file of that folder, package or hub repository that holds the model; its "
        "weights are unpacked to float32 once and kept in `~/.cache/asys-i/gguf`",
    )
    revision: str | None = Field(
        default=None, description="commit or tag on the hub; null: its main branch"
    )
    tokenizer: str | None = Field(default=None, description="null: the model's own")
    texts: tuple[str, ...] = Field(
        default=(),
        description="files, globs (** for all folders below), folders of .txt, .md, .jsonl, .parquet and "
        ".arrow; `package:<glob>`: descriptions, licences, .md and .rst of installed Python packages; or "
        "`function:<package.module:name>`: a function that returns texts or rows, such as a (streamed) data "
        "set of Hugging Face",
    )
    text_field: str = Field(
        default="text",
        description="field that holds the text, of a .jsonl line, a table's row or a function's",
    )
    task: Literal["encode", "train", "generate"] = Field(
        default="encode",
        description="encode: forward passes; train: causal language modelling with AdamW; generate: "
        "continue the beginning of each block, with a key-value cache",
    )
    auto_class: str | None = Field(
        default=None,
        description="transformers class that loads the model, such as AutoModelForMaskedLM; null: "
        "AutoModel to encode, AutoModelForCausalLM to train and generate",
    )
    total_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens (padding not counted) after which it ends"
    )
    shuffle: bool = Field(
        default=False,
        description="read the files in an order drawn from run.seed, several of them by turns",
    )
    repeat: bool = Field(default=True, description="begin the texts again when they are over")
    block_tokens: int = Field(
        default=128, ge=2, description="tokens per sequence, special tokens included"
    )
    batch_size: int = Field(default=16, ge=1, description="sequences per step")
    prompt_tokens: int = Field(
        default=16, ge=1, description="generate: tokens of each block that are given"
    )
    new_tokens: int = Field(default=48, ge=1, description="generate: most tokens made of each")
    temperature: float = Field(
        default=0.0, ge=0, description="generate: 0 takes the likeliest token, more samples"
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="train: AdamW's step size")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="type of the weights"
    )
    device: str = Field(default="cpu", description='torch device, e.g. "cpu", "cuda"')

    @property
    def trains(self) -> bool:
        return self.task == "train"

    def misfits(self) -> Iterator[Misfit]:
        """A model or texts that are not given or not there; names on the hub are not asked for."""
        for name in ("model", "texts"):
            if not getattr(self, name):
                yield Misfit((name,), "must be given", getattr(self, name), "")
        for index, pattern in enumerate(self.texts):
            try:
                sources_of(pattern)
            except HostError as error:
                message = str(error).removeprefix(f"{OPTION}: ")
                fix = "`package:*` is the documentation of installed packages"
                yield Misfit(("texts", index), message, pattern, fix)
        for name in ("model", "tokenizer"):
            value = getattr(self, name)
            is_path = value and value.startswith((".", "/", "~"))
            if is_path and not Path(value).expanduser().exists():
                yield Misfit(
                    (name,), "no such folder", value, "name a model's folder or its hub name"
                )
        if self.gguf_file is not None and (reason := gguf_missing()) is not None:
            yield Misfit(("gguf_file",), f"cannot be read: {reason}", self.gguf_file, GGUF_FIX)
        if (found := model_misfit(self.model, self.gguf_file)) is not None:
            option, message, fix = found
            yield Misfit((option,), message, getattr(self, option), fix)
        yield from device_misfits(self.device)


class TransformersHost(BaseHost):
    """Steps are batches; the figures are tokens and, when training, the loss."""

    step_unit = "batch"
    can_be_saved = True

    def __init__(self, options: TransformersOptions, seed: int) -> None:
        self._options, self._seed = options, seed
        self._model: Any = None
        self._tokenizer: Any = None
        self._corpus: TextCorpus | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = self._tokens = 0
        """Of all attempts."""

    def build(self) -> torch.nn.Module:
        """The model as `from_pretrained` gives it."""
        options = self._options
        if not options.model or not options.texts:
            missing = "model" if not options.model else "texts"
            raise HostError(f"host.options.transformers.{missing}: must be given")
        model, self._tokenizer = load(
            options.model,
            auto_class=options.auto_class or AUTO_CLASSES[options.task],
            gguf_file=options.gguf_file,
            tokenizer=options.tokenizer,
            revision=options.revision,
            dtype=options.dtype,
        )
        self._corpus = TextCorpus(
            options.texts,
            self._tokenizer,
            block_tokens=options.block_tokens,
            text_field=options.text_field,
            shuffle_seed=self._seed if options.shuffle else None,
        )
        self._model = model.to(options.device)
        self._model.train(options.task == "train")
        if options.task == "train":
            self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=options.learning_rate)
        loaded: torch.nn.Module = self._model
        return loaded

    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """The vocabulary, so that reports can show tokens."""
        return {VOCABULARY_FILE: vocabulary_document(self._tokenizer)}

    def save_weights(self, folder: Path) -> None:
        self._model.save_pretrained(folder)

    def run(self, clock: HostClock) -> HostResult:
        """Until `total_tokens`, the end of the texts, or a stop; reports `tokens` and `loss`."""
        if self._model is None or self._corpus is None:
            raise HostError("run() before build()")
        step = {"encode": self._encode, "train": self._train_step(), "generate": self._generate}[
            self._options.task
        ]
        figures: dict[str, float] = {}
        started, first = time.monotonic(), self._steps
        if not first:
            torch.manual_seed(self._seed)
        for batch in itertools.islice(self._batches(), first, None):
            if clock.should_stop or self._tokens >= self._options.total_tokens:
                break
            made, loss = step(batch, clock)
            self._tokens += made
            self._steps += 1
            figures["tokens"] = float(self._tokens)
            clock.report("tokens", float(self._tokens))
            if loss is not None:
                figures["loss"] = loss
                clock.report("loss", loss)
            clock.step()
            self.whole_at(self._steps)
        return HostResult(
            self._steps - first,
            time.monotonic() - started,
            stopped_early=clock.should_stop,
            figures=figures,
        )

    def save(self, folder: Path) -> None:
        """See `BaseHost`. Weights that are not trained are not written; the position in the texts is
        the number of batches, which `run` passes over."""
        trained = self._model if self._optimizer is not None else None
        numbers = {"steps": self._steps, "tokens": self._tokens}
        save_state(folder, numbers, trained, self._optimizer)

    def load(self, folder: Path) -> int:
        trained = self._model if self._optimizer is not None else None
        numbers = load_state(folder, trained, self._optimizer)
        self._steps, self._tokens = int(numbers["steps"]), int(numbers["tokens"])
        return self._steps

    def _batches(self) -> Iterator[TextBatch]:
        assert self._corpus is not None
        return self._corpus.batches(self._options.batch_size, repeat=self._options.repeat)

    def _encode(self, batch: TextBatch, clock: HostClock) -> tuple[int, float | None]:
        with torch.no_grad():
            self._model(**self._inputs(batch))
        return batch.tokens, None

    def _train_step(self) -> Any:
        optimizer = self._optimizer
        if optimizer is None:
            return None

        def step(batch: TextBatch, clock: HostClock) -> tuple[int, float | None]:
            labels_BT = batch.input_ids_BT.masked_fill(batch.mask_BT == 0, -100)
            optimizer.zero_grad(set_to_none=True)
            loss = self._model(
                **self._inputs(batch), labels=labels_BT.to(self._options.device)
            ).loss
            loss.backward()
            optimizer.step()
            clock.weights_updated()
            return batch.tokens, float(loss.detach())

        return step

    def _generate(self, batch: TextBatch, clock: HostClock) -> tuple[int, float | None]:
        """Continue the first tokens of each block; blocks that are shorter are left out."""
        options = self._options
        full_B = batch.mask_BT.sum(1) >= options.prompt_tokens
        prompts_BT = batch.input_ids_BT[full_B, : options.prompt_tokens].to(options.device)
        if not len(prompts_BT):
            return 0, None
        assert self._corpus is not None
        sampling = {"temperature": options.temperature} if options.temperature > 0 else {}
        with torch.no_grad():
            made_BT = self._model.generate(
                input_ids=prompts_BT,
                attention_mask=torch.ones_like(prompts_BT),
                max_new_tokens=options.new_tokens,
                do_sample=options.temperature > 0,
                pad_token_id=self._corpus.pad_id,
                use_cache=True,
                **sampling,
            )
        return int(made_BT.numel()), None

    def _inputs(self, batch: TextBatch) -> dict[str, torch.Tensor]:
        device = self._options.device
        return {
            "input_ids": batch.input_ids_BT.to(device),
            "attention_mask": batch.mask_BT.to(device),
        }


def _unavailable() -> str | None:
    if find_spec("transformers") is None:
        return "transformers is not installed; pip install 'asys-i[transformers]'"
    return None


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, TransformersOptions)
    return TransformersHost(options, seed)


# The model for an evaluation.

EVALUATION_SEED = 1
"""Draws the files of an evaluation, so that all evaluations of a run are on the same tokens."""
EVALUATION_SEQUENCES = 4
"""Of one batch: log probabilities of a large vocabulary are held of the model as it is, and of one that
is compared with it."""


def _evaluated(options: HostOptions, seed: int, weights: Path | None) -> EvaluatedText:
    assert isinstance(options, TransformersOptions)
    about = {"model": options.model, "gguf_file": options.gguf_file, "texts": list(options.texts)}
    read: dict[str, Any] = {
        "gguf_file": options.gguf_file,
        "tokenizer": options.tokenizer,
        "revision": options.revision,
        "dtype": options.dtype,
    }
    asked = options.auto_class or AUTO_CLASSES[options.task]
    predicting = predicts(architectures(options.model, options.gguf_file, options.revision))
    whole, tokenizer = load(
        options.model,
        auto_class="AutoModelForCausalLM" if predicting and asked == "AutoModel" else asked,
        weights=weights,
        **read,
    )
    whole = whole.to(options.device)
    whole.eval()
    longest = getattr(whole.config, "max_position_embeddings", None) or options.block_tokens
    model = whole.base_model if predicting and asked == "AutoModel" else whole

    def run(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Any:
        inputs = {
            "input_ids": ids_BT.to(options.device),
            "attention_mask": mask_BT.to(options.device),
        }
        return model(**inputs)

    def logits(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        inputs = {
            "input_ids": ids_BT.to(options.device),
            "attention_mask": mask_BT.to(options.device),
        }
        found: torch.Tensor = whole(**inputs).logits
        return found

    def batches(tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        corpus = TextCorpus(
            options.texts,
            tokenizer,
            block_tokens=min(options.block_tokens, longest),
            text_field=options.text_field,
            shuffle_seed=EVALUATION_SEED,
        )
        made = 0
        for batch in corpus.batches(EVALUATION_SEQUENCES, repeat=False):
            yield batch.input_ids_BT, batch.mask_BT
            made += batch.tokens
            if made >= tokens:
                return

    return EvaluatedText(model, run, logits if predicting else None, batches, about)


plugin = HostPlugin(
    name="transformers",
    summary="a Hugging Face model over text files: encode, train or generate",
    options=TransformersOptions,
    build=_build,
    evaluated=_evaluated,
    unavailable=_unavailable,
)
