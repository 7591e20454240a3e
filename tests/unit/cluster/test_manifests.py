"""The files of docs/examples/cluster are what their readers take: Kubernetes, its operators, systemd, Slurm's
shell, and our own configuration.

Of custom resources `crd_schemas/` has the operators' own fields (KubeRay 1.1 to 1.7, JobSet 0.8 and later),
written after their Go types; templates of pods and jobs are checked as what they become.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from asys_bench.cli.run import main
from asys_bench.config import load_config

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs/examples/cluster"
SCHEMAS = Path(__file__).parent / "crd_schemas"
VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: the oldest with the API that JobSet 0.8 asks for, and the newest known."""
DOCUMENTS = [
    pytest.param(document, id=f"{path.name}:{document['kind']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if "apiVersion" in document
]


def built_in(document):
    """What of a document is of Kubernetes' own types, as documents of their own."""
    kind, spec = document["kind"], document["spec"]
    if kind == "JobSet":
        for job in spec["replicatedJobs"]:
            yield {"apiVersion": "batch/v1", "kind": "Job",
                   "metadata": {"name": f"{document['metadata']['name']}-{job['name']}-0"},
                   **job["template"]}  # fmt: skip
    elif kind in ("RayCluster", "RayJob"):
        cluster = spec if kind == "RayCluster" else spec.get("rayClusterSpec", {})
        groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())] if cluster else []
        for n, group in enumerate(groups):
            template = copy.deepcopy(group["template"])
            template["metadata"] = {**template.get("metadata", {}), "name": f"pod-{n}"}
            yield {"apiVersion": "v1", "kind": "Pod", **template}
    else:
        yield document


def check_jsonschema(schema, *paths):
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), *map(str, paths)],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def containers(document):
    for one in built_in(document):
        spec = one.get("spec", {})
        spec = spec["template"]["spec"] if one["kind"] == "Job" else spec
        yield from ((one, spec, c) for c in spec.get("containers", ()))


def test_there_are_manifests_of_each_kind():
    kinds = {parameter.values[0]["kind"] for parameter in DOCUMENTS}
    assert kinds == {"JobSet", "NetworkPolicy", "PersistentVolumeClaim", "RayCluster", "RayJob"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_kubernetes_takes_every_pod_job_and_policy(document, version):
    for one in built_in(document):
        kubernetes_validate.validate(one, version, strict=True)


def replicated(document, index):
    return document["spec"]["replicatedJobs"][index]


@pytest.mark.parametrize(
    ("kind", "breaks"),
    [
        ("JobSet", lambda d: d["spec"]["network"].update(dns=True)),
        ("JobSet", lambda d: replicated(d, 1)["dependsOn"][0].update(status="Up")),
        ("JobSet", lambda d: replicated(d, 0).pop("template")),
        ("RayCluster", lambda d: d["spec"].pop("headGroupSpec")),
        ("RayCluster", lambda d: d["spec"].update(rayVersion=2.6)),
        ("RayJob", lambda d: d["spec"].update(shutdownAfterJobFinishes=True)),
        ("RayJob", lambda d: d["spec"].update(entryPoint="x")),
    ],
)
def test_the_operators_take_their_resources_and_not_a_broken_one(kind, breaks):
    (found,) = [p.values[0] for p in DOCUMENTS if p.values[0]["kind"] == kind]
    check = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text()))
    assert check.is_valid(found)
    broken = copy.deepcopy(found)
    breaks(broken)
    assert not check.is_valid(broken)


@pytest.mark.rest
@pytest.mark.parametrize("kind", ["JobSet", "RayCluster", "RayJob"])
def test_check_jsonschema_agrees(tmp_path, kind):
    (found,) = [p.values[0] for p in DOCUMENTS if p.values[0]["kind"] == kind]
    (tmp_path / "resource.json").write_text(json.dumps(found))
    said = check_jsonschema(SCHEMAS / f"{kind}.json", tmp_path / "resource.json")
    assert said.returncode == 0, said.stdout


def test_a_field_that_kubernetes_does_not_know_would_be_found():
    (document,) = [p.values[0] for p in DOCUMENTS if p.values[0]["kind"] == "RayCluster"]
    (_, pod) = built_in(document)
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[0], strict=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_mount_is_a_volume_and_every_volume_is_mounted(document):
    for one in built_in(document):
        pod = one["spec"]["template"]["spec"] if one["kind"] == "Job" else one.get("spec", {})
        users = [*pod.get("containers", ()), *pod.get("initContainers", ())]
        mounted = {mount["name"] for user in users for mount in user.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_listens_to_the_network_has_keys_and_few_rights(document):
    for _, spec, container in containers(document):
        words = [*container.get("command", ()), *container.get("args", ())]
        if "receive" in words:
            assert any(word.startswith("--keys=") for word in words)
            assert spec["securityContext"]["runAsNonRoot"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_is_given_longer_than_its_receiver_takes_to_drain():
    drain_s = yaml.safe_load((FOLDER / "trainers.yaml").read_text())["run"]["drain_timeout_s"]
    given = re.findall(r"terminationGracePeriodSeconds: (\d+) +# longer than run.drain_timeout_s",
                       "".join(path.read_text() for path in FOLDER.glob("*.yaml")))  # fmt: skip
    assert len(given) == 2
    unit = (FOLDER / "asys-receive.service").read_text()
    given += re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert all(int(seconds) > drain_s for seconds in given)


def test_systemd_takes_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    text = (FOLDER / "asys-receive.service").read_text()
    unit = tmp_path / "asys-receive.service"
    unit.write_text(text.replace("/opt/asys/bin/asys-run", "/bin/true"))
    command = ["systemd-analyze", "verify", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240)
    ours = [line for line in (said.stdout + said.stderr).splitlines() if "asys-receive" in line]
    assert ours == []
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMood=mixed"))
    said = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "KillMood" in said.stdout + said.stderr


def test_the_batch_script_is_a_shells():
    said = subprocess.run(
        ["bash", "-n", str(FOLDER / "job.sbatch")], capture_output=True, text=True
    )
    assert (said.returncode, said.stderr) == (0, "")


def test_the_configurations_are_ours(tmp_path, monkeypatch):
    """As asys-run takes them, with keys in another folder."""
    keys = tmp_path / "keys"
    assert main(["keys", str(keys), "--client", "train"]) == 0
    host = load_config(FOLDER / "host.yaml", [f"sinks.remote.options.keys={keys}"]).config
    assert {name: sink.kind for name, sink in host.enabled_sinks.items()} == {
        "archive": "archiver",
        "remote": "forwarder",
    }
    sets = ["host.kind=receiver", "host.options.receiver.listen=0.0.0.0:7400"]
    sets += [f"host.options.receiver.keys={keys}"]
    trainers = load_config(FOLDER / "trainers.yaml", sets).config
    assert [*trainers.enabled_sinks] == ["trainer"]
    pool = load_config(FOLDER / "pool.yaml", [*sets, f"pool.keys={keys}"]).config
    assert pool.to_plain()["pool"]["groups"].keys() == {"early", "late"}
