"""What a pool is made from, and what is said of nodes with other versions. Ray itself: tests/ray."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

import pytest

from asys_bench.cluster.pool import PoolError, PoolSpec
from asys_bench.cluster.pool_actors import receiver_name
from asys_bench.cluster.ray_cluster import RayUnavailableError, joined, version_problem, versions
from asys_bench.config import ConfigError, config_from_data, load_config

HOST = {"kind": "synthetic"}


def spec(tmp_path, **pool) -> PoolSpec:
    pool = {"book": str(tmp_path / "book"), **pool}
    return PoolSpec.of(config_from_data({"host": HOST, "pool": pool, "run": {"dir": "runs"}}))


def test_a_pool_has_one_receiver_of_every_hook_unless_groups_are_named(tmp_path):
    assert {name: dict(group) for name, group in spec(tmp_path).groups.items()} == {
        "all": {"hooks": ["*"], "cpus": 1.0, "gpus": 0.0}
    }
    groups = {"early": {"hooks": "layers.0*", "gpus": 1}, "late": {"hooks": ["a", "b"], "cpus": 4}}
    found = spec(tmp_path, groups=groups).groups
    assert found["early"] == {"hooks": ["layers.0*"], "cpus": 1.0, "gpus": 1.0}
    assert found["late"] == {"hooks": ["a", "b"], "cpus": 4.0, "gpus": 0.0}


def test_places_are_those_of_the_command_wherever_the_receivers_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = spec(tmp_path, book="book", keys="keys")
    assert (made.book, made.keys) == (f"{tmp_path}/book", f"{tmp_path}/keys")
    assert (made.run_dir, made.cwd) == (f"{tmp_path}/runs", str(tmp_path))
    assert spec(tmp_path, book="s3://bucket/book").book == "s3://bucket/book"
    assert spec(tmp_path).keys == ""


def test_a_receiver_has_the_time_that_the_configuration_gives_its_workers(tmp_path):
    run, watchdog = {"dir": "runs", "drain_timeout_s": 45}, {"startup_timeout_s": 200}
    data = {"host": HOST, "pool": {"book": str(tmp_path)}, "run": run, "watchdog": watchdog}
    made = PoolSpec.of(config_from_data(data))
    assert (made.startup_s, made.drain_s) == (200.0, 45.0)


def test_the_configuration_travels_whole(tmp_path):
    made = spec(tmp_path, groups={"early": {"hooks": ["a"]}})
    (tmp_path / "again.yaml").write_text(made.config)
    again = PoolSpec.of(load_config(tmp_path / "again.yaml").config)
    assert again.digest == made.digest
    other = replace(made, idle_ttl_s=5.0)
    assert other.digest != made.digest
    assert replace(made, versions={"torch": "1"}).digest == made.digest


def test_without_an_address_book_there_is_no_pool(tmp_path):
    with pytest.raises(PoolError, match=r"pool\.book is missing"):
        spec(tmp_path, book=None)
    with pytest.raises(PoolError, match=r"pool\.book: ftp://x: an address book is in a folder"):
        spec(tmp_path, book="ftp://x")


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        ({"groups": {}}, r"pool\.groups"),
        ({"groups": {"early": {"hooks": []}}}, r"hooks"),
        ({"groups": {"Early": {}}}, r"Early"),
        ({"groups": {"early": {"gpus": -1}}}, r"gpus"),
        ({"nodes": 3}, "unknown key `nodes`"),
    ],
)
def test_a_wrong_pool_is_refused_with_its_field(tmp_path, pool, why):
    with pytest.raises(ConfigError, match=why):
        spec(tmp_path, **pool)


def test_receivers_of_two_pools_never_have_one_name():
    """Names of pools and groups have no dot."""
    assert receiver_name("a-b", "c") != receiver_name("a", "b-c")


def test_other_versions_are_named_on_both_sides():
    ours = versions()
    assert ours.keys() == {"asys-i", "torch", "Python"}
    assert version_problem(ours, ours, "n1") is None
    problem = version_problem({**ours, "torch": "2.12.0"}, {**ours, "torch": "2.13.0"}, "n1")
    assert problem is not None
    assert "node n1" in problem
    assert "torch 2.12.0 there, 2.13.0 here" in problem
    assert "asys-i" not in problem
    assert "Python none there" in str(version_problem({}, ours, "n1"))


class Fake:
    """A module `ray` that replaces signal handlers, as Ray does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, []

    def is_initialized(self) -> bool:
        return False

    def init(self, **options) -> None:
        self.calls.append(options)
        signal.signal(signal.SIGTERM, lambda *_: None)
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def fake(monkeypatch):
    def make(error: Exception | None = None) -> Fake:
        ray = Fake(error)
        monkeypatch.setattr("asys_bench.cluster.ray_cluster._module", lambda: ray)
        return ray

    return make


def test_rays_signal_handlers_are_taken_back(fake):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    ray = fake()
    with joined("auto") as found:
        assert found is ray
        assert signal.getsignal(signal.SIGTERM) == before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert ray.calls[0]["address"] == "auto"
    assert ray.calls[-1] == "shutdown"
    assert "runtime_env" not in ray.calls[0]


def test_where_there_is_no_cluster_the_command_says_what_to_do_and_keeps_its_handlers(fake):
    before = signal.getsignal(signal.SIGTERM)
    fake(ConnectionError("Could not find any running Ray instance.\nMore."))
    with (
        pytest.raises(RayUnavailableError, match=r"any running Ray instance; .*ray start --head"),
        joined("auto"),
    ):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RayUnavailableError, match=r"pip install 'asys-i\[ray\]'"), joined("auto"):
        pass


def test_a_client_address_is_refused_with_the_reason(fake):
    ray = fake()
    with pytest.raises(RayUnavailableError, match="run the command on a node"), joined("ray://h:1"):
        pass
    assert ray.calls == []
