"""`asys-run receive` says with options what `asys-run` says with --set; `asys-run keys` never overwrites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asys_bench.cli.commands import run_receive
from asys_bench.cli.run import COMMANDS, main
from asys_bench.cluster.keys import KeyFileError, allowed_clients, make_keys, read_key, read_pair
from asys_bench.cluster.options import ReceiverOptions
from asys_bench.config import ConfigError, load_config

TRAINERS = "run: {dir: runs}\nbus: {backend: cpp_spmc}\nsinks: {archive: {kind: archiver}}\n"


@pytest.fixture
def trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trainers.yaml"
    path.write_text(TRAINERS)
    return path


def options_of(*argv: str) -> tuple[ReceiverOptions, str]:
    line = run_receive.command_line(COMMANDS.parser("receive").parse_args(list(argv)))
    config = load_config(line[1], line[3::2]).config
    options = config.host.plugin_options()
    assert isinstance(options, ReceiverOptions)
    return options, f"{config.run.resume}/{config.run.id}"


def test_options_become_those_of_the_receiver_and_the_run_goes_on_by_its_name(
    trainers: Path, tmp_path: Path
) -> None:
    make_keys(tmp_path / "keys")
    options, run = options_of(
        "--config", str(trainers), "--listen", "0.0.0.0:7000", "--name", "gpu-3", "--hooks", "layers.1*",
        "head", "--job", "4711", "--keys", str(tmp_path / "keys"), "--book", "book", "--generation", "7",
        "--advertise", "node3:7001", "--lifeline-fd", "9", "--set", "host.options.receiver.window_mib=8",
    )  # fmt: skip
    assert run == "auto/gpu-3"
    assert options.hooks == ("layers.1*", "head")
    assert (options.listen, options.job, options.generation) == ("0.0.0.0:7000", "4711", 7)
    assert (options.lifeline_fd, options.window_mib, options.advertise) == (9, 8.0, "node3:7001")


def test_without_options_it_listens_on_loopback_and_needs_no_hooks(trainers: Path) -> None:
    options, run = options_of("--config", str(trainers))
    assert (options.listen, options.name, run) == ("127.0.0.1:0", "receiver", "auto/receiver")


def test_sinks_without_hooks_are_refused_for_a_host_with_a_model(trainers: Path) -> None:
    with pytest.raises(ConfigError, match="must not be empty while sinks are enabled"):
        load_config(trainers, ["host.kind=synthetic"])


def test_an_address_that_is_not_loopback_is_refused_without_keys(
    trainers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["receive", "--config", str(trainers), "--listen", "0.0.0.0:0"])
    assert code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "is not on loopback, and without keys anybody could connect" in told


def test_keys_are_private_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert main(["keys", str(folder), "--client", "a", "--client", "b"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    before = read_key(folder / "receiver.public")
    assert os.stat(folder / "a.secret").st_mode & 0o777 == 0o600
    assert set(allowed_clients(folder).values()) == {"a", "b"}
    assert main(["keys", str(folder), "--client", "a"]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert main(["keys", str(folder), "--client", "c"]) == 0
    assert read_key(folder / "receiver.public") == before
    assert main(["keys", str(folder), "--client", "../x"]) == 2


def test_a_secret_that_others_can_read_and_a_file_that_is_no_key_are_refused(
    tmp_path: Path,
) -> None:
    make_keys(tmp_path)
    (tmp_path / "client.secret").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_pair(tmp_path, "client")
    (tmp_path / "client.public").write_text("short")
    with pytest.raises(KeyFileError, match="no key in Z85"):
        read_key(tmp_path / "client.public")
    (tmp_path / "allowed/x.public").write_text("nonsense")
    assert set(allowed_clients(tmp_path).values()) == {"client"}
