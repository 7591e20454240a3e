"""The file of `asys-bench run --config FILE`."""

import pytest

from asys_bench.cli.bench_config import read_bench_config
from asys_bench.config import ConfigError

HEAD = "schema: asys.bench/1\nsuite: suites/smoke.yaml\n"


def test_without_a_word_about_reports_a_run_writes_what_the_manual_promises(tmp_path):
    (tmp_path / "b.yaml").write_text(HEAD)
    assert read_bench_config(str(tmp_path / "b.yaml")).reports == ("html", "markdown", "junit")
    (tmp_path / "b.yaml").write_text(HEAD + "reports: []\n")
    assert read_bench_config(str(tmp_path / "b.yaml")).reports == ()


def test_a_reporter_that_does_not_exist_is_named_with_its_line(tmp_path):
    (tmp_path / "b.yaml").write_text(HEAD + "reports: [md, htlm]\n")
    with pytest.raises(ConfigError) as refused:
        read_bench_config(str(tmp_path / "b.yaml"))
    (problem,) = refused.value.problems
    assert (problem.line, problem.value, problem.fix) == (3, "htlm", "did you mean `html`?")
    assert "b.yaml:3" in str(refused.value)
