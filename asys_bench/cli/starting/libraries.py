"""Which library trains in a script, and what it calls the modules of its models.

The names of Stable-Baselines3's and transformers' modules are theirs; tests/unit/cli/test_init.py holds
these tables against the installed libraries.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from asys_bench.cli.starting.models import Models, Part, chosen
from asys_bench.cli.starting.syntax import Script, keyword_of, number_of, text_of


@dataclass(frozen=True)
class Library:
    """What trains. callback: its module in `asys_bench.callbacks`; "" where `observe` is called instead."""

    name: str
    callback: str = ""
    place: str = ""


SB3 = Library("Stable-Baselines3", "stable_baselines3", "callback=... of learn()")
TRL = Library("TRL", "transformers", "callbacks=... of its trainer")
TRAINER = Library("Hugging Face Trainer", "transformers", "callbacks=... of Trainer")
LIGHTNING = Library("Lightning", "lightning", "callbacks=... of lightning.Trainer")
TORCH = Library("PyTorch")

SB3_PACKAGES = ("stable_baselines3", "sb3_contrib")
ON_POLICY = ("PPO", "A2C", "TRPO", "MaskablePPO")
SB3_HOOKS = {
    "mlp": ("mlp_extractor.policy_net", "mlp_extractor.value_net"),
    "cnn": ("features_extractor.linear",),
    "DQN": ("q_net.q_net.1", "q_net.q_net.3"),
    "QRDQN": ("quantile_net.quantile_net.1", "quantile_net.quantile_net.3"),
    "SAC": ("actor.latent_pi.1", "actor.latent_pi.3"),
    "TD3": ("actor.mu.1", "actor.mu.3"),
    "DDPG": ("actor.mu.1", "actor.mu.3"),
}
"""By policy of an on-policy algorithm, or by algorithm: hidden layers after their activation function."""

STACKS = {
    "GPT2": "transformer.h",
    "GPTNeoX": "gpt_neox.layers",
    "OPT": "model.decoder.layers",
    "Bert": "bert.encoder.layer",
    "Roberta": "roberta.encoder.layer",
    "DistilBert": "distilbert.transformer.layer",
    **dict.fromkeys(
        ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Phi3", "Olmo2", "SmolLM3"),
        "model.layers",
    ),
}
"""Beginning of a class of transformers -> where the blocks of its models with a head are."""
FAMILIES = (
    ("distilbert", "DistilBert"),
    ("roberta", "Roberta"),
    ("gpt2", "GPT2"),
    ("pythia", "GPTNeoX"),
    ("gpt-neox", "GPTNeoX"),
    ("/opt-", "OPT"),
    ("llama", "Llama"),
    ("qwen", "Qwen2"),
    ("smollm", "Llama"),
    ("mistral", "Mistral"),
    ("gemma-2", "Gemma2"),
    ("phi-3", "Phi3"),
    ("olmo-2", "Olmo2"),
    ("bert-", "Bert"),
)
"""Part of a model's name on the hub -> its classes; the first that fits counts."""
HEADS = ("For", "LMHead", "DoubleHeads")
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
USUAL_BLOCK = 2


@dataclass(frozen=True)
class Finding:
    """What a script shows.

    what: the call or class in a few words, with its line. hooks: globs that are sure to be meant, each with
    what it is. others: further modules. model_class: where the script has several models.
    finds_itself: False where the `script` host would not find the model that the hooks are of.
    """

    library: Library
    what: str = ""
    hooks: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()
    model_class: str = ""
    finds_itself: bool = True

    @property
    def seen(self) -> str:
        """The library and the model, for a line."""
        return f"{self.library.name}, {self.what or 'no model that can be read'}"


def find(script: Script) -> Finding:
    """What trains in the script, and on which modules."""
    library = library_of(script)
    if library is SB3:
        return _sb3(script)
    return _own_model(script, library) or _pretrained(script, library) or Finding(library)


def library_of(script: Script) -> Library:
    """The library that runs the training; PyTorch itself where none is imported."""
    last = {name.rpartition(".")[2] for name in script.names.values()}
    called = {script.callee(call).rpartition(".")[2] for call in script.calls}
    if script.imports & set(SB3_PACKAGES):
        return SB3
    if "trl" in script.imports:
        return TRL
    if script.imports & {"lightning", "pytorch_lightning"}:
        return LIGHTNING
    if "transformers" in script.imports and {"Trainer", "Seq2SeqTrainer"} & (last | called):
        return TRAINER
    return TORCH


def _sb3(script: Script) -> Finding:
    for call in script.calls:
        package, _, algorithm = script.callee(call).rpartition(".")
        policy = call.args[0] if call.args else keyword_of(call, "policy")
        if package.partition(".")[0] in SB3_PACKAGES and algorithm.isupper() and policy is not None:
            return _sb3_algorithm(algorithm, ast.unparse(policy), call.lineno)
    return Finding(SB3)


def _sb3_algorithm(algorithm: str, policy: str, line: int) -> Finding:
    on_policy = algorithm in ON_POLICY
    key = ("cnn" if "Cnn" in policy else "mlp") if on_policy else algorithm
    known = [(name, "of the policy") for name in SB3_HOOKS.get(key, ())]
    return Finding(
        SB3, f"{algorithm}({policy}, ...), line {line}", tuple(known), finds_itself=on_policy
    )


def _own_model(script: Script, library: Library) -> Finding | None:
    """A model whose class or layers are in the script."""
    models = Models(script)
    outermost = models.outermost()
    for name in outermost:
        parts = list(models.parts_of(name))
        if parts:
            star = "*" if len(outermost) > 1 and library is not TORCH else ""
            line = script.models[name].lineno
            several = name if len(outermost) > 1 and library is TORCH else ""
            return _of_parts(library, f"class {name}, line {line}", parts, star, several)
    for call in script.calls:
        parts = list(models.parts(call, ""))
        if parts:
            called = script.callee(call).rpartition(".")[2]
            return _of_parts(library, f"{called}(...), line {call.lineno}", parts)
    return None


def _of_parts(
    library: Library, what: str, parts: list[Part], star: str = "", model_class: str = ""
) -> Finding:
    hooks = chosen(parts)
    others = [part for part in parts if part not in hooks]
    return Finding(
        library,
        what,
        tuple(_described(hooks, star)),
        tuple(_described(others, star)),
        model_class,
        finds_itself=library is not LIGHTNING,  # it calls neither the module nor its train()
    )


def _described(parts: list[Part], star: str) -> Iterator[tuple[str, str]]:
    for part in parts:
        kind = part.kind.rpartition(".")[2]
        yield f"{star}{part.name}", f"{kind}, line {part.line}"


def _pretrained(script: Script, library: Library) -> Finding | None:
    """A model of transformers, by its class or its name on the hub."""
    for call in script.calls:
        callee = script.callee(call)
        if found := _family_of(callee, call):
            family, has_head = found
            stack = STACKS[family] if has_head else STACKS[family].partition(".")[2]
            block = _middle(script)
            what = f"{ast.unparse(call.func)}(...), line {call.lineno}"
            hook = f"*{stack}.{block}", f"a block of {family}"
            return Finding(library, what, (hook,))
    return None


def _family_of(callee: str, call: ast.Call) -> tuple[str, bool] | None:
    """(family, whether the model has a head) of a call that makes a model; None of others."""
    made = callee.removesuffix(".from_pretrained").rpartition(".")[2]
    if (named := _named(made)) is not None:
        return named, made != f"{named}Model"
    has_head = any(head in made for head in HEADS)
    is_auto = made.startswith("AutoModel") and callee.endswith(".from_pretrained")
    is_trainer = made.endswith("Trainer")
    if not (is_auto or is_trainer):
        return None
    given = keyword_of(call, "model") or (call.args[0] if call.args else None)
    name = (text_of(given) or "").lower()
    family = next((family for part, family in FAMILIES if part in name), None)
    return (family, is_trainer or has_head) if family else None


def _named(made: str) -> str | None:
    """The family that a class of transformers is of; None of configurations and tokenizers."""
    for name in STACKS:
        rest = made.removeprefix(name)
        if made != rest and (rest == "Model" or rest.startswith(HEADS)):
            return name
    return None


def _middle(script: Script) -> int:
    """The block in the middle, where the script says how many there are."""
    for call in script.calls:
        layers = number_of(keyword_of(call, *LAYERS))
        if layers is not None and layers > 0:
            return layers // 2
    return USUAL_BLOCK
