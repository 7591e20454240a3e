"""A process's place in its job, as each launcher says it.

The environments are what the launchers were seen to set (torchrun of torch 2.13, Open MPI 4.1.4, Slurm
22.05.8), verl's what its source sets (0.4 with RAY_LOCAL_RANK, 0.6 without).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from asys_bench import __main__ as module_program
from asys_bench.run import script
from asys_bench.system.launcher import LocalRanks, job_name, node_name, tasks_per_node

from .slurm_cluster import SlurmCluster, SlurmUnavailableError

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8",
            "MASTER_PORT": "1", "GROUP_RANK": "1"}  # fmt: skip
SLURM = {"SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7",
         "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
         "SLURM_TASKS_PER_NODE": "16(x2)"}  # fmt: skip
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_SIZE": "4",
            "PMIX_NAMESPACE": "2203320321"}  # fmt: skip
VERL = {"RANK": "11", "WORLD_SIZE": "16", "RAY_LOCAL_RANK": "3", "RAY_LOCAL_WORLD_SIZE": "8",
        "WG_PREFIX": "qzwxec", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "40001"}  # fmt: skip
ORTED = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7",
         "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}  # fmt: skip
"""What `mpirun` in a Slurm job passes on: Slurm knows its own daemon on each node, not the ranks."""


def place(env):
    ranks = LocalRanks.from_environment(env)
    return ranks and (ranks.rank, ranks.local_rank, ranks.local_world_size, ranks.world_size)


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        (TORCHRUN, (5, 1, 4, 8)),
        (SLURM, (9, 1, 8, 16)),
        (OPEN_MPI, (3, 1, 2, 4)),
        (VERL, (11, 3, 8, 16)),
        ({**VERL, "RANK": "10", "RAY_LOCAL_RANK": "2"}, (10, 2, 8, 16)),
        ({k: v for k, v in VERL.items() if k != "RAY_LOCAL_RANK"}, (11, 3, 8, 16)),
        # Several launchers' variables: the innermost is believed.
        ({**SLURM, **TORCHRUN}, (5, 1, 4, 8)),
        ({**ORTED, **OPEN_MPI}, (3, 1, 2, 4)),
        ({**SLURM, **VERL}, (11, 3, 8, 16)),
        ({**OPEN_MPI, **TORCHRUN}, (5, 1, 4, 8)),
        # RANK and LOCAL_RANK that a script exports from Slurm's, as torch's tutorials do.
        ({**SLURM, "RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16"}, (9, 1, 8, 16)),
        # Uneven nodes.
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8,4"}, (9, 1, 4, 12)),
        # A batch script has the allocation's variables and is one process.
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        ({}, None),
    ],
)
def test_each_launchers_variables_say_who_we_are(env, wanted):
    assert place(env) == wanted


@pytest.mark.parametrize(
    "env",
    [
        {**TORCHRUN, "RANK": "x"},
        {**TORCHRUN, "LOCAL_RANK": "4"},
        {**TORCHRUN, "RANK": "-1"},
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x"},
        {**SLURM, "SLURM_NODEID": "2"},
        {**SLURM, "SLURM_LOCALID": "8"},
        {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x999999999999)"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "0"},
        {"RANK": "0", "RAY_LOCAL_WORLD_SIZE": "0"},
    ],
)
def test_variables_that_contradict_each_other_are_passed_over(env):
    assert LocalRanks.from_environment(env) is None


def test_slurms_list_of_tasks_is_one_number_a_node():
    assert tasks_per_node("8(x2)") == [8, 8]
    assert tasks_per_node("8(x2),4,1(x3)") == [8, 8, 4, 1, 1, 1]
    for broken in ("", "8,", "(x2)", "8(x2", "8x2", "-1", "٣"):
        with pytest.raises(ValueError, match="no list of tasks per node"):
            tasks_per_node(broken)


@pytest.mark.parametrize(
    ("env", "sibling", "elsewhere"),
    [
        (TORCHRUN, {"RANK": "4", "LOCAL_RANK": "0"}, {"RANK": "1", "GROUP_RANK": "0"}),
        (SLURM, {"SLURM_PROCID": "8", "SLURM_LOCALID": "0"}, {"SLURM_NODEID": "0"}),
        # --distribution=cyclic: ranks of a node are not consecutive.
        (SLURM, {"SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, {"SLURM_STEP_ID": "1"}),
        (
            OPEN_MPI,
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            {"PMIX_NAMESPACE": "2203320322"},
        ),
        (VERL, {"RANK": "8", "RAY_LOCAL_RANK": "0"}, {"RANK": "3"}),
        (VERL, {"RANK": "8", "RAY_LOCAL_RANK": "0"}, {"WG_PREFIX": "other"}),
    ],
)
def test_ranks_of_a_node_find_each_other_and_nobody_else(env, sibling, elsewhere):
    ranks = LocalRanks.from_environment(env)
    owner = LocalRanks.from_environment({**env, **sibling})
    assert (ranks.is_owner, owner.is_owner) == (False, True)
    assert owner.job == ranks.job
    assert LocalRanks.from_environment({**env, **elsewhere}).job != ranks.job
    assert owner.slot == "host"
    assert ranks.slot == f"host-{ranks.local_rank}"
    assert ranks.slots == [f"host-{n}" for n in range(1, ranks.local_world_size)]


def test_ranks_of_unequal_verl_nodes_have_a_number_each():
    """4 ranks on the first node, 8 on the second, and a verl that does not say which is which."""
    second = [
        LocalRanks.from_environment(
            {"RANK": str(rank), "WORLD_SIZE": "12", "RAY_LOCAL_WORLD_SIZE": "8", "WG_PREFIX": "a"}
        )
        for rank in range(4, 12)
    ]
    assert sorted(ranks.local_rank for ranks in second) == list(range(8))
    assert len({ranks.job for ranks in second}) == 1


@pytest.mark.parametrize(
    ("env", "node"),
    [
        ({}, "0"),
        (TORCHRUN, "1"),
        ({k: v for k, v in TORCHRUN.items() if k != "GROUP_RANK"}, "4"),
        ({**TORCHRUN, "GROUP_RANK": "1", "SLURM_NODEID": "2"}, "1"),
        (SLURM, "1"),
        ({**ORTED, **OPEN_MPI}, "1"),
        (OPEN_MPI, "2"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "1"}, "0"),
    ],
)
def test_a_node_has_a_name_of_its_own(env, node):
    """Open MPI does not number nodes: the first rank's number tells them apart."""
    assert node_name(env) == node


def test_the_schedulers_name_outlives_a_requeue():
    assert job_name({"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "x"}) == "7"
    assert job_name({"TORCHELASTIC_RUN_ID": "none"}) is None


def test_a_script_that_is_one_rank_a_node_has_its_own_source(monkeypatch):
    """With one rank a node each was `asys-run`'s script host, and packets of every node were source 0's."""
    ran = []
    monkeypatch.setattr(script, "observe_script", lambda *call: ran.append(call) or 0)
    one_a_node = {"RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
    for name, value in one_a_node.items():
        monkeypatch.setenv(name, value)
    assert module_program.main(["run", "-c", "c.yaml", "--", "train.py"]) == 0
    assert ran == [("c.yaml", [], ["train.py"])]


ASK = (
    "import json, os\n"
    "from asys_bench.system.launcher import LocalRanks, node_name\n"
    "r = LocalRanks.from_environment()\n"
    "said = [r.rank, r.local_rank, r.local_world_size, r.world_size, node_name(), r.job]\n"
    "os.write(1, (json.dumps(said) + '\\n').encode())\n"
)


def launched(command):
    """What each process that `command` starts says of its place, by rank."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI"))
    }
    done = subprocess.run(
        [*command, sys.executable, "-c", ASK],
        capture_output=True, text=True, timeout=240, env={**clean, "OMPI_MCA_btl": "self,vader"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.rest
def test_a_real_mpirun_says_who_its_ranks_are():
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed (apt-get install openmpi-bin)")
    said = launched(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "3"])
    assert [one[:5] for one in said] == [[n, n, 3, 3, "0"] for n in range(3)]
    (job,) = {one[5] for one in said}
    (other,) = {one[5] for one in launched(["mpirun", "--allow-run-as-root", "-np", "1"])}
    assert job != other, "two jobs on one machine"


@pytest.mark.rest
@pytest.mark.timeout(600)
@pytest.mark.parametrize("distribution", ["block", "cyclic"])
def test_a_real_srun_says_who_its_ranks_are(tmp_path, distribution):
    """Two nodes of one machine; with `cyclic` a node's ranks are not consecutive."""
    try:
        slurm = SlurmCluster(tmp_path).__enter__()
    except SlurmUnavailableError as error:
        pytest.skip(str(error))
    try:
        command = ["srun", "-N2", "-n5", f"--distribution={distribution}"]
        done = subprocess.run(
            [*command, sys.executable, "-c", ASK],
            capture_output=True, text=True, timeout=240, env=slurm.environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = sorted(json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[")
    finally:
        slurm.__exit__(None, None, None)
    nodes = ["0", "0", "0", "1", "1"] if distribution == "block" else ["0", "1", "0", "1", "0"]
    locals_ = [0, 1, 2, 0, 1] if distribution == "block" else [0, 0, 1, 1, 2]
    assert [one[:5] for one in said] == [
        [rank, locals_[rank], 3 if nodes[rank] == "0" else 2, 5, nodes[rank]] for rank in range(5)
    ]
    jobs = {one[4]: {other[5] for other in said if other[4] == one[4]} for one in said}
    assert all(len(names) == 1 for names in jobs.values())
    assert jobs["0"] != jobs["1"]
