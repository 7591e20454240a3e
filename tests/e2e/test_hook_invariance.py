"""The host computes the same with and without us, to the last bit: outputs, weights, random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch._dynamo
from torch.utils.checkpoint import checkpoint

from asys_bench.capture.hooker import ActivationHooker
from asys_bench.capture.points.hookpoints import resolve
from asys_bench.capture.tags.clock import StepClock
from asys_bench.config import config_from_data
from asys_bench.config.assembly import build_preprocessor, create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.bus import GroupSpec
from asys_bench.contracts.packet import Kind
from asys_bench.contracts.stats import StatsPage
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession
from asys_bench.sinks.archive.reader import open_archive

KINDS = [kind.name.lower() for kind in Kind]
STEPS = 4

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Attention(torch.nn.Module):
    """Reads its input three times: gradients are summed in an order that shows in the last bit."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        return torch.softmax(self.q(x) @ self.k(x).mT / 4, -1) @ self.v(x)


class Layer(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.attention = torch.nn.LayerNorm(width), Attention(width)
        self.up, self.down = torch.nn.Linear(width, 32), torch.nn.Linear(32, width)
        self.activation, self.drop = torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.2)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.drop(self.down(self.activation(self.up(x))))


class Host(torch.nn.Module):
    """The same layer twice, checkpointed if asked, and a head that shares a weight with it."""

    def __init__(self, checkpointed):
        super().__init__()
        self.layer, self.head = Layer(16), torch.nn.Linear(16, 32)
        self.head.weight = self.layer.up.weight
        self.checkpointed = checkpointed

    def forward(self, x):
        for _ in range(2):
            x = (
                checkpoint(self.layer, x, use_reentrant=False)
                if self.checkpointed
                else self.layer(x)
            )
        return self.head(x)


class Hooks:
    """The production hooks over the whole model, on a bus that nobody reads and that fills up."""

    def __init__(self, model, kinds, preprocess="identity", on_full="sample"):
        rule = HookConfig.model_validate(
            {"match": ["layer", "layer.attention", "layer.up", "head"], "capture": kinds,
             "preprocess": preprocess, "every": 2}
        )  # fmt: skip
        points = resolve(model, [rule])
        self.page = StatsPage.create(["host"])
        slot = self.page.slot("host")
        self.clock = StepClock(slot)
        config = BusConfig(capacity_packets=64, backend="mp_queue")
        self.bus = create_data_bus(config, [GroupSpec("g")])
        self.hooker = ActivationHooker(
            self.bus,
            points,
            [build_preprocessor(point.config) for point in points],
            slot,
            self.clock,
            on_full=on_full,
            coins=[1] * len(points),
        )
        self.hooker.attach()
        self._metrics = slot.metrics

    def count(self, what):
        return sum(
            m.value for name, m in self._metrics().items() if name.startswith(f"hook_{what}{{")
        )

    def close(self):
        self.hooker.detach()
        self.bus.close()
        self.page.close()


def train(called, model, clock=None, *, autocast=False):
    """Every number that a host could see: outputs, gradients, weights and the generators' states."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(2):
            x = torch.randn(2, 5, 16, requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                out = called(x)
            out.float().square().mean().backward()
            seen += [out.detach().clone(), x.grad]
        seen += [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        if clock is not None:
            clock.weights_updated()
            clock.step()
    state = np.random.get_state()
    seen += [p.detach().clone() for p in model.parameters()]
    seen += [torch.get_rng_state(), torch.from_numpy(state[1].astype(np.int64))]
    return seen, (state[2:], random.getstate())


def host(checkpointed=False):
    torch.manual_seed(0)
    return Host(checkpointed)


def identical(one, other):
    return one[1] == other[1] and all(
        torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True)
    )


@pytest.fixture
def hooks():
    made = []

    def attach(*args, **options):
        made.append(Hooks(*args, **options))
        return made[-1]

    yield attach
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "kinds",
    [
        *(pytest.param([kind], id=kind, marks=pytest.mark.rest) for kind in KINDS),
        pytest.param(KINDS, id="all"),
    ],
)
@pytest.mark.parametrize(
    "how",
    ["plain", *(pytest.param(how, marks=pytest.mark.rest) for how in ("checkpointed", "autocast"))],
)
def test_an_eager_host_is_the_same_to_the_last_bit(hooks, kinds, how):
    autocast = how == "autocast"
    plain = host(how == "checkpointed")
    expected = train(plain, plain, autocast=autocast)
    model = host(how == "checkpointed")
    observed = hooks(model, kinds)
    assert identical(train(model, model, observed.clock, autocast=autocast), expected)
    assert observed.count("captured") > 0
    assert observed.count("failed") == 0


@pytest.mark.rest
@pytest.mark.parametrize("preprocess", [{"cast": {"dtype": "bfloat16"}}, "identity"])
@pytest.mark.parametrize("on_full", ["drop", "sample"])
def test_encoders_and_a_full_bus_change_nothing(hooks, preprocess, on_full):
    plain = host()
    expected = train(plain, plain)
    model = host()
    observed = hooks(model, KINDS, preprocess=preprocess, on_full=on_full)
    assert identical(train(model, model, observed.clock), expected)
    assert observed.count("dropped") + observed.count("sampled_out") > 0


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    with torch._inductor.config.patch(compile_threads=1):  # no pool of compiler processes
        yield
    torch._dynamo.reset()


NEEDS_SOAK = pytest.mark.soak("compiles for 2 to 5 minutes")
FURTHER_KIND = pytest.mark.soak("a further kind")
COMPILED_ALWAYS = ("activation", "input_gradient", "update")
COMPILED_KINDS = [kind for kind in KINDS if kind != "input_gradient"]


@pytest.mark.rest
@pytest.mark.timeout(900)  # a busy machine takes minutes over the C++ that inductor writes
@pytest.mark.parametrize(
    ("backend", "kinds"),
    [
        pytest.param("aot_eager", [kind], marks=[] if kind in COMPILED_ALWAYS else FURTHER_KIND)
        for kind in KINDS
    ]
    + [pytest.param("inductor", COMPILED_KINDS, marks=NEEDS_SOAK)],
    ids=[*KINDS, "inductor-all"],
)
def test_a_compiled_host_is_the_same_to_the_last_bit(hooks, compiler, backend, kinds):
    def run(observe):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = host()
        observed = hooks(model, kinds) if observe else None
        called = torch.compile(model, fullgraph=True, backend=backend)
        result = train(called, model, observed and observed.clock)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
        return result, observed

    expected, _ = run(False)
    found, observed = run(True)
    assert identical(found, expected)
    assert (observed.count("captured") > 0) is (kinds != ["input_gradient"])
    assert observed.count("failed") == 0


@pytest.mark.rest
def test_a_whole_session_changes_nothing_and_archives_every_kind(tmp_path):
    plain = host()
    expected = train(plain, plain)
    model = host()
    config = config_from_data(
        {
            "host": {"kind": "ppo"},
            "run": {"dir": str(tmp_path), "name": "invariance", "drain_timeout_s": 60},
            "hooks": [{"match": ["layer.attention", "head"], "capture": KINDS, "every": 2}],
            "sinks": {"archive": {"kind": "archiver"}},
        }
    )
    run_dir = RunDir.create(tmp_path, "invariance")
    session = ObservationSession(config, model, run_dir)
    try:
        session.start()
        found = train(model, model, session.clock)
        end = session.stop()
    finally:
        session.abort()
        session.close()
    assert identical(found, expected)
    assert end.orderly
    archive = open_archive(run_dir.path)
    batches = [batch for hook in archive.hooks for batch in archive.batches(hook)]
    kinds = {kind for batch in batches for kind in batch.column("kind").to_pylist()}
    assert kinds == {int(kind) for kind in Kind}
