"""A trainer group in a configuration: refused with its place, and planned for."""

from __future__ import annotations

from pathlib import Path

import pytest

from asys_bench.config import load_config
from asys_bench.config.problems import ConfigError
from asys_bench.placement.needs import needs_of

TEXT = """extends: profile_consumer.yaml
sinks:
  trainer:
    options:
      sae: {{batch_rows: 4, buffer_rows: 64}}
      group: {group}
"""


@pytest.mark.parametrize(
    ("group", "place", "words"),
    [
        ("{size: 1}", "c.yaml:6:21: sinks.trainer.options.group.size", "2"),
        (
            "{size: 2, split: hooks}",
            "c.yaml:6:31: sinks.trainer.options.group.split",
            "latents, rows",
        ),
        (
            "{size: 2}\n      device: cuda:0",
            "c.yaml:6:14: sinks.trainer.options.group",
            "one GPU; valid: cpu",
        ),
        ("{size: 8, split: rows}", "c.yaml:5:7: sinks.trainer.options", "valid: 2..4"),
    ],
)
def test_a_group_that_cannot_be_is_named_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, place: str, words: str
) -> None:
    (tmp_path / "c.yaml").write_text(TEXT.format(group=group))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config("c.yaml", (), {})
    assert place in str(caught.value)
    assert words in str(caught.value)


def test_each_process_of_a_group_has_a_place_in_the_plan() -> None:
    sets = ("sinks.trainer.options.group.size=3", "sinks.trainer.workers=2")
    config = load_config("profile_consumer.yaml", sets, {}).config
    names = [need.name for need in needs_of(config, 1) if need.name.startswith("trainer")]
    assert names == [
        "trainer-0", "trainer-0.1", "trainer-0.2", "trainer-1", "trainer-1.1", "trainer-1.2",
    ]  # fmt: skip
