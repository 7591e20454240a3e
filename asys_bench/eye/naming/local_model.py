"""A causal language model of this machine, loaded by transformers; nothing leaves the machine.

Questions about one name begin alike: what they share is computed once, and its keys and values are repeated
for the rest of each, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from asys_bench.contracts.host import HostError
from asys_bench.eye.naming.models import MOST_ANSWER_TOKENS, Chat, NamingError
from asys_bench.hosts.model_folder import as_arguments, described
from asys_bench.hosts.pretrained import load

AT_ONCE = 10
YES, NO = ("Yes", "yes", "YES"), ("No", "no", "NO")


class LocalModel:
    """A `NamingModel`."""

    graded = True

    def __init__(self, model: str, gguf_file: str | None) -> None:
        """model: folder, `package:<name>` or a name on the hub.

        Raises:
            NamingError: it cannot be loaded, or has no tokens for yes and no.
        """
        try:
            loaded, self._tokenizer = load(
                model, auto_class="AutoModelForCausalLM", gguf_file=gguf_file
            )
        except HostError as error:
            raise NamingError(as_arguments(error)) from error
        self._model: Any = loaded.eval().requires_grad_(False)
        self.about = described(model, gguf_file)
        yes, no = self._first_tokens(YES), self._first_tokens(NO)
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise NamingError(f"{self.about}: its tokenizer does not tell yes from no")
        self._special = [one for one in self._tokenizer.all_special_tokens if len(one) > 1]

    def _first_tokens(self, words: Sequence[str]) -> set[int]:
        spelled = [form for word in words for form in (word, f" {word}")]
        encoded = [self._tokenizer.encode(form, add_special_tokens=False) for form in spelled]
        return {ids[0] for ids in encoded if ids}

    @torch.no_grad()
    def answer(self, chat: Chat) -> str:
        ids_1T = torch.tensor([self._ids(chat)])
        ends = self._tokenizer.eos_token_id
        made_1T = self._model.generate(
            input_ids=ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            max_new_tokens=MOST_ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=ends if ends is not None else 0,
        )
        text: str = self._tokenizer.decode(made_1T[0, ids_1T.shape[1] :], skip_special_tokens=True)
        return text

    @torch.no_grad()
    def chances(self, chats: Sequence[Chat]) -> list[float | None]:
        asked = [self._ids(chat) for chat in chats]
        if not asked:
            return []
        shared = _shared(asked)
        found: list[float | None] = []
        for first in range(0, len(asked), AT_ONCE):
            rests = [ids[shared:] for ids in asked[first : first + AT_ONCE]]
            found += self._chances(asked[0][:shared], rests).tolist()
        return found

    def _chances(self, shared: list[int], rests: list[list[int]]) -> torch.Tensor:
        """float[B]: P(yes) / (P(yes) + P(no)) after `shared` and each of `rests`."""
        lengths_B = torch.tensor([len(rest) for rest in rests])
        ids_BT = torch.zeros(len(rests), int(lengths_B.max()), dtype=torch.int64)
        for at, rest in enumerate(rests):
            ids_BT[at, : len(rest)] = torch.tensor(rest)
        inside_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
        given: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": inside_BT.long()}
        if shared:
            cache = self._model(input_ids=torch.tensor([shared]), use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(rests))
            before_BS = torch.ones(len(rests), len(shared), dtype=torch.int64)
            whole = torch.cat([before_BS, given["attention_mask"]], 1)
            given |= {"past_key_values": cache, "attention_mask": whole}
        logits_BTV = self._model(**given).logits
        last_BV = logits_BTV[torch.arange(len(rests)), lengths_B - 1].float()
        yes_B, no_B = (last_BV[:, ids].logsumexp(1) for ids in (self._yes, self._no))
        return torch.sigmoid(yes_B - no_B)

    def _ids(self, chat: Chat) -> list[int]:
        messages = [{**one, "content": self._harmless(one["content"])} for one in chat]
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self._tokenizer.encode(_plain(messages))
        return [int(token) for token in ids]

    def _harmless(self, text: str) -> str:
        """Control tokens of the model that a text holds are none in a question."""
        for special in self._special:
            text = text.replace(special, f"{special[0]}·{special[1:]}")
        return text


def _plain(messages: Chat) -> str:
    """For models without a form of their own for chats."""
    titles = {"system": "", "user": "\n", "assistant": "Answer: "}
    told = [f"{titles[one['role']]}{one['content']}" for one in messages]
    return "\n".join([*told, "Answer:"])


def _shared(asked: Sequence[Sequence[int]]) -> int:
    """How many first tokens all have in common; at least one of each is left."""
    shortest = min(map(len, asked)) - 1
    for at in range(shortest):
        if len({ids[at] for ids in asked}) > 1:
            return at
    return shortest
