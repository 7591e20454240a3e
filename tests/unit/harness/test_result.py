"""The result document: the example fits the published schema, survives its file, and nothing half."""

from __future__ import annotations

import json

import jsonschema
import pytest

from asys_bench.harness.results.result import Result
from asys_bench.harness.results.store import (
    ResultError,
    compare,
    differences,
    json_schema,
    read_result,
    to_asv,
    to_csv,
    write_result,
)

from .example_result import example_data, example_result


def test_the_example_validates_against_the_published_schema():
    jsonschema.validate(example_data(), json_schema())


def test_a_result_comes_back_from_its_file(tmp_path):
    path = write_result(example_result(), tmp_path / "run" / "result.json")
    assert read_result(path) == example_result()
    assert read_result(path.parent) == example_result()
    assert list(path.parent.iterdir()) == [path], "no partial file is left"


def test_the_file_is_strict_json(tmp_path):
    text = write_result(example_result(), tmp_path / "result.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["schema"] == "asys.result/1"


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("{}", "schema is None"), ("[]", "schema is None")]
)
def test_what_is_no_result_is_refused(tmp_path, text, says):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=says):
        read_result(path)


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="surprise"):
        Result.model_validate({**example_data(), "surprise": 1})


def test_exports_turn_rates_so_that_lower_is_better():
    found = to_asv(example_result())["results"]["bus.throughput[cpp_spmc].throughput_gbps"]
    assert found["unit"] == "ns per byte"
    assert found["value"] == pytest.approx(1 / 8.4)
    assert to_csv(example_result()).count("\n") > 5


def test_a_comparison_is_labelled_and_equal_results_do_not_differ():
    same = example_result()
    assert {row.word for row in compare(same, same)} == {"within their intervals"}
    assert "not interleaved" in differences(same, same)[0]
