"""Where a copy may be, and that no credentials are taken, shown or written."""

import pytest

from asys_bench.cli import run as asys_run
from asys_bench.store.uri import is_uri, parse_uri, place_of, without_secrets

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("s3://bucket/a/b", "bucket/a/b"),
        ("S3://bucket//a/b/", "bucket/a/b"),
        ("gs://bucket/a", "bucket/a"),
        ("file:///mnt/a", "/mnt/a"),
    ],
)
def test_a_place_is_a_scheme_a_bucket_and_a_prefix(text, key):
    assert parse_uri(text).key == key
    assert parse_uri(str(parse_uri(text))) == parse_uri(text)
    assert is_uri(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://bucket/a", "runs/a", "s3://bucket", "s3://bucket/", "s3:///a", "s3://bu cket/a", "file://a/b",
        "file:///", "s3://bucket/../other", "s3://bucket/a/./b", "s3://bucket/a\nb", "s3://b/" + "a" * 900,
    ],
)  # fmt: skip
def test_what_is_no_place_is_refused(text):
    with pytest.raises(ValueError):
        parse_uri(text)


def test_the_runs_id_is_filled_in_and_cannot_lead_out():
    assert str(place_of("s3://bucket/runs/{run_id}", "r-1")) == "s3://bucket/runs/r-1"
    with pytest.raises(ValueError, match="upwards"):
        place_of("s3://bucket/runs/{run_id}", "../../other")


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/a",
        f"s3://bucket/a?secret_key={SECRET}&access_key=AKIA",
        f"s3://{SECRET}@bucket/a",
    ],
)
def test_credentials_in_a_uri_are_refused_with_their_line_and_never_shown(uri, tmp_path, capfd):
    file = tmp_path / "own.yaml"
    file.write_text(f"extends: demo.yaml\nstorage:\n  uri: {uri}\n")
    assert asys_run.main(["--config", str(file), "--check"]) == 2
    said = "".join(capfd.readouterr())
    assert f"{file}:3:8" in said
    assert "environment" in said or "parameters" in said
    assert SECRET not in said
    assert asys_run.main(["--config", "demo", "--set", f"storage.uri={uri}", "--check"]) == 2
    assert SECRET not in "".join(capfd.readouterr())
    assert SECRET not in without_secrets(f"pyarrow: cannot open '{uri}' now")
