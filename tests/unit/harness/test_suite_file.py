"""Suites: what they expand to, and every error by file and line before anything is measured."""

from __future__ import annotations

import sys

import pytest

from asys_bench.config.problems import ConfigError
from asys_bench.harness.planning import suite_file as suite_files
from asys_bench.harness.planning.suite_file import load_suite, shipped_suites
from asys_bench.harness.plugins import register_extra, scenario_plugin
from asys_bench.registry import registry

HEAD = "schema: asys.suite/1\nname: test\n"


def problems(suite_file, text, sets=()):
    with pytest.raises(ConfigError) as caught:
        load_suite(suite_file(text), sets)
    return caught.value.problems


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_is_valid(name):
    assert load_suite(f"suites/{name}").contenders


def test_a_matrix_expands_and_the_gate_judges_some_of_it(suite_file):
    text = (
        HEAD
        + """\
references:
  memcpy: {backend: memcpy}
cases:
  - id: bus.throughput
    scenario: offline
    backend: {matrix: [mp_queue, memcpy]}
    gate: mp_queue
    params: {payload_bytes: {matrix: [4096, 65536]}}
    targets: [throughput_gbps.median >= 0.1 x memcpy]
"""
    )
    found = {c.id: c for c in load_suite(suite_file(text)).contenders}
    cases = {name: c for name, c in found.items() if c.role == "case"}
    assert set(cases) == {
        f"bus.throughput[{b},payload_bytes={n}]"
        for b in ("mp_queue", "memcpy") for n in (4096, 65536)
    }  # fmt: skip
    assert {c.backend for c in cases.values() if c.gated} == {"mp_queue"}
    references = [c for c in found.values() if c.role == "reference"]
    assert len(references) == 2, "one per payload, shared by the backends"


def test_a_reference_that_names_no_backend_takes_the_cases_own(suite_file):
    text = (
        HEAD
        + """\
references:
  one_group: {params: {groups: 1}}
cases:
  - id: bus.three
    scenario: offline
    backend: mp_queue
    params: {groups: 3}
    targets: [throughput_gbps.median >= 0.8 x one_group]
"""
    )
    reference = load_suite(suite_file(text)).contenders[-1]
    assert (reference.backend, reference.params["groups"]) == ("mp_queue", 1)


CASE = """\
cases:
  - id: bus.latency
    scenario: open_constant
    backend: mp_queue
    targets:
"""


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (CASE + "      - push_latency_ms.p99 <= 5\n", 8, "unknown metric"),
        (CASE + "      - push_latency_us.p99 >= 5\n", 8, "wrong direction"),
        (CASE + "      - torn_frames.count == 0\n      - push_latency_us.p99.999 <= 5\n", 9,
         "can never decide"),
        (CASE + "      - push_latency_us.p99 <= 5 x nothing\n", 8, "unknown reference"),
        ("cases:\n  - {id: a, scenario: offlin, backend: mp_queue}\n", 4, "no scenario named"),
        ("cases:\n  - {id: a, scenario: offline, backend: mp_quue}\n", 4, "no backend named"),
        ("cases:\n  - {id: a, scenario: offline}\n", 4, "needs a backend"),
        ("cases:\n  - {id: a, scenario: closed, pipeline: nowhere.yaml}\n", 4, "no such file"),
        ("cases:\n  - {id: a, scenario: offline, backend: mp_queue, params: {grops: 2}}\n", 4,
         "Extra inputs"),
        ("cases:\n  - {id: a, scenario: offline, backend: mp_queue, gate: numba}\n", 4,
         "is no member"),
        ("cases:\n  - {id: a, scenario: trainer_rows, rounds: 3,"
         " targets: [rows_per_s.median >= 1]}\n", 4, "can never decide"),
        ("environment: {temperature: {max: 60}}\n"
         "cases: [{id: a, scenario: trainer_rows}]\n", 3, "no such check"),
        ("casess: []\ncases: [{id: a, scenario: trainer_rows}]\n", 3, "unknown key"),
        ("cases: [{id: a, scenario: trainer_rows}, {id: a, scenario: archiver}]\n", 3, "used twice"),
    ],
)  # fmt: skip
def test_errors_have_file_and_line(suite_file, text, line, says):
    found = problems(suite_file, HEAD + text)
    assert any(says in p.message and p.line == line for p in found), "\n".join(map(str, found))
    assert all(p.file.endswith("suite.yaml") for p in found)


def test_overrides_reach_every_field(suite_file):
    text = HEAD + "cases: [{id: a, scenario: trainer_rows}]\n"
    loaded = load_suite(suite_file(text), ["defaults.rounds=3", "seed=9"])
    assert loaded.contenders[0].rounds == 3
    assert loaded.suite.seed == 9
    assert loaded.sha256 != load_suite(suite_file(text)).sha256


def test_a_plugin_that_is_no_entry_point_is_named_in_the_suite(suite_file):
    text = HEAD + "plugins: {scenario: ['nowhere.at_all:plugin']}\ncases: [{id: a, scenario: x}]\n"
    (problem,) = problems(suite_file, text + "allow_dotted_plugins: true\n")
    assert "'nowhere.at_all:plugin' does not import: ModuleNotFoundError" in problem.message
    assert problem.line == 3


OWN = """\
from asys_bench.contracts.scenario import ScenarioOptions, ScenarioPlugin

from .names import NAME

plugin = ScenarioPlugin(name=NAME, summary="of a file", options=ScenarioOptions, takes="nothing",
                        metrics={}, run=lambda context: None)
"""


@pytest.fixture
def own_scenario(suite_file, monkeypatch):
    """A suite beside a folder `mine` with a scenario in it."""
    monkeypatch.setattr(registry("scenario"), "_loaded", {})
    text = HEAD + "allow_dotted_plugins: true\nplugins:\n  scenario:\n    - PLACE\n"
    path = suite_file(text + "cases: [{id: a, scenario: of_a_file}]\n")
    mine = path.parent / "mine"
    mine.mkdir()
    (mine / "names.py").write_text("NAME = 'of_a_file'\n")
    (mine / "scenario.py").write_text(OWN)

    def suite(place):
        path.write_text(path.read_text().replace("PLACE", place))
        return path

    return suite


def test_a_suite_names_a_scenario_by_a_file_beside_it(own_scenario, monkeypatch):
    path = own_scenario("mine/scenario.py:plugin")
    loaded = load_suite(path)
    assert [c.scenario for c in loaded.contenders] == ["of_a_file"]
    assert loaded.plugins == {"scenario": (f"{path.parent}/mine/scenario.py:plugin",)}
    assert load_suite(path).sha256 == loaded.sha256

    monkeypatch.chdir("/")  # a round's process has a working directory of its own
    registry("scenario")._loaded.clear()
    register_extra(loaded.plugins)
    assert scenario_plugin("of_a_file").summary == "of a file"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("mine/none.py:plugin", "'mine/none.py' is not in the suite's folder"),
        ("../outside.py:plugin", "'../outside.py' is not below the suite's folder"),
        ("mine/link.py:plugin", "'mine/link.py' is not below the suite's folder"),
        ("mine/broken.py:plugin", "does not import: ZeroDivisionError: division by zero"),
        ("mine/scenario.py:other", "has no 'other'"),
    ],
)
def test_a_plugin_file_that_is_missing_outside_or_broken_is_an_error_at_its_line(
    own_scenario, tmp_path_factory, place, says
):
    path = own_scenario(place)
    outside = tmp_path_factory.mktemp("outside") / "outside.py"
    outside.write_text("raise SystemExit('it must not run')\n")
    (path.parent / "mine/link.py").symlink_to(outside)
    (path.parent / "mine/broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        load_suite(path)
    (problem,) = caught.value.problems
    assert says in problem.message
    assert (problem.file, problem.line) == (str(path), 6)
    assert "file.py:object with a path below the suite's folder" in problem.fix


def test_an_installed_package_without_the_peers_says_what_to_do(tmp_path, monkeypatch):
    shipped = tmp_path / "installed/suites"
    shipped.mkdir(parents=True)
    (shipped / "peers.yaml").write_bytes((suite_files.SHIPPED / "peers.yaml").read_bytes())
    monkeypatch.setattr(suite_files, "SHIPPED", shipped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_suite("suites/peers.yaml")
    assert len(caught.value.problems) == 8
    first = caught.value.problems[0]
    assert "'peers/sae.py' is not in the suite's folder" in first.message
    assert "run the suite from a checkout" in first.fix
    assert first.file.endswith("peers.yaml")
    assert first.line == 1 + (shipped / "peers.yaml").read_text().splitlines().index(
        "    - peers/sae.py:sae_lens"
    )


def test_code_that_a_suite_names_by_dotted_path_is_not_imported_unless_that_is_allowed(suite_file):
    text = HEAD + "plugins: {scenario: ['antigravity:x']}\ncases: [{id: a, scenario: x}]\n"
    (problem,) = problems(suite_file, text)
    assert "entry-point name only" in problem.message
    assert "allow_dotted_plugins" in problem.fix
    assert problem.line == 3
    assert "antigravity" not in sys.modules


def test_a_backend_that_does_not_load_is_unavailable_and_an_unknown_one_a_problem(
    suite_file, monkeypatch
):
    """Whatever the reason says that it does not load."""
    text = HEAD + "cases:\n  - {id: a, scenario: offline, backend: NAME}\n"
    (problem,) = problems(suite_file, text.replace("NAME", "nope"))
    assert problem.message.startswith("no backend named 'nope'")
    backends = registry("backend")
    monkeypatch.delitem(backends._loaded, "numba_ring", raising=False)
    monkeypatch.setitem(backends._failed, "numba_ring", "ImportError: no backend named x")
    (case,) = load_suite(suite_file(text.replace("NAME", "numba_ring"))).contenders
    assert "does not load: ImportError: no backend named x" in case.unavailable
