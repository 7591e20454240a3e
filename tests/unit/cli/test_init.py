"""`asys-run init`: what a script shows without being run, and a configuration that works."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from asys_bench.capture.points.default_hooks import default_hooks
from asys_bench.cli import run
from asys_bench.cli.starting.libraries import FAMILIES, ON_POLICY, SB3_HOOKS, STACKS, find
from asys_bench.cli.starting.syntax import UnreadableScriptError, read_script
from asys_bench.config import load_config
from asys_bench.run.preflight import preflight

EXAMPLES = Path(__file__).parents[3] / "docs/examples"


def found(tmp_path, source):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(source))
    return find(read_script(path))


def names(modules):
    return [name for name, _ in modules]


@pytest.mark.parametrize(
    ("example", "library", "hooks"),
    [
        ("pytorch", "PyTorch", ["0", "2"]),
        ("sb3", "Stable-Baselines3", ["mlp_extractor.policy_net", "mlp_extractor.value_net"]),
        ("transformers_trainer", "Hugging Face Trainer", ["*transformer.h.2"]),
        ("lightning_module", "Lightning", ["encoder.0", "decoder"]),
    ],
)
def test_what_the_examples_are(example, library, hooks):
    finding = find(read_script(EXAMPLES / f"{example}.py"))
    assert finding.library.name == library
    assert names(finding.hooks) == hooks
    assert ", line " in finding.what


BLOCKS = """\
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 32)
            self.second: nn.Module = nn.Linear(32, 16)

    class Net(nn.Module):
        def __init__(self, depth=4):
            super().__init__()
            self.embed = nn.Linear(4, 16)
            self.layers = nn.ModuleList([Block() for _ in range(6)])
            self.head = nn.Linear(16, 2)

    model = Net()
"""
FLAT = """\
    import torch.nn as nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, out_features=16))
            self.value = nn.Linear(16, 1)

    model = Net()
"""
WHOLE = """\
    import torch

    from torch.nn import Linear, ReLU, Sequential

    model = Sequential(*[Sequential(Linear(8, 8), ReLU()) for _ in range(5)])
"""
TWINS = """\
    from torch.nn import Linear, Module, Sequential

    class Part(Module):
        def __init__(self):
            super().__init__()
            self.inner = Linear(8, 8)

    model = Sequential(Part(), Part(), Part(), Part())
"""


@pytest.mark.parametrize("source", [BLOCKS, FLAT, WHOLE, TWINS])
def test_hooks_are_those_that_observe_would_choose_from_the_model_itself(tmp_path, source):
    scope = {"__name__": "script"}
    exec(textwrap.dedent(source), scope)
    assert names(found(tmp_path, source).hooks) == default_hooks(scope["model"])


@pytest.mark.parametrize("source", [BLOCKS, FLAT, WHOLE, TWINS])
def test_every_module_that_is_listed_is_one_of_the_model(tmp_path, source):
    scope = {"__name__": "script"}
    exec(textwrap.dedent(source), scope)
    finding = found(tmp_path, source)
    listed = set(names(finding.hooks) + names(finding.others))
    assert listed <= set(dict(scope["model"].named_modules()))
    assert len(listed) > 1


def test_of_several_models_the_one_that_the_script_builds_first_is_named(tmp_path):
    finding = found(
        tmp_path,
        """\
        from torch import nn

        class Critic(nn.Module):
            def __init__(self):
                self.body = nn.Linear(8, 8)

        class Actor(nn.Module):
            def __init__(self):
                self.trunk = nn.Linear(8, 8)

        actor, critic = Actor(), Critic()
        """,
    )
    assert (finding.model_class, names(finding.hooks)) == ("Actor", ["trunk"])


@pytest.mark.parametrize(
    ("lines", "library", "hooks"),
    [
        ("from trl import GRPOTrainer\nGRPOTrainer(model='Qwen/Qwen2-0.5B')", "TRL", ["*model.layers.2"]),
        ("from transformers import AutoModel\nm = AutoModel.from_pretrained('gpt2')", "PyTorch", ["*h.2"]),
        ("import transformers as t\nt.LlamaForCausalLM(t.LlamaConfig(num_hidden_layers=8))", "PyTorch",
         ["*model.layers.4"]),
        ("import numpy", "PyTorch", []),
        ("from stable_baselines3 import DQN\nDQN('MlpPolicy', env)", "Stable-Baselines3",
         ["q_net.q_net.1", "q_net.q_net.3"]),
        ("import stable_baselines3", "Stable-Baselines3", []),
    ],
)  # fmt: skip
def test_what_other_scripts_are(tmp_path, lines, library, hooks):
    finding = found(tmp_path, lines)
    assert (finding.library.name, names(finding.hooks)) == (library, hooks)


FURTHER = pytest.mark.soak("half a minute")


@pytest.mark.rest
@pytest.mark.parametrize("algorithm", [name for name in SB3_HOOKS if name[0].isupper()] + ["PPO"])
def test_stable_baselines3_calls_its_modules_so(algorithm):
    sb3 = pytest.importorskip("stable_baselines3")
    if not hasattr(sb3, algorithm):
        pytest.skip(f"{algorithm} is of sb3_contrib, which is not installed")
    continuous = algorithm in ("SAC", "TD3", "DDPG")
    model = getattr(sb3, algorithm)(
        "MlpPolicy", "Pendulum-v1" if continuous else "CartPole-v1", device="cpu"
    )
    key = "mlp" if algorithm in ON_POLICY else algorithm
    assert set(SB3_HOOKS[key]) <= set(dict(model.policy.named_modules()))


@pytest.mark.rest
@pytest.mark.parametrize("family", STACKS)
def test_transformers_calls_its_blocks_so(family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")()
    head = next(
        made
        for kind in ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
        if (made := getattr(transformers, f"{family}{kind}", None)) is not None
    )
    with torch.device("meta"):
        models = {"": head(config), "bare": getattr(transformers, f"{family}Model")(config)}
    whole, bare = STACKS[family], STACKS[family].partition(".")[2]
    assert f"{whole}.2" in dict(models[""].named_modules())
    assert f"{bare}.2" in dict(models["bare"].named_modules())


def test_every_name_on_the_hub_has_a_family_that_is_known():
    assert {family for _, family in FAMILIES} <= set(STACKS)


def init(*arguments):
    return run.main(["init", *arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "example", ["pytorch", "sb3", "transformers_trainer", "lightning_module", None]
)
def test_the_configuration_is_valid_and_names_the_script(here, capsys, example):
    script = [] if example is None else [str(EXAMPLES / f"{example}.py")]
    assert init(*script) == 0
    assert "asys-run --check --config asys.yaml" in capsys.readouterr().out
    loaded = load_config("asys.yaml")
    assert [str(problem) for problem in preflight(loaded)] == []
    if script:
        assert loaded.config.host.kind == "script"
        assert loaded.config.host.plugin_options().path == script[0]
        assert loaded.config.resources.host_threads is None
    text = Path("asys.yaml").read_text()
    schema = Path(text.partition("$schema=")[2].splitlines()[0])
    assert schema.is_file()
    assert yaml.safe_load(text)["extends"] == "profile_consumer.yaml"


def test_a_model_that_cannot_be_read_leaves_hooks_to_the_reader(here, capsys):
    Path("train.py").write_text("from mine import model, train\ntrain(model)\n")
    assert init("train.py") == 0
    said = capsys.readouterr().out
    assert "found PyTorch, no model that can be read" in said
    assert 'asys_bench.observe(model, "asys.yaml")' in said
    assert "hooks" not in yaml.safe_load(Path("asys.yaml").read_text())


def test_the_script_is_not_run(here):
    Path("train.py").write_text("import torch\nopen('ran', 'w')\nraise SystemExit(3)\n")
    assert init("train.py") == 0
    assert not Path("ran").exists()


def test_a_file_that_is_there_is_kept(here, capsys):
    Path("asys.yaml").write_text("mine")
    assert init() == 2
    assert "asys.yaml is there already; --force replaces it" in capsys.readouterr().err
    assert Path("asys.yaml").read_text() == "mine"
    assert init("--force") == 0
    assert Path("asys.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.py", None, "No such file"),
        ("train.py", "x = (\n", "train.py:1"),
        ("train.py", "\0", "train.py"),
        ("train.ipynb", "{}", "call asys_bench.observe in it"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(here, capsys, name, content, said):
    if content is not None:
        Path(name).write_text(content)
    assert init(name) == 2
    assert said in capsys.readouterr().err
    assert not Path("asys.yaml").exists()


def test_an_unreadable_place_is_no_traceback(here, capsys):
    Path("file").write_text("")
    assert init("--out", "file/asys.yaml") == 1
    assert "name another file with --out" in capsys.readouterr().err


def test_the_reader_of_scripts_says_why():
    with pytest.raises(UnreadableScriptError, match="name a training script"):
        read_script(Path("/nowhere/train.py"))


def observed(*command):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = Path("runs").iterdir()
    return sorted(path.name for path in (run_dir / "sae").iterdir())


@pytest.mark.rest
@pytest.mark.parametrize(
    "example",
    ["pytorch", *(pytest.param(name, marks=FURTHER) for name in ("sb3", "transformers_trainer"))],
)
def test_what_is_written_observes_the_script_as_it_is(here, example):
    script = EXAMPLES / f"{example}.py"
    assert init(str(script)) == 0
    hooks = [name.lstrip("*") for name in names(find(read_script(script)).hooks)]
    assert observed("-m", "asys_bench.cli.run", "--config", "asys.yaml") == sorted(hooks)


@pytest.mark.rest
def test_lightning_gets_a_callback_since_it_hides_its_module_from_the_script_host(here, capsys):
    script = EXAMPLES / "lightning_module.py"
    assert init(str(script)) == 0
    said = capsys.readouterr().out
    assert "asys-run --config" not in said.replace("--check --config", "")
    assert 'ObserveCallback("asys.yaml")' in said
    with_callback = (EXAMPLES / "lightning_module_observed.py").read_text()
    with_file = re.sub(
        r"ObserveCallback\(hooks=.*?\)", 'ObserveCallback("asys.yaml")', with_callback
    )
    assert with_file != with_callback
    Path("train.py").write_text(with_file)
    assert observed("train.py") == ["decoder", "encoder.0"]
