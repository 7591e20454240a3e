"""What others import and name stays where it is, whatever folders are called inside."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import asys_bench

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
"""As it is stated, so that an old installation cannot answer for a new tree."""

CONTRACTS = {
    "bus": ("BaseDataBus", "BusCapabilities", "BusClient", "BusError", "BusHandle", "BusOptions",
            "BusPlugin", "BusProducer", "BusSubscription", "Delivery", "GroupSpec"),
    "capture_port": ("Decision",),
    "chain": ("chain_decoder",),
    "host": ("HostPlugin",),
    "launch": ("LaunchSpec",),
    "monitor": ("BaseMonitor", "MonitorPlugin"),
    "names": ("file_slug",),
    "packet": ("ActivationPacket", "Kind", "PacketError", "PacketMeta"),
    "preprocessor": ("KernelPlugin", "Preprocessor"),
    "reporter": ("ReporterPlugin",),
    "scenario": ("MetricSpec", "ScenarioOptions", "ScenarioPlugin"),
    "sink": ("SinkOptions", "SinkPlugin"),
    "stats": ("Slot", "StatsPage"),
    "tensor_memory": (),
}  # fmt: skip
BACKENDS = ("cpp_spmc", "memcpy", "mp_queue", "null", "numba_ring")
KERNELS = ("cast", "fp8", "identity", "int8", "random_projection", "token_sample", "topk")
REPORTERS = ("html", "json", "junit", "markdown", "run_summary", "terminal")
SCENARIOS = (
    "archiver", "burst", "chaos", "closed", "delayed_hook", "killed_consumer", "neighbour", "offline",
    "open_constant", "open_poisson", "recovery", "run_neighbour", "sae_synthetic", "scraped_run",
    "slow_consumer", "trainer_rows", "typed_ppo",
)  # fmt: skip
ENTRY_POINTS = {
    "asys.backend": BACKENDS,
    "asys.device_encoder": KERNELS,
    "asys.host": ("callable", "observed", "ppo", "script", "synthetic", "transformers"),
    "asys.kernel": KERNELS,
    "asys.monitor": ("logging_csv", "prometheus"),
    "asys.reporter": REPORTERS,
    "asys.scenario": SCENARIOS,
    "asys.sink": ("archiver", "sae_trainer", "sae_watch"),
}
COMMANDS = {
    "asys-run": "asys_bench.cli.run:main",
    "asys-i-run": "asys_bench.cli.run:main",
    "asys-bench": "asys_bench.cli.bench:main",
    "asys-i-bench": "asys_bench.cli.bench:main",
}
MODULES_TO_RUN = ("asys_bench", "asys_bench.cli.bench", "asys_bench.cli.check_interop", "asys_bench.cli.run",
                  "asys_bench.config.reference", "asys_bench.conformance")  # fmt: skip
"""`python -m`: in documents and in the Makefile."""


def made_by(module: str) -> set[str]:
    """Names that a module makes; it is not imported, for not all of them can be everywhere (Triton)."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    names: set[str] = set()
    for node in ast.parse(Path(found.origin).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {ast.unparse(target) for target in node.targets}
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
    return names


@pytest.mark.parametrize(
    "name", ["observe", "open_run", "subscribe", "Observation", "Run", "__version__"]
)
def test_the_package_gives_out(name):
    assert getattr(asys_bench, name) is not None
    assert name in dir(asys_bench)


@pytest.mark.parametrize("module", CONTRACTS)
def test_every_contract_is_where_plugins_import_it(module):
    found = importlib.import_module(f"asys_bench.contracts.{module}")
    assert [name for name in CONTRACTS[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("library", ["lightning", "stable_baselines3", "transformers"])
def test_every_callback_is_where_the_documents_say(library):
    pytest.importorskip(library)
    module = importlib.import_module(f"asys_bench.callbacks.{library}")
    assert isinstance(module.ObserveCallback, type)


@pytest.mark.parametrize(
    ("group", "folder", "names"),
    [("asys.backend", "backends", BACKENDS), ("asys.kernel", "kernels", KERNELS)],
)
def test_every_backend_and_kernel_is_a_folder_of_its_own_name(group, folder, names):
    for name in names:
        stated = PROJECT["entry-points"][group][name]
        assert stated.startswith(f"asys_bench.{folder}.{name}.")
        module, _, attribute = stated.partition(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_what_a_new_backend_starts_from_stays():
    """`asys-bench new-plugin` writes these into packages of others."""
    for path in (
        "asys_bench.backends.mp_queue.bus:PythonQueueBus",
        "asys_bench.backends.mp_queue.client:QueueClient",
        "asys_bench.backends.mp_queue.config:MpQueueOptions",
        "asys_bench.registry:registry",
        "asys_bench.conformance:main",
    ):
        module, _, name = path.partition(":")
        assert hasattr(importlib.import_module(module), name), path


@pytest.mark.parametrize("group", ENTRY_POINTS)
def test_every_plugin_has_the_name_that_configurations_and_suites_use(group):
    stated = PROJECT["entry-points"][group]
    assert set(ENTRY_POINTS[group]) <= set(stated)
    for name in ENTRY_POINTS[group]:
        module, _, attribute = stated[name].partition(":")
        assert attribute in made_by(module), name
    installed = {entry.name for entry in entry_points(group=group)}
    assert set(ENTRY_POINTS[group]) <= installed


def test_the_commands_start_where_they_did():
    assert PROJECT["scripts"] == COMMANDS


@pytest.mark.parametrize("module", MODULES_TO_RUN)
def test_modules_that_are_run_by_name_have_a_main(module):
    assert "main" in made_by(f"{module}.__main__" if module == "asys_bench" else module)
