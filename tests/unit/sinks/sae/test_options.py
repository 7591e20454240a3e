"""Which SAEs the sink's options mean for a hook, and which combinations are refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asys_bench.sinks.sae.options import SAETrainerOptions


def _options(**fields: object) -> SAETrainerOptions:
    return SAETrainerOptions.model_validate(fields)


def test_without_variants_a_hook_has_one_sae_named_like_it() -> None:
    assert list(_options().saes_of("layer.0")) == ["layer.0"]


def test_variants_are_several_saes_on_one_hook() -> None:
    options = _options(
        sae={"k": 4},
        overrides={"layer.*": {"d_sae": 128}},
        variants={"narrow": {"k": 8}, "jump": {"architecture": "jumprelu", "target_l0": 9}},
    )
    saes = options.saes_of("layer.0")
    assert list(saes) == ["layer.0#narrow", "layer.0#jump"]
    assert (saes["layer.0#narrow"].k, saes["layer.0#narrow"].d_sae) == (8, 128)
    assert saes["layer.0#jump"].architecture == "jumprelu"
    assert saes["layer.0#jump"].wanted_l0 == 9


def test_a_transcoder_takes_the_saes_settings_but_not_its_kind_of_sparsity() -> None:
    options = _options(
        sae={"architecture": "relu", "target_l0": 5, "d_sae": 64},
        transcoders=[{"input": "a", "output": "b", "sae": {"k": 3}}],
    )
    config = options.for_several_hooks(options.transcoders[0])
    assert (config.architecture, config.k, config.d_sae) == ("skip_transcoder", 3, 64)
    assert options.transcoders[0].label == "a->b"


def test_a_crosscoder_takes_the_saes_settings_and_is_called_after_its_hooks() -> None:
    options = _options(
        sae={"architecture": "jumprelu", "target_l0": 5, "d_sae": 64},
        crosscoders=[
            {"hooks": ["a", "b", "c"], "sae": {"k": 3}},
            {"hooks": ["a", "b"], "name": "early"},
        ],
    )
    first, second = options.saes_of_several_hooks()
    assert (first.config.architecture, first.config.k, first.config.d_sae) == ("crosscoder", 3, 64)
    assert (first.label, first.hooks) == ("a+b+c", ("a", "b", "c"))
    assert (second.label, second.hooks) == ("early", ("a", "b"))
    assert options.labels(["a"]) == ["a", "a+b+c", "early"]


def test_a_place_to_start_every_hook_from_is_none_for_saes_of_several() -> None:
    several: dict[str, Any] = {
        "crosscoders": [{"hooks": ["a", "b"]}],
        "transcoders": [{"input": "a", "output": "b"}, {"input": "b", "output": "a"}],
    }
    options = _options(**several, start_from={"*": {"path": "x"}, "a->b": {"path": "y"}})
    starts = [options.start_of(label, label) for label in ("a", "a->b", "b->a", "a+b")]
    assert [start and start.path for start in starts] == ["x", "y", None, None]


def test_a_crosscoder_is_refused_a_place_to_start_from(tmp_path: Path) -> None:
    options = _options(
        crosscoders=[{"hooks": ["a", "b"]}], start_from={"a+b": {"path": str(tmp_path)}}
    )
    (misfit,) = options.misfits(1, ["*"])
    assert misfit.path == ("options", "start_from", "a+b")


def test_plain_saes_can_be_left_out() -> None:
    options = _options(plain_saes=False, transcoders=[{"input": "a", "output": "b"}])
    assert options.saes_of("a") == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sae": {"architecture": "skip_transcoder"}}, "list it under `transcoders`"),
        ({"variants": {"x": {"k": 0}}}, "greater than or equal"),
        ({"variants": {"x": {"nonsense": 1}}}, "nonsense"),
        ({"variants": {"x": {"architecture": "skip_transcoder"}}}, "needs several hooks"),
        ({"overrides": {"a*": {"architecture": "skip_transcoder"}}}, "needs several hooks"),
        (
            {"overrides": {"a*": {"d_sae": 4, "k": 2}}, "variants": {"x": {"k": 5}}},
            "k 5 is more than",
        ),
        ({"sae": {"architecture": "crosscoder"}}, "list it under `crosscoders`"),
        ({"variants": {"x": {"architecture": "crosscoder"}}}, "list it in `crosscoders`"),
        ({"crosscoders": [{"hooks": ["a"]}]}, "at least 2"),
        ({"crosscoders": [{"hooks": ["a", "b", "a"]}]}, "names a hook twice"),
        ({"crosscoders": [{"hooks": ["a", "b"], "sae": {"normalize": "norm"}}]}, "use std or none"),
        ({"transcoders": [{"input": "a"}]}, "output"),
        ({"transcoders": [{"input": "a", "output": "b", "sae": {"k": 0}}]}, "greater than"),
        ({"max_lag_s": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _options(**fields)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu", "gated"])
def test_a_group_takes_every_architecture_and_says_how_many_processes_a_worker_is(
    architecture: str,
) -> None:
    assert _options(sae={"architecture": architecture}).ranks == 1
    options = _options(sae={"architecture": architecture}, group={"size": 3})
    assert options.ranks == 3
    assert options.group is not None
    assert options.group.split == "latents"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": {"size": 1}}, "greater than or equal to 2"),
        ({"group": {"size": 65}}, "less than or equal to 64"),
        ({"group": {"size": 2, "split": "hooks"}}, "'latents' or 'rows'"),
        (
            {"group": {"size": 8, "split": "rows"}, "sae": {"batch_rows": 6}},
            "group.size 8 ranks cannot share sae: batch_rows 6; valid: 2..6, or split: latents",
        ),
        (
            {"group": {"size": 8}, "variants": {"tiny": {"d_sae": 4, "k": 2}}},
            "group.size 8 ranks cannot share variants['tiny']: d_sae 4; valid: 2..4, or split: rows",
        ),
    ],
)
def test_a_group_that_cannot_share_an_sae_is_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        _options(**fields)
    assert message in str(caught.value)


def test_one_gpu_by_its_number_is_refused_to_a_group() -> None:
    with pytest.raises(ValidationError, match=r"device cuda:0 is one GPU; valid: cpu, cuda, auto"):
        _options(device="cuda:0", group={"size": 2})


@pytest.mark.parametrize(
    ("gib", "shared", "most"), [(0.5, True, 1 << 29), (0.5, False, None), (None, True, None)]
)
def test_a_worker_is_limited_on_a_gpu_of_the_host_alone(gib, shared, most) -> None:
    assert _options(host_gpu_gib=gib).most_bytes(shared) == most
