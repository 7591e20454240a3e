from __future__ import annotations

import pytest

from asys_bench.monitors import readable


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (readable.count_text, 1234567, "1,234,567"),
        (readable.count_text, 12_345_678, "12.3M"),
        (readable.count_text, 4.56e9, "4.56G"),
        (readable.rate_text, 0.0, "0"),
        (readable.rate_text, 1234.4, "1,234"),
        (readable.rate_text, 12345.0, "12.3k"),
        (readable.rate_text, 4_560_000.0, "4.56M"),
        (readable.bytes_text, 512, "512 B"),
        (readable.bytes_text, 3_200_000, "3.20 MB"),
        (readable.bytes_text, 999_999, "1.00 MB"),
        (readable.percent_text, 1.0, "100 %"),
        (readable.percent_text, 0.99999, "99.9 %"),
        (readable.percent_text, 0.0, "0 %"),
        (readable.duration_text, 7, "0:07"),
        (readable.duration_text, 11045, "3:04:05"),
        (readable.age_text, float("inf"), "never"),
        (readable.age_text, 0.21, "0.2 s"),
        (readable.age_text, float("nan"), "-"),
        (readable.significant, 0.00012, "1.2e-04"),
        (readable.significant, 12.34, "12.3"),
        (readable.significant, float("nan"), "-"),
    ],
)
def test_numbers_read_as_a_person_would_write_them(
    function: object, value: float, text: str
) -> None:
    assert callable(function)
    assert function(value) == text


def test_a_long_name_keeps_its_end() -> None:
    assert readable.tail_text("policy.mlp_extractor.policy_net.0", 13) == "…policy_net.0"
    assert readable.tail_text("short", 13) == "short"


@pytest.mark.parametrize(
    ("unit", "several"), [("env step", "env steps"), ("batch", "batches"), ("pass", "passes")]
)
def test_several_of_a_unit(unit: str, several: str) -> None:
    assert readable.plural(unit) == several
