"""What a wheel holds, that it is built for any processor of its kind, and that it works where no compiler is.

What is held is told from pyproject.toml as the build backend reads it; tests marked `rest` build wheels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.version import Version
from pathspec import GitIgnoreSpec

import asys_bench

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


# ---- the version and what it is built with


def test_the_version_is_written_once_and_the_changelog_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    assert not re.search(r"project\([^)]*\bVERSION\b", (ROOT / "CMakeLists.txt").read_text())
    (version,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "asys_bench/__init__.py").read_text(), re.M
    )
    assert version == asys_bench.__version__
    top, *before = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    if top != "Unreleased":
        assert top == version
    released = [Version(heading) for heading in before]
    assert released == sorted(released, reverse=True)
    assert all(one < Version(version) for one in released), "the version of the next release"


def statements(text):
    """Of a CMakeLists.txt, without comments."""
    return re.findall(r"\w+\s*\([^()]*(?:\([^()]*\)[^()]*)*\)", re.sub(r"#.*", "", text))


def test_only_files_that_are_chosen_at_run_time_are_compiled_for_more_than_any_x86_64():
    """A wheel that was built with -march=native dies of SIGILL on the next machine."""
    of_processor = re.compile(r"(?<![\w-])-m\w[^\s;\")]*")
    found = {}
    for path in ROOT.rglob("CMakeLists.txt"):
        if (
            path.relative_to(ROOT).parts[0] in {"build", ".venv", ".venv-wheel"}
            or path.is_symlink()
        ):
            continue
        for statement in statements(path.read_text()):
            if flags := of_processor.findall(statement):
                found[statement.split()[0]] = flags
    assert found == {
        "set_source_files_properties(compiled/avx2.cpp": ["-mavx2", "-mf16c"],
        "set_source_files_properties(compiled/avx512.cpp": [
            "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
        ],
    }  # fmt: skip
    assert "-march" not in (ROOT / "pyproject.toml").read_text()


def test_cibuildwheels_images_are_pinned():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    for processor in ("x86_64", "aarch64"):
        image = config[f"manylinux-{processor}-image"]
        assert re.fullmatch(
            rf"quay\.io/pypa/manylinux_2_28_{processor}:\d{{4}}\.\d\d\.\d\d-\d", image
        )


# ---- real builds


TOOLS = ROOT / ".venv-wheel" / "bin"
"""What `make wheel` and `make test-rest` install."""
needs_tools = pytest.mark.skipif(not TOOLS.exists(), reason="make wheel installs the tools")


def tool(*words, cwd=ROOT, **more):
    environment = {
        **os.environ,
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "ASYS_REQUIRE_CPP": "1",
        **more,
    }
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=500, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def built(source, folder, **environment):
    """The wheel of a source tree, without network."""
    tool(
        *(TOOLS / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--no-index", "-C", f"build-dir={folder / 'tree'}", "-w", folder / "wheels", source),
        **environment,
    )
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def from_tree(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("from_tree"))


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


COMPILED = {
    "asys_bench/backends/cpp_spmc/_spmc",
    "asys_bench/cluster/native/_arrivals",
    "asys_bench/contracts/native/_coin",
    "asys_bench/contracts/native/_steps",
    "asys_bench/kernels/simd/_simd",
    "asys_bench/sae/kernels/native/_kernels",
}


@pytest.mark.rest
@needs_tools
def test_a_built_wheel_holds_these_files_and_the_compiled_modules(wheel, from_tree):
    names = {name for name in contents(from_tree) if ".dist-info/" not in name}
    assert {name.split(".")[0] for name in names - wheel} == COMPILED
    assert wheel - names == set()


@pytest.mark.rest
@needs_tools
def test_an_sdist_is_complete_the_wheel_from_it_is_the_wheel_from_the_tree(from_tree, tmp_path):
    tool(TOOLS / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    theirs, ours = (
        contents(built(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)),
        contents(from_tree),
    )
    assert theirs.keys() == ours.keys()
    differ = {name for name in ours if theirs[name] != ours[name]}
    assert {name for name in differ if not name.endswith((".so", "/RECORD"))} == set()


@pytest.mark.rest
@needs_tools
def test_cibuildwheel_takes_the_configuration():
    said = tool(TOOLS / "cibuildwheel", "--platform", "linux", "--print-build-identifiers", ROOT)
    assert set(said.split()) == {
        f"cp3{minor}-manylinux_{processor}"
        for minor in (11, 12)
        for processor in ("x86_64", "aarch64")
    }


# ---- installed where no compiler is on PATH


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it. PATH has its commands, a shell and what mounts a file system."""

    folder: Path

    def run(self, *words, timeout_s=500):
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("CC", "CXX", "VIRTUAL_ENV") and not name.startswith(("PYTHON", "ASYS"))
        }
        environment["PATH"] = f"{self.folder / 'bin'}:{self.folder / 'tools'}"
        command = [str(self.folder / "bin" / words[0]), *map(str, words[1:])]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
            cwd=self.folder,
        )


def environment_with(wheel, folder):
    """torch and the rest come from this interpreter's environment, A-Sys-I from the wheel."""
    tool(sys.executable, "-m", "venv", "--without-pip", folder)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (folder / "tools").mkdir()
    for name in ("sh", "true", "mount", "unshare"):
        if there := shutil.which(name):
            (folder / "tools" / name).symlink_to(there)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    tool(
        *(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"),
        *("--no-deps", "--no-index", wheel),
    )
    return Installed(folder)


@pytest.fixture(scope="module")
def installed(from_tree, tmp_path_factory):
    """The repaired wheel."""
    folder = tmp_path_factory.mktemp("installed")
    tool(TOOLS / "auditwheel", "repair", "--wheel-dir", folder / "dist", from_tree)
    (wheel,) = (folder / "dist").glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_x86_64\.whl$", wheel.name)
    return environment_with(wheel, folder / "venv")


NO_COMPILER = """\
import json, shutil, sys
import asys_bench
from asys_bench.harness.faults.signals import ClockStep
from asys_bench.harness.faults.fault import ChaosOptions
print(json.dumps({
    "package": asys_bench.__file__,
    "compilers": [name for name in ("cc", "c++", "gcc", "g++", "clang", "clang++") if shutil.which(name)],
    "clock_step": ClockStep.unavailable(ChaosOptions(fault="clock_step")),
}))
"""


@pytest.mark.rest
@needs_tools
def test_installed_without_a_compiler_it_is_whole_and_says_what_needs_one(installed):
    done = installed.run("python", "-P", "-c", NO_COMPILER)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(installed.folder)
    assert found["compilers"] == []
    assert "takes a C compiler" in found["clock_step"]
    said = installed.run("asys-bench", "doctor").stdout
    assert "compiled module loads" in said
    assert "pure-Python install" not in said


@pytest.mark.rest
@needs_tools
def test_installed_without_a_compiler_a_run_uses_the_cpp_ring(installed):
    done = installed.run(
        *("asys-run", "--config", "demo.yaml", "--set", "bus.backend=cpp_spmc"),
        *("--set", "run.dir=runs", "--set", "host.options.ppo.total_timesteps=4096"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = (installed.folder / "runs").iterdir()
    assert "\n  backend: cpp_spmc" in (path / "config.yaml").read_text()
    bus = asys_bench.open_run(path).summary["bus"]
    assert bus["produced"] > 0
    assert {group["imbalance"] for group in bus["groups"]} == {0}


@pytest.mark.rest
@needs_tools
@pytest.mark.timeout(900)
def test_installed_without_a_compiler_the_cpp_ring_conforms(installed):
    done = installed.run(
        "python",
        "-P",
        "-m",
        "asys_bench.conformance",
        "cpp_spmc",
        "-q",
        "-m",
        "not rest",
        timeout_s=800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"\d+ passed", done.stdout)


PLAIN = """\
import json, torch
from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.coin import compiled_toss
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.simd import native
from asys_bench.registry import registry
from asys_bench.sae.kernels.choice import _work
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
def int8(name, x=torch.linspace(-1, 1, 37 * 129).reshape(37, 129)):
    out = bytearray(Int8Preprocessor(name).encoded_bytes(x))
    Int8Preprocessor(name).encode(x, memoryview(out))
    return out
work = _work(64, 96, 512, 8, torch.device("cpu"))
made = [work(kernels()) for kernels in (CompiledKernels, SparseKernels)]
print(json.dumps({
    "ring": registry("backend").get("cpp_spmc", BusPlugin).unavailable(),
    "coin": compiled_toss is not None,
    "sets": [*native.instruction_sets()],
    "int8": all(int8(name) == int8("torch") for name in native.instruction_sets()),
    "sae": max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*made)),
}))
"""


@pytest.mark.rest
@needs_tools
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
def test_a_wheel_runs_on_a_processor_without_avx(installed):
    """Nehalem, of 2008: numpy's own wheels ask for no less. An instruction beyond it would be SIGILL."""
    emulator = installed.folder / "bin" / "qemu"
    emulator.symlink_to(shutil.which("qemu-x86_64"))
    done = installed.run(
        "qemu", "-cpu", "Nehalem", installed.folder / "bin/python", "-P", "-c", PLAIN
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ring"], found["coin"], found["sets"], found["int8"]) == (
        None,
        True,
        ["scalar"],
        True,
    )
    assert found["sae"] < 1e-5


PURE = """\
import json
import asys_bench
from asys_bench.contracts.bus import BusPlugin
from asys_bench.contracts.coin import compiled_toss
from asys_bench.kernels.simd import native
from asys_bench.registry import registry
from asys_bench.sae.kernels.native import unavailable
backends = {name: registry("backend").get(name, BusPlugin).unavailable() for name in ("cpp_spmc", "mp_queue")}
found = [asys_bench.__file__, backends, unavailable(), [*native.instruction_sets()], compiled_toss is None]
print(json.dumps(found))
"""


@pytest.mark.rest
@needs_tools
def test_without_a_compiler_a_build_is_pure_python_and_names_the_fix(wheel, tmp_path):
    pure = built(ROOT, tmp_path, CXX="no-such-compiler", ASYS_REQUIRE_CPP="")
    assert pure.name.endswith("-py3-none-any.whl")
    assert {name for name in contents(pure) if ".dist-info/" not in name} == wheel
    environment = environment_with(pure, tmp_path / "venv")
    done = environment.run("python", "-P", "-c", PURE)
    assert done.returncode == 0, done.stderr
    package, backends, sae, sets, is_plain_coin = json.loads(done.stdout)
    assert Path(package).is_relative_to(tmp_path)
    assert "install a C++20 compiler and reinstall with ASYS_REQUIRE_CPP=1" in backends["cpp_spmc"]
    assert backends["mp_queue"] is None
    assert "training goes on with torch's operators" in sae
    assert (sets, is_plain_coin) == ([], True)
    with pytest.raises(AssertionError, match="CMake configuration failed"):
        built(ROOT, tmp_path / "required", CXX="no-such-compiler")
