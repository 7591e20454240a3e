"""Pushing to a hub and starting from it, over HTTP, with huggingface_hub's own client.

The hub is a fake of its API on this machine, without Xet (`HF_HUB_DISABLE_XET=1`): the real one's upload of
weights goes by Xet by default, and is not tested here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from asys_bench.sae import load_sae
from asys_bench.sae.exchange import ExchangeError
from asys_bench.sae.exchange.hub import HubPlace, is_hub, is_repo, parse_place

TOKEN = "hf_veryverysecretsecretsecret"
PRIVATE = ("/home/somebody", "somebodys-machine", TOKEN, "rows of the archive", "/tmp/texts")
STARTS = """
import json, sys
import torch
from asys_bench.sinks.sae.start import StartFrom
for place, hook in json.loads(sys.argv[1]):
    try:
        sae = StartFrom(path=place).read(hook)
        print(json.dumps(sae(torch.ones(2, 6)).tolist()))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def fake_hub() -> ModuleType:
    path = Path(__file__).parent / "fake_hub.py"
    spec = importlib.util.spec_from_file_location("asys_fake_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub() -> Iterator[object]:
    pytest.importorskip("huggingface_hub")
    with fake_hub().serving() as served:
        yield served


def python(hub, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-P", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


def push(hub, run: Path) -> None:  # type: ignore[no-untyped-def]
    done = python(
        hub, run.parent, "-m", "asys_bench.cli.run", "push", str(run), "--repo", "org/saes"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def started(hub, folder: Path, *places: tuple[str, str], **more: str) -> list[object]:  # type: ignore[no-untyped-def]
    done = python(hub, folder, "-c", STARTS, json.dumps(places), **more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.rest
def test_the_hub_sees_safetensors_and_the_card_and_nothing_private(
    hub, run_with: Callable[..., Path]
) -> None:
    run = run_with("topk", "gated")
    push(hub, run)
    assert hub.private == {"org/saes": "private"}
    names = {f"layers.0.topk/{file}" for file in ("cfg.json", "sae_weights.safetensors")}
    names |= {f"layers.1.gated/{file}" for file in ("cfg.json", "sae_weights.safetensors")}
    assert hub.files["org/saes"].keys() == names | {"README.md"}
    home = Path.home().as_posix() + "/"
    for request in hub.requests:
        for name, value in request.headers.items():
            assert TOKEN not in value or name.lower() == "authorization"
        for private in (*PRIVATE, str(run), home):
            assert private.encode() not in request.body
            assert private not in request.path
    for data in hub.files["org/saes"].values():
        assert not any(private.encode() in data for private in (*PRIVATE, str(run), home))
    push(hub, run)  # again: nothing has changed, and nothing fails


@pytest.mark.rest
def test_a_training_starts_from_the_hub_and_offline_from_its_cache(
    hub, run_with: Callable[..., Path]
) -> None:
    run = run_with("topk", "gated")
    push(hub, run)
    places = [
        ("hf://org/saes", "layers.1.gated"),
        ("hf://org/saes/layers.0.topk", "any"),
        ("hf://org/saes@main/layers.0.topk", "any"),
        ("hf://org/saes", "layers.7.none"),
        ("hf://org/none", "any"),
    ]
    found = started(hub, run.parent, *places)
    with torch.no_grad():
        for index, name in ((0, "layers.1.gated"), (1, "layers.0.topk"), (2, "layers.0.topk")):
            ours, _ = load_sae(run / "sae" / name)
            torch.testing.assert_close(torch.tensor(found[index]), ours(torch.ones(2, 6)))
    assert "no SAE is there, and none of 'layers.7.none' among" in str(found[3])
    assert "ExchangeError: hf://org/none: cannot be had: RepositoryNotFoundError" in str(found[4])
    seen = len(hub.requests)
    assert started(hub, run.parent, *places[:2], HF_HUB_OFFLINE="1") == found[:2]
    assert len(hub.requests) == seen, "offline asks nobody"
    (unknown,) = started(hub, run.parent, ("hf://org/other", "any"), HF_HUB_OFFLINE="1")
    assert "ExchangeError: hf://org/other: cannot be had" in str(unknown)


@pytest.mark.rest
def test_configurations_take_places_on_the_hub(hub, run_with: Callable[..., Path]) -> None:
    run = run_with("topk")
    push(hub, run)
    for right, wrong in (
        ("hf://org/saes", "hf://org/none"),
        ("hf://org/saes/layers.0.topk", "hf://org"),
    ):
        for place, code in ((right, 0), (wrong, 2)):
            done = python(
                hub,
                run.parent,
                *("-m", "asys_bench.cli.run", "--check", "--config", "profile_consumer.yaml"),
                *("--set", "sinks.trainer=null", "--set", "sinks.watch.kind=sae_watch"),
                *("--set", f'sinks.watch.options.saes={{"*": "{place}"}}'),
            )
            assert done.returncode == code, done.stdout + done.stderr
    assert "names no place on the hub" in done.stderr


@pytest.mark.rest
@pytest.mark.interop
def test_saelens_and_sparsify_open_it_as_the_card_says(
    hub, run_with: Callable[..., Path], blocks: Callable[[Path], list[tuple[str, str, str]]]
) -> None:
    """The card's blocks as they stand: one from the hub, the others in the folder of the dry run."""
    pytest.importorskip("sae_lens")
    pytest.importorskip("sparsify")
    run = run_with("topk", "relu", "jumprelu", "gated", "skip_transcoder")
    push(hub, run)
    target = run.parent / "pushed"
    words = ("push", str(run), "--repo", "org/saes", "--dry-run", str(target))
    assert python(hub, run.parent, "-m", "asys_bench.cli.run", *words).returncode == 0
    lines = ["import torch", "x = torch.linspace(-3, 3, 60).reshape(10, 6)", "ours = {}"]
    lines += ["from asys_bench.sae import load_sae", "torch.set_grad_enabled(False)"]
    seen = set()
    for folder, what, code in blocks(target):
        seen.add(what.split(",")[0])
        body = code + _CHECKS[what.split(",")[0]]
        lines.append(
            f"ours = load_sae(__import__('pathlib').Path({str(run / 'sae' / folder)!r}))[0]"
        )
        lines.append(
            f"exec(compile({body!r}, {f'{folder} {what}'!r}, 'exec'), dict(x=x, ours=ours))"
        )
        lines.append(f"print({f'opened: {folder} {what}'!r})")
    done = python(hub, target, "-W", "ignore", "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
    assert seen == {"SAELens", "sparsify", "torch alone"}
    assert done.stdout.count("opened: ") == 5 * 3 + 2, "three ways each, and two that sparsify has"


_CHECKS = {
    "SAELens": """
assert float((sae(x) - ours(x)).abs().max()) < 1e-5
assert float((sae.encode(x) - ours.encode(x)).abs().max()) < 1e-5
""",
    "sparsify": """
assert float((coder(x).sae_out - ours(x)).abs().max()) < 1e-5
""",
    "torch alone": """
assert float((reconstruct(x) - ours(x)).abs().max()) < 1e-5
""",
}


def test_places_are_read() -> None:
    assert parse_place("hf://org/name") == HubPlace("org/name")
    assert parse_place("hf://org/name/a/b/") == HubPlace("org/name", None, "a/b")
    assert parse_place("hf://org/name@v1/a") == HubPlace("org/name", "v1", "a")
    assert is_hub("hf://x")
    assert not is_hub("/hf")
    assert is_repo("org/na-me.x")


@pytest.mark.parametrize(
    "place",
    [
        "hf://",
        "hf://org",
        "hf://org/..",
        "hf://org/name/../x",
        "hf://o/n@",
        "hf://o/n@a b",
        "hf:///o/n",
    ],
)
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(ExchangeError, match="names no place on the hub"):
        parse_place(place)
