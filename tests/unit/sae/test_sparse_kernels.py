"""Every kernel, compiled and in torch's operators, against its dense definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asys_bench.sae import SparseKernels
from asys_bench.sae.kernels import native, sparse_kernels
from asys_bench.sae.kernels.compiled_kernels import CompiledKernels
from asys_bench.sae.kernels.sparse_codes import SparseCodes
from asys_bench.sae.kernels.torch_kernels import largest

COMPILED = [
    pytest.param(False, id="torch"),
    pytest.param(
        True,
        id="compiled",
        marks=pytest.mark.skipif(native.kernels() is None, reason="built without a compiler"),
    ),
]


def _kernels(threads: int = 1, *, rough: bool = False, compiled: bool = True) -> SparseKernels:
    return CompiledKernels(threads, rough=rough) if compiled else SparseKernels(rough=rough)


close = torch.testing.assert_close


def _tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def _codes(seed: int, rows: int, features: int, density: float = 0.3) -> SparseCodes:
    generator = torch.Generator().manual_seed(seed)
    mask_BF = torch.rand(rows, features, generator=generator) < density
    offset_B = torch.zeros(rows + 1, dtype=torch.int32)
    offset_B[1:] = mask_BF.sum(1).cumsum(0)
    feature_N = mask_BF.nonzero()[:, 1].int()
    return SparseCodes(
        offset_B, feature_N, torch.randn(len(feature_N), generator=generator), features
    )


sizes = {
    "rows": st.integers(1, 70),
    "features": st.integers(2, 150),
    "width": st.integers(1, 150),
    "seed": st.integers(0, 1000),
    "threads": st.sampled_from([1, 3]),
}


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=30, deadline=None)
@given(**sizes, data=st.data())
def test_top_k_is_torchs(
    compiled: bool,
    rows: int,
    features: int,
    width: int,
    seed: int,
    threads: int,
    data: st.DataObject,
) -> None:
    k = data.draw(st.integers(1, features))
    x_BD, W_FD = _tensors(seed, (rows, width), (features, width))
    (b_F,) = _tensors(seed + 1, (features,))
    codes = _kernels(threads, compiled=compiled).top_k(x_BD, W_FD, b_F, k)
    pre_BF = x_BD @ W_FD.t() + b_F
    index_BK = codes.feature_N.view(rows, k).long()
    assert (index_BK.diff(dim=1) > 0).all(), "features must ascend within a row"
    close(codes.value_N.view(rows, k), pre_BF.gather(1, index_BK), rtol=1e-4, atol=1e-5)
    close(
        codes.value_N.view(rows, k).sort(1, descending=True).values,
        torch.topk(pre_BF, k, dim=1).values,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_bfloat16_product_proposes_and_float32_decides(compiled: bool) -> None:
    x_BD, W_FD, b_F = _tensors(5, (512, 96), (1024, 96), (1024,))
    W_FD /= W_FD.norm(dim=1, keepdim=True)
    exact = _kernels(compiled=compiled).top_k(x_BD, W_FD, b_F, 16)
    exact = exact.with_values(exact.value_N.clone())
    feature_N = exact.feature_N.clone()
    rough = _kernels(rough=True, compiled=compiled).top_k(x_BD, W_FD, b_F, 16)
    assert (rough.feature_N == feature_N).float().mean() > 0.999
    same = rough.feature_N == feature_N
    close(rough.value_N[same], exact.value_N[same], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(native.kernels() is None, reason="built without a compiler")
@settings(max_examples=60, deadline=None)
@given(
    **sizes,
    size=st.sampled_from([1e-3, 1.0, 100.0]),
    apart=st.sampled_from([1e-3, 1e-2, 1.0]),
    data=st.data(),
)
def test_a_bfloat16_product_loses_no_feature(
    rows: int,
    features: int,
    width: int,
    seed: int,
    threads: int,
    size: float,
    apart: float,
    data: st.DataObject,
) -> None:
    """However near to each other pre-activations are, and however large: what bfloat16 cannot tell apart is
    left to float32."""
    k = data.draw(st.integers(1, features))
    x_BD, W_FD, b_F = _tensors(seed, (rows, width), (features, width), (features,))
    x_BD, b_F, W_FD = x_BD * size, b_F * size * apart, W_FD[:1] + apart * W_FD
    pre_BF = x_BD.double() @ W_FD.double().t() + b_F.double()
    reach_B1 = x_BD.norm(dim=1, keepdim=True).double() * float(W_FD.norm(dim=1).max())
    rounding_B1 = 2**-23 * ((width + 2) * reach_B1 + float(b_F.abs().max()))
    kernels = _kernels(threads, rough=True)
    index_BK = kernels.top_k(x_BD, W_FD, b_F, k).feature_N.view(rows, k).long()
    kept_BF = torch.zeros_like(pre_BF, dtype=torch.bool).scatter_(1, index_BK, True)
    least_B1 = pre_BF.gather(1, index_BK).amin(1, keepdim=True)
    assert (kept_BF | (pre_BF <= least_B1 + rounding_B1)).all()
    floor_F = pre_BF.float().median(0).values
    codes = kernels.above(x_BD, W_FD, b_F, floor_F)
    assert codes is not None
    found_BF = torch.zeros_like(kept_BF)
    found_BF[codes.row_N, codes.feature_N.long()] = True
    assert (found_BF | (pre_BF <= floor_F + rounding_B1)).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    features=st.integers(1, 700),
    share=st.floats(0, 1),
    levels=st.sampled_from([2, 5, 1 << 20]),
    bad=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_the_largest_in_two_stages_are_those_of_one(
    rows: int, features: int, share: float, levels: int, bad: int, seed: int
) -> None:
    """Ties, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    pre_BF = torch.randint(-levels, levels, (rows, features), generator=generator).float()
    for value in (math.nan, math.inf, -math.inf):
        pre_BF.view(-1)[torch.randint(rows * features, (bad,), generator=generator)] = value
    k = 1 + int(share**4 * (features - 1))
    value_BK, index_BK = largest(pre_BF, k, staged=True)
    wanted_BK = torch.topk(pre_BF, k, dim=1).values
    close(value_BK.sort(1, descending=True).values, wanted_BK, rtol=0, atol=0, equal_nan=True)
    close(pre_BF.gather(1, index_BK), value_BK, rtol=0, atol=0, equal_nan=True)
    assert (index_BK.sort(1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("rough", [False, True])
def test_top_k_in_two_stages_has_the_same_codes(rough: bool) -> None:
    x_BD, W_FD, b_F = _tensors(11, (30, 12), (700, 12), (700,))
    one, two = SparseKernels(rough=rough), SparseKernels(rough=rough)
    two.staged = True
    codes = [kernels.top_k(x_BD, W_FD, b_F, 5) for kernels in (one, two)]
    assert torch.equal(codes[0].feature_N, codes[1].feature_N)
    assert torch.equal(codes[0].value_N, codes[1].value_N)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("rough", [False, True])
@settings(max_examples=25, deadline=None)
@given(**sizes)
def test_above_finds_every_pair_beyond_its_floor(
    compiled: bool, rough: bool, rows: int, features: int, width: int, seed: int, threads: int
) -> None:
    x_BD, W_FD, b_F, floor_F = _tensors(
        seed, (rows, width), (features, width), (features,), (features,)
    )
    W_FD /= W_FD.norm(dim=1, keepdim=True)
    kernels = _kernels(threads, rough=rough, compiled=compiled)
    codes = kernels.above(x_BD, W_FD, b_F, floor_F)
    assert codes is not None
    pre_BF = x_BD @ W_FD.t() + b_F
    beyond_BF = pre_BF - floor_F
    # Whatever is a rounding error away from its floor may fall on either side.
    wanted = (pre_BF * (beyond_BF > 0)).masked_fill(beyond_BF.abs() < 1e-4, 0.0)
    found = codes.dense().masked_fill(beyond_BF.abs() < 1e-4, 0.0)
    close(found, wanted, rtol=1e-4, atol=1e-4)
    assert kernels.above(x_BD, W_FD, b_F, torch.full_like(b_F, -1e9), most=0) is None


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("guess", [0.0, 1.0, 100.0])
def test_batch_top_k_is_that_of_the_whole_batch_whatever_the_guess(
    compiled: bool, guess: float
) -> None:
    x_BD, W_FD, b_F = _tensors(7, (40, 20), (64, 20), (64,))
    codes = _kernels(compiled=compiled).batch_top_k(x_BD, W_FD, b_F, 100, guess)
    pre_BF = x_BD @ W_FD.t() + b_F
    assert len(codes.feature_N) == 100
    close(
        codes.value_N.sort(descending=True).values,
        torch.topk(pre_BF.reshape(-1), 100).values,
        rtol=1e-4,
        atol=1e-5,
    )
    dense_BF = codes.dense()
    close(dense_BF, pre_BF * (dense_BF > 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", COMPILED)
def test_batch_top_k_takes_no_more_than_there_are_and_settles_ties(compiled: bool) -> None:
    kernels = _kernels(compiled=compiled)
    x_BD, W_FD, b_F = torch.ones(4, 3), torch.ones(8, 3), torch.zeros(8)
    assert len(kernels.batch_top_k(x_BD, W_FD, b_F, 10, 1.0).feature_N) == 10
    assert len(kernels.batch_top_k(x_BD, -W_FD, b_F, 10, 1.0).feature_N) == 0


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=30, deadline=None)
@given(**sizes)
def test_reconstruction_and_its_gradients(
    compiled: bool, rows: int, features: int, width: int, seed: int, threads: int
) -> None:
    codes = _codes(seed, rows, features)
    W_FD, target_BD = _tensors(seed + 1, (features, width), (rows, width))
    scale_B = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) + 0.5
    kernels = _kernels(threads, compiled=compiled)
    found = kernels.reconstruct(codes, codes.value_N, W_FD, target_BD, scale_B)
    error_BD = codes.dense() @ W_FD - target_BD
    close(found.error_B, error_BD.square().sum(1), rtol=1e-4, atol=1e-4)
    close(found.gradient_BD, error_BD * scale_B.unsqueeze(1), rtol=1e-4, atol=1e-4)
    dense_BF = found.gradient_BD @ W_FD.t()
    close(
        found.code_gradient_N,
        dense_BF[codes.row_N, codes.feature_N.long()],
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=20, deadline=None)
@given(**sizes)
def test_nested_reconstruction_adds_the_errors_of_all_wider_prefixes(
    compiled: bool, rows: int, features: int, width: int, seed: int, threads: int
) -> None:
    codes = _codes(seed, rows, features)
    W_FD, target_BD = _tensors(seed + 1, (features, width), (rows, width))
    scale_B = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) + 0.5
    widths = sorted({1, features // 3 + 1, features})
    kernels = _kernels(threads, compiled=compiled)
    found = kernels.reconstruct_nested(codes, codes.value_N, W_FD, target_BD, scale_B, widths)
    dense_BF = codes.dense()
    errors = [dense_BF[:, :w] @ W_FD[:w] - target_BD for w in widths]
    least = 0
    for level, level_width in enumerate(widths):
        close(found.error_B[level], errors[level].square().sum(1), rtol=1e-4, atol=1e-3)
        gradient_BD = sum(errors[level:]) * scale_B.unsqueeze(1)
        close(found.gradient_BD[level], gradient_BD, rtol=1e-3, atol=1e-3)
        own_N = (codes.feature_N >= least) & (codes.feature_N < level_width)
        wanted_BF = gradient_BD @ W_FD.t()
        wanted_N = wanted_BF[codes.row_N[own_N], codes.feature_N[own_N].long()]
        close(found.code_gradient_N[own_N], wanted_N, rtol=1e-3, atol=1e-2)
        least = level_width


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=30, deadline=None)
@given(**sizes)
def test_pairs_are_grouped_by_feature_and_summed(
    compiled: bool, rows: int, features: int, width: int, seed: int, threads: int
) -> None:
    codes = _codes(seed, rows, features)
    (rows_BD,) = _tensors(seed + 2, (2 * rows, width))
    kernels = _kernels(threads, compiled=compiled)
    groups = kernels.group(codes)
    assert torch.equal(codes.feature_N[groups.order_N], codes.feature_N.sort(stable=True).values)
    assert torch.equal(codes.row_N[groups.order_N], groups.row_N.long())
    out_FD = torch.full((features, width), math.nan)
    sum_F = kernels.accumulate(groups, codes.value_N, rows_BD[:rows].contiguous(), out_FD)
    close(out_FD, codes.dense().t() @ rows_BD[:rows], rtol=1e-3, atol=1e-3)
    close(sum_F, codes.dense().sum(0), rtol=1e-3, atol=1e-3)
    shift_F = (torch.arange(features) % 2 * rows).int()
    close(
        kernels.sum_by_feature(codes, groups, codes.value_N), codes.dense().sum(0),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    kernels.accumulate(groups, codes.value_N, rows_BD, out_FD, shift_F)
    odd_FD = codes.dense().t() @ rows_BD[rows:]
    close(out_FD[1::2], odd_FD[1::2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", COMPILED)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 70), width=st.integers(1, 150), seed=st.integers(0, 1000))
def test_projection_and_adam_are_torchs(compiled: bool, rows: int, width: int, seed: int) -> None:
    kernels = _kernels(2, compiled=compiled)
    W_FD, gradient_FD = _tensors(seed, (rows, width), (rows, width))
    W_FD /= W_FD.norm(dim=1, keepdim=True).clamp_min(1e-6)
    projected_FD = gradient_FD - (gradient_FD * W_FD).sum(1, keepdim=True) * W_FD
    square_F = kernels.project(gradient_FD, W_FD)
    close(gradient_FD, projected_FD, rtol=1e-4, atol=1e-5)
    close(square_F, projected_FD.double().square().sum(1), rtol=1e-4, atol=1e-6)

    theirs = torch.nn.Parameter(W_FD.clone())
    adam = torch.optim.Adam([theirs], lr=0.01, eps=1e-8)
    mean_FD, square_FD = torch.zeros_like(W_FD), torch.zeros_like(W_FD)
    for step in range(1, 4):
        theirs.grad = gradient_FD * 0.5 * step
        adam.step()
        rate_F = torch.full((rows,), 0.01 / (1 - 0.9**step))
        root_F = torch.full((rows,), 1 / math.sqrt(1 - 0.999**step))
        rest = (mean_FD, square_FD, rate_F, root_F, (0.9, 0.999, 1e-8, 0.5))
        assert kernels.adam(W_FD, gradient_FD * step, *rest, unit_rows=False)
        close(W_FD, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert kernels.adam(W_FD, gradient_FD, *rest, unit_rows=True)
    close(W_FD.norm(dim=1), torch.ones(rows))
    gradient_FD[0, 0] = math.inf
    assert not kernels.adam(W_FD, gradient_FD, *rest, unit_rows=True)


@pytest.mark.parametrize("compiled", COMPILED)
def test_a_row_with_rate_0_takes_no_step(compiled: bool) -> None:
    W_FD, gradient_FD, mean_FD, square_FD = _tensors(3, (4, 40), (4, 40), (4, 40), (4, 40))
    before = W_FD.clone(), mean_FD.clone(), square_FD.abs_().clone()
    rate_F, settings_ = torch.tensor([0.1, 0.0, 0.1, 0.0]), (0.9, 0.999, 1e-8, 1.0)
    tensors = (W_FD, gradient_FD, mean_FD, square_FD, rate_F, torch.ones(4))
    assert _kernels(compiled=compiled).adam(*tensors, settings_, unit_rows=True)
    for now_FD, before_FD in zip((W_FD, mean_FD, square_FD), before, strict=True):
        assert torch.equal(now_FD[1::2], before_FD[1::2])
        assert not (now_FD[::2] == before_FD[::2]).any(1).any()
    close(W_FD[::2].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("rough", [False, True])
def test_a_batch_in_blocks_has_the_codes_of_the_whole(
    rough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its pre-activations are too many to exist at once."""
    x_BD, W_FD, b_F = _tensors(7, (50, 12), (64, 12), (64,))
    kernels, floor_F = SparseKernels(rough=rough), torch.ones(64)
    whole = kernels.top_k(x_BD, W_FD, b_F, 5), kernels.above(x_BD, W_FD, b_F, floor_F, most=2000)
    monkeypatch.setattr(sparse_kernels, "BLOCK_BYTES", 7 * 64 * 4)
    parts = kernels.top_k(x_BD, W_FD, b_F, 5), kernels.above(x_BD, W_FD, b_F, floor_F, most=2000)
    for one, other in zip(whole, parts, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.offset_B, other.offset_B)
        assert torch.equal(one.feature_N, other.feature_N)
        close(one.value_N, other.value_N)
    assert kernels.above(x_BD, W_FD, b_F, floor_F, most=len(whole[1].feature_N) - 1) is None


@pytest.mark.parametrize("compiled", COMPILED)
def test_rows_are_centred_and_scaled(compiled: bool) -> None:
    rows_BD, center_D, scale_D = _tensors(3, (65, 19), (19,), (19,))
    got_BD = _kernels(3, compiled=compiled).affine(rows_BD, center_D, scale_D, name="x")
    close(got_BD, (rows_BD - center_D) * scale_D)


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("rough", [False, True])
def test_non_finite_pre_activations_give_a_non_finite_error_and_no_crash(
    rough: bool, compiled: bool
) -> None:
    kernels = _kernels(rough=rough, compiled=compiled)
    x_BD, W_FD, b_F = _tensors(3, (8, 5), (64, 5), (64,))
    x_BD[2] = math.nan
    x_BD[3, 0] = math.inf
    codes = kernels.top_k(x_BD, W_FD, b_F, 4)
    found = kernels.reconstruct(codes, codes.value_N.clamp_min(0), W_FD, x_BD, torch.ones(8))
    assert not math.isfinite(float(found.error_B.sum()))
    assert math.isfinite(float(found.error_B[:2].sum()))


@pytest.mark.skipif(native.kernels() is None, reason="built without a compiler")
def test_threads_do_not_change_a_result() -> None:
    codes = _codes(1, 300, 90)
    W_FD, target_BD = _tensors(2, (90, 33), (300, 33))
    one, four = _kernels(1), _kernels(4)
    results = []
    for kernels in (one, four):
        found = kernels.reconstruct(codes, codes.value_N, W_FD, target_BD, torch.ones(300))
        out_FD = torch.empty(90, 33)
        kernels.accumulate(kernels.group(codes), codes.value_N, found.gradient_BD, out_FD)
        results.append((found.error_B.clone(), found.code_gradient_N.clone(), out_FD))
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_weights_in_another_layout_are_refused_by_the_compiled_kernels() -> None:
    kernels = _kernels()
    if native.kernels() is None:
        pytest.skip("built without a compiler")
    x_BD, W_DF, b_F = _tensors(3, (8, 5), (5, 64), (64,))
    with pytest.raises(ValueError, match="feature-major"):
        kernels.top_k(x_BD, W_DF.t(), b_F, 4)


def test_kept_pairs_and_quantities_per_pair() -> None:
    codes = _codes(4, 9, 7)
    mask_N = codes.value_N > 0
    kept = codes.kept(mask_N)
    close(kept.dense(), codes.dense().clamp_min(0))
    (weight_B, weight_F) = _tensors(1, (9,), (7,))
    close(
        codes.with_values(codes.of_row(weight_B)).dense().sum(1),
        weight_B * (codes.dense() != 0).sum(1),
    )
    close(codes.of_feature(weight_F), weight_F[codes.feature_N.long()])
