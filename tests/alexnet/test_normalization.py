"""§3.3 against its equation, written as a loop in float64."""

import pytest
import torch
import torch.nn.functional as F

from alexnet.normalization import ALPHA, AcrossKernels, AcrossSpace


def equation(a_BCHW, columns, alpha, k=2.0, n=5, beta=0.75):
    b_BCHW = torch.empty_like(a_BCHW)
    kernels = a_BCHW.shape[1] // columns
    for i in range(a_BCHW.shape[1]):
        column, own = divmod(i, kernels)
        first, last = max(0, own - n // 2), min(kernels - 1, own + n // 2)
        near = a_BCHW[:, column * kernels + first : column * kernels + last + 1]
        b_BCHW[:, i] = a_BCHW[:, i] / (k + alpha * (near**2).sum(1)) ** beta
    return b_BCHW


def maps(channels=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 4, 3, generator=generator, dtype=torch.float64) * 100


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("scale", [ALPHA, ALPHA / 5])
def test_across_kernels_is_the_equation_inside_each_column(columns, scale):
    torch.testing.assert_close(
        AcrossKernels(columns, scale)(maps()), equation(maps(), columns, scale), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("alpha", "scale"), [(1e-4, ALPHA / 5), (5e-4, ALPHA)], ids=["original", "printed"])
def test_torch_divides_alpha_by_the_size_as_the_code_of_2012_did_and_the_paper_does_not(alpha, scale):
    theirs = F.local_response_norm(maps(), 5, alpha, 0.75, 2.0)
    torch.testing.assert_close(AcrossKernels(1, scale)(maps()), theirs, rtol=1e-12, atol=0)


def test_across_space_is_the_mean_over_5_by_5_places_with_zeros_outside():
    a = maps(3)
    padded = F.pad(a**2, (2, 2, 2, 2))
    total = sum(padded[:, :, y : y + 4, x : x + 3] for y in range(5) for x in range(5))
    torch.testing.assert_close(AcrossSpace()(a), a / (1 + 1e-3 / 25 * total) ** 0.75, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [AcrossKernels(2, ALPHA), AcrossSpace()], ids=["kernels", "space"])
def test_the_closed_form_gradient_is_the_slope(layer):
    assert torch.autograd.gradcheck(layer, (maps(8).requires_grad_(),))


def test_half_precision_stays_in_half_precision_and_near():
    a = maps().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        b = AcrossKernels(2, ALPHA)(a)
    b.sum().backward()
    assert b.dtype == a.grad.dtype == torch.bfloat16
    torch.testing.assert_close(b.double(), equation(a.detach().double(), 2, ALPHA), rtol=0.03, atol=0.01)
