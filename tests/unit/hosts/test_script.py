"""The `script` host runs a script as the interpreter would."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from asys_bench.contracts.host import HostError
from asys_bench.hosts.script import ScriptHost, ScriptOptions

SCRIPT = """\
    import sys
    import torch
    import neighbour

    if __name__ == "__main__":
        model = neighbour.Net()
        model.train()
        for _ in range(int(sys.argv[1])):
            model(torch.ones(1, 4))
        neighbour.seen.append((sys.argv, __file__))
"""
NEIGHBOUR = """\
    import torch

    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.body(x)
"""


class Clock:
    """A late clock that only remembers."""

    def __init__(self):
        self.observed = []
        self.should_stop = False
        self.steps_made = 0

    def misfit(self, model):
        return None if hasattr(model, "body") else "no body"

    def observe(self, model, *, called=False):
        self.observed.append(type(model).__name__)
        self.steps_made = 7

    def end(self):
        pass


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "neighbour.py").write_text(textwrap.dedent(NEIGHBOUR))
    before = (list(sys.argv), list(sys.path), sys.modules["__main__"], torch.nn.Module.train)
    yield tmp_path
    sys.modules.pop("neighbour", None)
    assert (sys.argv, sys.path, sys.modules["__main__"], torch.nn.Module.train) == before


def run(**options):
    host = ScriptHost(ScriptOptions(**options), 0)
    assert host.build() is None
    clock = Clock()
    return host.run(clock), clock


def test_it_runs_as_main_with_its_arguments_and_its_neighbours(folder):
    path = str(folder / "train.py")
    result, clock = run(path=path, args=("3", "--flag"))
    assert clock.observed == ["Net"]
    assert result.steps == 7
    assert sys.modules["neighbour"].seen == [([path, "3", "--flag"], path)]


def test_a_module_is_run_as_dash_m_does(folder, monkeypatch):
    monkeypatch.chdir(folder)
    _, clock = run(module="train", args=("1",))
    assert clock.observed == ["Net"]


def test_its_own_error_comes_out_as_it_is(folder):
    (folder / "bad.py").write_text("raise LookupError('mine')\n")
    with pytest.raises(LookupError, match="mine"):
        run(path=str(folder / "bad.py"))


@pytest.mark.parametrize(
    ("end", "fails"), [("0", False), ("None", False), ("3", True), ("'no'", True)]
)
def test_an_exit_code_other_than_0_is_a_failure(folder, end, fails):
    text = textwrap.dedent(SCRIPT) + f"    sys.exit({end})\n"
    (folder / "exits.py").write_text(text)
    if fails:
        with pytest.raises(HostError, match="exited with"):
            run(path=str(folder / "exits.py"), args=("1",))
    else:
        result, _ = run(path=str(folder / "exits.py"), args=("1",))
        assert not result.stopped_early


def test_a_script_without_a_model_is_explained(folder):
    (folder / "none.py").write_text("print('nothing here')\n")
    with pytest.raises(HostError, match=r"none.py ended, but no module was put in train mode"):
        run(path=str(folder / "none.py"))


def test_a_stop_request_is_ctrl_c_in_the_script(folder):
    (folder / "loop.py").write_text(
        textwrap.dedent(SCRIPT).replace("range(int(sys.argv[1]))", "iter(int, 1)")
    )
    host = ScriptHost(ScriptOptions(path=str(folder / "loop.py"), args=("1",)), 0)
    host.build()
    host.request_stop()  # nothing runs yet

    class Stopping(Clock):
        def observe(self, model, *, called=False):
            super().observe(model)
            self.should_stop = True
            host.request_stop()

    assert host.run(Stopping()).stopped_early


def test_a_keyboard_interrupt_that_nobody_asked_for_is_the_scripts_own(folder):
    (folder / "interrupted.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        run(path=str(folder / "interrupted.py"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either `path` or `module`"),
        ({"path": "a.py", "module": "b"}, "either `path` or `module`"),
        ({"path": "nowhere.py"}, "'nowhere.py' is no file"),
        ({"module": "x", "choose": "no_colon"}, "must be `package.module:function`"),
        ({"module": "x", "choose": "nowhere_at_all:f"}, "cannot be loaded"),
        ({"module": "x", "choose": "sys:argv"}, "is a list, not a function"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(HostError, match=message):
        ScriptHost(ScriptOptions(**options), 0).build()
