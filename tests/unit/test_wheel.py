"""What a wheel holds, as pyproject.toml configures it: files are matched as the build backend does."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel() -> set[str]:
    """Paths in the wheel, without what the compiler makes."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]["wheel"]
    (package,) = config["packages"]
    left_out = GitIgnoreSpec.from_lines(config["exclude"])
    ignored = GitIgnoreSpec.from_lines((ROOT / ".gitignore").read_text().splitlines())
    return {
        str(path)
        for path in files(ROOT / package, Path(package))
        if not left_out.match_file(path) and not ignored.match_file(path)
    }


def files(folder: Path, shown: Path) -> list[Path]:
    """All of them, those behind links to folders too (backends, kernels, reports, suites, configs)."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += files(path, shown / path.name)
        else:
            found.append(shown / path.name)
    return found


def test_it_holds_the_package_its_plugins_suites_and_configurations(wheel):
    assert {
        "asys_bench/__init__.py",
        "asys_bench/py.typed",
        "asys_bench/backends/cpp_spmc/bus.py",
        "asys_bench/kernels/int8/gpu.py",
        "asys_bench/reports/bench_html/plugin.py",
        "asys_bench/eye/pages/index.html",
        "asys_bench/eye/pages/main.js",
        "asys_bench/_data/suites/sla.yaml",
        "asys_bench/_data/suites/peers.yaml",
        "asys_bench/_data/configs/base.yaml",
        "asys_bench/_data/conformance/test_bus.py",
    } <= wheel


def test_it_holds_no_code_of_comparisons_with_other_libraries(wheel):
    assert (ROOT / "asys_bench/_data/suites/peers/sae.py").is_file()
    assert {path for path in wheel if "suites/peers/" in path} == set()


def test_it_holds_no_sources_of_the_compiled_parts(wheel):
    assert {path for path in wheel if path.endswith((".cpp", ".hpp", "CMakeLists.txt"))} == set()
