"""The text of a first configuration: what was found, and what is changed first, each with a comment."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from asys_bench.cli.starting.libraries import Finding

MOST_SHOWN = 12
"""Further modules that are listed."""
_COLUMN = 44

_HEAD = """\
# yaml-language-server: $schema={schema}
# {about}
# A field that is not here has the value of the file named under `extends`. Each one is explained in
# docs/config.md; every value and where it came from: asys-run --config {file} --print-config
extends: profile_consumer.yaml   # profile_hpc.yaml: many cores, the compiled bus, Prometheus
run:
  name: {name}
"""
_SAMPLING = """\
    # sampling: {max_rows_per_s: 20000}      # at most what the trainers use
    # preprocess: [int8]                     # a quarter of the size on the bus
"""
_PPO = f"""\
host:
  kind: ppo                      # script: a training script as it is; transformers: a model over text
  options:
    ppo:
      env_id: CartPole-v1        # any environment of gymnasium
      total_timesteps: 60000
hooks:                           # globs over model.named_modules()
  - match: ["mlp_extractor.policy_net", "mlp_extractor.value_net"]
{_SAMPLING}"""
_SCRIPT = """\
host:
  kind: script                   # run as it is; observe() and callbacks put themselves in its place
  options:
    script:
      path: {path}
      # args: ["--lr", "0.001"]  # its own arguments
      {model_class}
"""
_SINKS = """\
sinks:
  trainer:
    options:
      # device: auto             # a GPU that the host does not use
      sae:
        architecture: topk       # relu | topk | batchtopk | matryoshka | jumprelu | gated
        k: 16                    # features that explain a row; FVU falls with it
        expansion_factor: 8      # features for each dimension of a row; or d_sae: a number
  archive:
    options:
      max_gib: 1                 # the oldest rows go first; null: unlimited
"""
_RESOURCES = """\
resources:
  host_threads: null             # torch's threads stay as the script has them
  # pinning: auto                # workers keep off the host's cores: asys-run plan --config {file}
"""


def render(finding: Finding | None, script: str, file: str, schema: str) -> str:
    """The configuration as YAML.

    finding: of `script`; None: there is no script, and the host is one of ours. file: its own name.
    schema: of its fields, for editors.
    """
    head = {"schema": schema, "file": file, "name": json.dumps(run_name(script))}
    if finding is None:
        about = "A first configuration: an agent learns, and SAEs on its policy."
        return _HEAD.format(**head, about=about) + _PPO + _SINKS
    parts = [
        _HEAD.format(**head, about=f"A first configuration for {script}: {finding.seen}."),
        _SCRIPT.format(path=json.dumps(script), model_class=_model_class(finding)),
        "\n".join(_hooks(finding)) + "\n",
        _SINKS,
        _RESOURCES.format(file=file),
    ]
    return "".join(parts)


def run_name(script: str) -> str:
    """What runs of it are called: its file's name, in the letters that a run's name may have."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(script).stem)[:64].lstrip("_.-")
    return name or "run"


def schema_place(schema: Path, folder: Path) -> str:
    """The schema's path for a file in `folder`: relative where it is below, else absolute."""
    schema, folder = schema.resolve(), folder.resolve()
    return os.path.relpath(schema, folder) if schema.is_relative_to(folder) else str(schema)


def next_steps(finding: Finding | None, script: str, file: str) -> list[str]:
    """What to type, and what to write into the script instead."""
    named = shlex.quote(file)
    check, run = f"  asys-run --check --config {named}", f"  asys-run --config {named}"
    if finding is None:
        return ["next:", check, run]
    steps = ["next:", check]
    if not finding.hooks:
        steps += [
            "in the script (modules are chosen from the model itself):",
            *_line(finding, file),
        ]
        steps += ["or, once `hooks` names modules, with the script as it is:", run]
    elif not finding.finds_itself:
        steps += ["in the script:", *_line(finding, file)]
    else:
        given = f"  python -m asys_bench run -c {named} -- {shlex.quote(script)} ARGUMENTS"
        steps += [f"{run}   # the script as it is", f"{given}   # with arguments of its own"]
        steps += ["or in the script:", *_line(finding, file)]
    return steps


def _line(finding: Finding, file: str) -> list[str]:
    library = finding.library
    if not library.callback:
        return [f"  asys_bench.observe(model, {json.dumps(file)})   # before the training loop"]
    return [
        f"  from asys_bench.callbacks.{library.callback} import ObserveCallback",
        f"  ObserveCallback({json.dumps(file)})   # among {library.place}",
    ]


def _model_class(finding: Finding) -> str:
    what = "class of the model, where the script has several"
    if finding.model_class:
        return f"model_class: {json.dumps(finding.model_class)}   # {what}"
    return f"# model_class: Net       # {what}"


def _hooks(finding: Finding) -> Iterator[str]:
    if finding.hooks:
        yield "hooks:                           # globs over model.named_modules()"
        yield "  - match:"
        yield from _listed(finding.hooks, "      - ")
        yield _SAMPLING.rstrip("\n")
    else:
        yield "# hooks:                         # globs over model.named_modules(), for the script as it is;"
        yield '#   - match: ["layers.3"]        # observe() and callbacks choose modules where none are named'
    if finding.others:
        yield "  # The script has these modules too:"
        yield from _listed(finding.others[:MOST_SHOWN], "  #   ")
        if len(finding.others) > MOST_SHOWN:
            yield f"  #   and {len(finding.others) - MOST_SHOWN} more"


def _listed(modules: Sequence[tuple[str, str]], lead: str) -> Iterator[str]:
    for name, what in modules:
        shown = f"{lead}{json.dumps(name)}"
        yield (
            f"{shown:<{_COLUMN}} # {what}"
            if not lead.lstrip().startswith("#")
            else f"{shown}  {what}"
        )
