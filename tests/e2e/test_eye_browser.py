"""The eyepiece, and the file of all features, in a real browser: hostile content, keyboard, names, contrast.

Everything that a run's folder can say is markup here that would set `globalThis.ran`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from safetensors.torch import save_file

from asys_bench.contracts.names import file_slug
from asys_bench.eye.marks import Change, Marks
from asys_bench.eye.one_file.all_features import all_features
from asys_bench.rundir.feature_names import ProposedName, write_names
from asys_bench.rundir.timeline_document import FeatureLife, Timeline, write_timeline
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

from ..unit.reports import test_run_report as made
from .browser import CHROMIUM, Chromium, Page

pytestmark = [
    pytest.mark.rest,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.timeout(600),
]
EVIL = "<img src=x onerror=ran=1><script>ran=1</script>\"'><svg onload=ran=1>"
OTHER = f"mlp.{EVIL[:24]}"
"""A hook whose SAE has no rows."""
LOOKS = (Path(__file__).parent / "eye_looks.js").read_text()
HOOK, D_IN, D_SAE = made.HOOK, made.D_IN, made.D_SAE
VIEWS = {
    "run": ("/run", {}, ".tiles"),
    "hook": ("/hook", {"sae": HOOK}, ".virtual .space .line:not([hidden]) a"),
    "feature": ("/feature", {"sae": HOOK, "feature": "{busy}"}, ".sentences"),
    "search": ("/search", {"text": "<img"}, ".found li"),
    "timeline": ("/timeline", {"sae": HOOK}, "table"),
}


def hostile_run(folder: Path) -> Path:
    """As the archiver, a trainer, a probe and a person would leave it."""
    folder.mkdir(parents=True)
    sae = build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=4, seed=3), D_IN)
    for hook in (HOOK, OTHER):
        CheckpointStore(folder / "sae" / file_slug(hook)).write(
            10, lambda into: save_sae(into, sae, InputScaling.identity(D_IN), {})
        )
    generator, sent = torch.Generator().manual_seed(2), []
    for step in range(6):
        pairs = torch.stack([torch.arange(20) + 20 * step, torch.arange(20)], 1).to(torch.int32)
        rows = torch.randn(20, D_IN, generator=generator)
        sent.append(made.packet(pairs, 2 * step, 3, host_step=step, text=1))
        sent.append(made.packet(rows, 2 * step + 1, 1, host_step=step, text=1))
    made.archive(folder, sent)
    made.metrics(folder).close()
    run = {
        "schema": "asys.run/1", "run_id": EVIL, "started_unix_ns": 1_700_000_000 * 10**9,
        "step_unit": f"step{EVIL}", "hooks": [HOOK, OTHER], "host_pid": 1, "stats_page": "/proc/1/fd/3",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    pieces = [f"\u0120{EVIL}{n}" for n in range(120)]
    (folder / "vocabulary.json").write_text(json.dumps({"tokens": pieces}))
    (folder / "alarm").mkdir()
    alarm = {"schema": "asys.alarm/1", "text": EVIL, "host_step": 3}
    (folder / "alarm" / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    _probe(folder, sae)
    lives = [
        FeatureLife(feature=n, verdict="born", cause="learnt", born_step=100.0 * n) for n in (1, 2)
    ]
    write_timeline(
        folder,
        Timeline(
            label=HOOK, hook=HOOK, checkpoint="step_000000010", features=D_SAE, rows=100, units=10,
            first_step=0, last_step=600, counts={EVIL: 1}, curve_steps=(0.0, 300.0), lives=tuple(lives),
        ),
    )  # fmt: skip
    name = ProposedName(
        name=EVIL[:80], score=0.91, baseline=0.6, graded=True, model=EVIL, checkpoint=EVIL, generation=0,
        shown=10, fires=10, silent=10, unix_ns=1,
    )  # fmt: skip
    write_names(folder, HOOK, dict.fromkeys(range(D_SAE), name))
    marks = Marks(folder)
    for feature in range(0, D_SAE, 3):
        marks.change(
            Change(sae=HOOK, feature=feature, name=f"{EVIL}{feature}"[:200], note=EVIL, pin=True)
        )
    return folder


def _probe(folder: Path, sae) -> None:
    of = {
        "label": EVIL, "kind": "class", "metric": "auc", "value": 0.93, "low": 0.9, "high": 0.95,
        "classes": [0.0, 1.0], "rows": 50, "held_out_rows": 20, "held_out_blocks": 3, "block": "episode",
        "history": [],
    }  # fmt: skip
    document = {"schema": "asys.probes/1", "hook": HOOK, "features": "activations", "probes": [of]}
    (folder / "probes").mkdir()
    (folder / "probes" / "p.json").write_text(json.dumps(document))
    tensors = {f"{EVIL}.weight": sae.W_dec[:1].detach() * 5, f"{EVIL}.bias": torch.zeros(1)}
    save_file(
        {name: one.contiguous() for name, one in tensors.items()},
        folder / "probes" / "p.safetensors",
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("runs") / "hostile")


@pytest.fixture(scope="module")
def address(run_dir: Path) -> Iterator[str]:
    """Of `asys-run eye`, with its token."""
    command = [sys.executable, "-P", "-m", "asys_bench.cli.run", "eye", str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            found = re.search(rb"http://\S+", process.stdout.readline())
            assert found
            yield found[0].decode()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            finally:
                process.kill()


WITH_MODEL = """
import sys
from pathlib import Path
from asys_bench.eye.address import listen
from asys_bench.eye.serve import serve
from asys_bench.eye.typed import process

process.child_command = lambda *_: [sys.executable, "-S", sys.argv[2]]
with listen(0) as address:
    print(address.url, flush=True)
    serve(Path(sys.argv[1]), address, model=("a-model", None))
"""
MODEL = f"""
import json, sys
EVIL = {EVIL!r}
print(json.dumps({{"ready": {{"about": EVIL, "warning": "others: " + EVIL}}}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    tokens = [EVIL, *asked["text"].split()]
    levels = [0.0, *(float(n + 1) for n in range(len(tokens) - 1))]
    features = [{{"feature": n, "activation": levels[-1], "levels": levels}} for n in (1, 3)]
    answer = {{"tokens": tokens, "features": features, "cut": True, "checkpoint": EVIL}}
    print(json.dumps({{"id": asked["id"], **answer}}), flush=True)
"""


@pytest.fixture
def address_with_model(run_dir: Path, tmp_path: Path) -> Iterator[str]:
    """Of an eyepiece whose model says what a hostile vocabulary would."""
    (tmp_path / "serve.py").write_text(WITH_MODEL)
    (tmp_path / "model.py").write_text(MODEL)
    command = [sys.executable, str(tmp_path / "serve.py"), str(run_dir), str(tmp_path / "model.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(120)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    profile = Path(tempfile.mkdtemp())
    with Chromium(profile) as browser:
        yield browser
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def page(chromium: Chromium, address: str) -> Page:
    """Let in."""
    page = chromium.page()
    page.open(address)
    page.wait(
        "location.pathname === '/' && !location.search && document.getElementById('views')?.children.length"
    )
    return page


@pytest.fixture(scope="module")
def written(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of all features, away from its run."""
    made_of = all_features(run_dir, lambda line: None)
    path = tmp_path_factory.mktemp("file") / "features.html"
    path.write_bytes(made_of.document)
    return path


@pytest.fixture(scope="module")
def file_page(chromium: Chromium, written: Path) -> Page:
    page = chromium.page()
    page.open(f"file://{written}#/run")
    page.wait("document.querySelector('.tiles')")
    return page


@pytest.fixture(
    scope="module",
    params=[
        "server",
        pytest.param(
            "file",
            marks=pytest.mark.soak("minutes"),
        ),
    ],
)
def visit(
    request: pytest.FixtureRequest, address: str, written: Path, run_dir: Path
) -> Callable[[str], Page]:
    """Open a view, of the server or in the file; the page once it is drawn."""
    page = request.getfixturevalue("page" if request.param == "server" else "file_page")
    busy = 0

    def to(view: str) -> Page:
        path, query, drawn = VIEWS[view]
        told = {key: value.format(busy=busy) for key, value in query.items()}
        if request.param == "server":
            page.open(f"{address[: address.index('/?')]}{path}?{urlencode(told)}")
        else:
            page.value(f"location.hash = {json.dumps(f'#{path}?{urlencode(told)}')}")
        page.wait(f"document.querySelector('[aria-current=page]')?.textContent.toLowerCase() === '{view}' "
                  f"&& document.querySelector({json.dumps(drawn)})")  # fmt: skip
        return page

    return to


def looks(page: Page) -> dict:
    return page.value(LOOKS)


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_that_a_run_says_runs(visit: Callable[[str], Page], view: str) -> None:
    page = visit(view)
    found = looks(page)
    assert (found["ran"], found["planted"], found["inline"]) == ("undefined", [], [])
    assert "onerror=ran=1" in page.value("document.body.innerText"), "it is shown as it is"
    assert page.errors() == []


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit: Callable[[str], Page], view: str, scheme: str) -> None:
    page = visit(view)
    page.scheme(scheme)
    found = looks(page)
    assert found["texts"] > 10
    assert found["faint"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_telephone_scrolls_no_page_sideways(visit: Callable[[str], Page], view: str) -> None:
    page = visit(view)
    page.size(390, 844, mobile=True)
    try:
        page.wait("innerWidth === 390")
        assert looks(page)["wide"] == 0
    finally:
        page.size(1280, 900)


NAMED = {
    "button",
    "link",
    "textbox",
    "searchbox",
    "checkbox",
    "image",
    "img",
    "table",
    "navigation",
    "region",
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_screen_reader_gets_a_name_of_everything(visit: Callable[[str], Page], view: str) -> None:
    page = visit(view)
    nodes = [one for one in page.ask("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
    roles = [one["role"]["value"] for one in nodes]
    nameless = [
        one["role"]["value"]
        for one in nodes
        if one["role"]["value"] in NAMED and not one.get("name", {}).get("value", "").strip()
    ]
    assert nameless == []
    assert {"main", "navigation", "heading", "link"} <= set(roles)
    assert page.value("document.documentElement.lang") == "en"


def test_the_table_is_read_and_sorted_by_keyboard(visit: Callable[[str], Page]) -> None:
    page = visit("hook")
    page.value("document.activeElement.blur(), document.querySelector('.skip').focus()")
    seen = []
    for _ in range(60):
        page.key("Tab")
        seen.append(
            page.value("document.activeElement.textContent + '|' + document.activeElement.tagName")
        )
        if seen[-1] == "max|BUTTON":
            break
    assert seen[-1] == "max|BUTTON", seen
    assert {"Run|A", "Search|A"} <= set(seen)
    page.key("Enter")
    assert page.value("document.querySelector('[aria-sort=descending]').textContent") == "max"
    first = "document.querySelector('.virtual .space .line[aria-rowindex=\"2\"] a')"
    number = page.value(f"({first}.focus(), {first}.textContent)")
    page.key("ArrowDown")
    following = page.value("document.activeElement.textContent")
    assert following.isdigit()
    assert following != number
    page.key("Enter")
    page.wait(f"document.querySelector('h1')?.textContent.startsWith('Feature {following}')")
    page.value("document.activeElement.blur()")
    page.key("/")
    page.wait("document.querySelector('[aria-current=page]')?.textContent === 'Search'")
    page.wait("document.activeElement.type === 'search'")


def test_search_finds_features_by_token_and_by_name(visit: Callable[[str], Page]) -> None:
    page = visit("search")
    told = "document.querySelector('[role=status].how')?.textContent"
    told = page.wait(f"/^\\d+ of \\d+ features/.test({told}) && {told}")
    assert f"of {2 * D_SAE} features" in told or f"of {D_SAE} features" in told
    page.value(
        "(field => { field.value = ''; field.focus(); })(document.querySelector('input[type=search]'))"
    )
    page.type("onload=ran=1>27")
    page.wait("document.querySelectorAll('.found li').length && "
              "document.querySelector('.found li').innerText.includes('feature 27')")  # fmt: skip


def test_a_viewer_pins_and_names_and_the_file_does_not(
    page: Page, file_page: Page, address: str, run_dir: Path
) -> None:
    root = address[: address.index("/?")]
    page.open(f"{root}/feature?{urlencode({'sae': HOOK, 'feature': 1})}")
    page.wait("document.querySelector('.marks input')")
    page.value("(field => { field.value = '<b>full stops</b>'; field.dispatchEvent(new Event('change')); })"
               "(document.querySelector('.marks input'))")  # fmt: skip
    page.wait("document.querySelector('.marks [role=status]').textContent === 'kept'")
    kept = json.loads((run_dir / "eye.json").read_text())
    assert kept["features"][HOOK]["1"]["name"] == "<b>full stops</b>"
    file_page.value(
        f"location.hash = {json.dumps('#/feature?' + urlencode({'sae': HOOK, 'feature': 1}))}"
    )
    file_page.wait("document.querySelector('h1')?.textContent.startsWith('Feature 1')")
    assert file_page.value("document.querySelector('.marks')") is None


def test_the_file_asks_for_nothing(chromium: Chromium, written: Path) -> None:
    page = chromium.page()
    page.open(f"file://{written}#/run")
    for view in ("hook", "timeline"):
        page.wait("document.querySelector('h1, h2')")
        page.value(f"location.hash = '#/{view}'")
        page.wait(
            f"document.querySelector('[aria-current=page]')?.textContent.toLowerCase() === '{view}'"
        )
    assert {one.partition("#")[0] for one in page.asked()} == {f"file://{written}"}
    assert os.listdir(written.parent) == ["features.html"]
    asked = "fetch('https://example.com/').then(() => 'fetched', () => 'refused')"
    assert page.value(asked) == "refused"


def test_a_proposed_name_is_shown_with_its_score_and_never_before_a_persons(
    visit: Callable[[str], Page],
) -> None:
    """A person names feature 1 in a test above, after the file was written."""
    page = visit("hook")
    cells = page.value(
        "[...document.querySelectorAll('.virtual .space .line:not([hidden])')].map((line) => "
        "[Number(line.querySelector('a').textContent), line.querySelector('.proposed, .named')?.className])"
    )
    assert len(cells) > 10
    told = [(feature, (kind or "").split()[-1]) for feature, kind in cells]
    told = [one for one in told if one[0] != 1]
    assert told == [(n, "proposed" if n % 3 else "named") for n, _ in told]
    assert "(0.91)" in page.value("document.querySelector('.virtual .proposed').textContent")
    assert "detection AUC 0.91" in page.value("document.querySelector('.virtual .proposed').title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_typed_text_lists_features_with_its_tokens_coloured(
    chromium: Chromium, address_with_model: str, scheme: str
) -> None:
    page = chromium.page()
    page.scheme(scheme)
    page.open(address_with_model)
    page.wait("document.getElementById('views')?.children.length")
    page.open(f"{address_with_model[: address_with_model.index('/?')]}/search")
    page.wait("document.querySelector('.typed:not([hidden]) textarea')")
    page.wait(
        "document.querySelector('.callout:not([hidden])')?.textContent.startsWith('others: <img')"
    )
    page.value("document.querySelector('.typed textarea').focus()")
    page.type("red green")
    page.value("document.querySelector('.typed button').click()")
    page.wait("document.querySelectorAll('.found .sentence mark').length === 4")
    deep = (
        "[...document.querySelectorAll('.found li:first-child mark')].map((one) => one.className)"
    )
    assert page.value(deep) == ["fires h3", "fires h4"]
    assert page.value("document.querySelectorAll('.found li').length") == 2
    text = page.value("document.body.innerText")
    assert "the rest was left out" in text
    found = looks(page)
    assert (found["ran"], found["planted"], found["inline"], found["faint"]) == (
        "undefined",
        [],
        [],
        [],
    )
    page.size(390, 844, mobile=True)
    page.wait("innerWidth === 390")
    assert looks(page)["wide"] == 0
    assert page.errors() == []
