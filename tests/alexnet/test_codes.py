"""Short codes: against plain loops; symmetries; the same bits however the rows are parted; near rows get near codes."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from alexnet import codes
from alexnet.codes import Encoder

LEARNING: dict[str, Any] = {"bits": 16, "hidden": 32, "epochs": 8, "batch_size": 16, "rate": 0.003, "seed": 0}


def clustered(rows: int = 300, classes: int = 6, features: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a few classes, each on a plane of its own of 3 dimensions, rectified; and their labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=rows)
    centres, planes = generator.normal(size=(classes, features)), generator.normal(size=(classes, 3, features))
    places = generator.normal(size=(rows, 3))
    made = 3 * centres[labels] + np.einsum("nd,ndf->nf", places, planes[labels])
    return np.maximum(made, 0).astype(np.float16), labels


def parted(rows: np.ndarray, number: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: iter(np.array_split(rows, number))


def an_encoder(features: int = 7, hidden: int = 5, bits: int = 24) -> Encoder:
    generator = np.random.default_rng(1)
    shapes = [(features,), (features, hidden), (hidden,), (hidden, bits), (bits,)]
    mean, *weights = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    return Encoder(mean, 1.7, *weights)


def test_a_code_is_that_of_plain_loops() -> None:
    encoder, rows = an_encoder(), np.random.default_rng(2).normal(size=(20, 7)).astype(np.float32)
    found = encoder.encode(rows)
    assert found.shape == (20, 3)
    for row, code in zip(rows.tolist(), found, strict=True):
        hidden = []
        for d in range(5):
            terms = [(row[f] - float(encoder.mean_F[f])) / 1.7 * float(encoder.hidden_FD[f, d]) for f in range(7)]
            hidden.append(max(0.0, float(encoder.hidden_bias_D[d]) + sum(terms)))
        for unit in range(24):
            terms = [hidden[d] * float(encoder.code_DU[d, unit]) for d in range(5)]
            bit = code[unit // 8] >> (7 - unit % 8) & 1
            assert bit == (float(encoder.code_bias_U[unit]) + sum(terms) > 0)


def test_turned_features_have_the_codes_of_those_that_were_not() -> None:
    encoder = an_encoder()
    generator = np.random.default_rng(3)
    rows = generator.normal(size=(50, 7)).astype(np.float32)
    order = generator.permutation(7)
    other = Encoder(encoder.mean_F[order], 1.7, encoder.hidden_FD[order], *_rest(encoder))
    np.testing.assert_array_equal(other.encode(rows[:, order]), encoder.encode(rows))
    turn, _ = np.linalg.qr(generator.normal(size=(7, 7)))
    other = Encoder(encoder.mean_F @ turn, 1.7, turn.T @ encoder.hidden_FD, *_rest(encoder))
    np.testing.assert_array_equal(other.encode(rows @ turn), encoder.encode(rows))


def _rest(encoder: Encoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return encoder.hidden_bias_D, encoder.code_DU, encoder.code_bias_U


def test_the_unit_of_the_features_does_not_matter() -> None:
    rows, _ = clustered()
    one, _ = codes.train(parted(rows, 1), **LEARNING)
    four, _ = codes.train(parted(rows * np.float16(4), 1), **LEARNING)
    np.testing.assert_array_equal(one.encode(rows), four.encode(rows * np.float16(4)))


@pytest.mark.parametrize("blocks", [2, 7, 300])
def test_a_row_has_the_same_code_whatever_the_rows_beside_it(blocks: int) -> None:
    rows, _ = clustered()
    rows.flags.writeable = False  # as what Arrow gives
    encoder, _ = codes.train(parted(rows, 1), **LEARNING)
    in_parts = np.concatenate([encoder.encode(part) for part in np.array_split(rows, blocks)])
    np.testing.assert_array_equal(in_parts, encoder.encode(rows))
    np.testing.assert_array_equal(encoder.encode(rows[::-1]), in_parts[::-1])


def test_the_slope_of_a_code_unit_is_that_of_the_logistic_unit() -> None:
    """d error / d input of a unit: by the error's slope along its bit, as plain loops and differences give it, times s(1-s)."""
    generator = torch.Generator().manual_seed(0)
    sizes = (6, 5, 8, 5, 6)
    weights = [
        torch.randn(a, b, generator=generator, dtype=torch.float64).requires_grad_()
        for a, b in itertools.pairwise(sizes)
    ]
    biases = [torch.randn(b, generator=generator, dtype=torch.float64).requires_grad_() for b in sizes[1:]]
    row = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    codes._error(row, weights, biases).backward()

    plain = [each.detach().numpy() for each in (*weights, *biases)]
    hidden = np.maximum(row.numpy()[0] @ plain[0] + plain[4], 0)
    shares = 1 / (1 + np.exp(-(hidden @ plain[1] + plain[5])))
    bits = (shares > 0.5).astype(float)
    assert 0 < bits.sum() < 8, "the case has become too easy"

    def error(middle: np.ndarray) -> float:
        restored = np.maximum(middle @ plain[2] + plain[6], 0) @ plain[3] + plain[7]
        return float(((restored - row.numpy()[0]) ** 2).mean())

    step = 1e-6 * np.eye(8)
    slopes = np.array([(error(bits + one) - error(bits - one)) / 2e-6 for one in step])
    assert biases[1].grad is not None
    np.testing.assert_allclose(biases[1].grad.numpy(), slopes * shares * (1 - shares), rtol=1e-6, atol=1e-9)


def test_learning_lowers_the_error_and_near_rows_get_near_codes() -> None:
    rows, labels = clustered()
    base, queries = rows[:250], rows[250:]
    encoder, errors = codes.train(parted(base, 1), **LEARNING | {"epochs": 30})
    assert errors[0] > 0.6
    assert errors[-1] < errors[0] / 2
    found, _ = codes.nearest(encoder.encode(queries), [encoder.encode(base)], 5)
    assert (labels[:250][found] == labels[250:, None]).mean() > 0.95  # chance: 1 in 6
    distances = ((queries[:, None].astype(float) - base[None]) ** 2).sum(-1)
    near = np.argsort(distances, axis=1)[:, :5]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(near.tolist(), found.tolist(), strict=True)])
    assert shared > 10 * 5 / 250


def test_equal_bytes_again_with_any_threads_and_others_with_another_seed() -> None:
    rows, _ = clustered()
    made, threads = [], torch.get_num_threads()
    try:
        for count, seed in ((1, 0), (2, 0), (1, 1)):
            torch.set_num_threads(count)
            file = io.BytesIO()
            codes.train(parted(rows, 3), **LEARNING | {"seed": seed})[0].save(file)
            assert torch.get_num_threads() == count
            made.append(file.getvalue())
    finally:
        torch.set_num_threads(threads)
    assert made[0] == made[1] != made[2]


def test_what_is_saved_codes_as_before() -> None:
    encoder, file = an_encoder(), io.BytesIO()
    encoder.save(file)
    file.seek(0)
    rows = np.random.default_rng(4).normal(size=(30, 7)).astype(np.float32)
    np.testing.assert_array_equal(Encoder.load(file).encode(rows), encoder.encode(rows))


def test_the_rows_are_gone_through_once_to_measure_and_once_for_each_epoch() -> None:
    rows, _ = clustered(40)
    passes = []

    def blocks() -> Iterator[np.ndarray]:
        passes.append(1)
        yield rows

    encoder, errors = codes.train(blocks, **LEARNING | {"epochs": 3})
    assert len(passes) == 4
    assert len(errors) == 3
    np.testing.assert_allclose(encoder.mean_F, rows.astype(float).mean(0), rtol=1e-6)
    assert encoder.scale == pytest.approx(np.sqrt(rows.astype(float).var(axis=0).mean()))


def test_the_error_is_the_mean_over_all_rows() -> None:
    """Without learning, however the rows are parted in batches."""
    rows, _ = clustered(50)
    errors = [codes.train(parted(rows, 1), **LEARNING | {"rate": 0.0, "batch_size": size})[1] for size in (1, 16, 50)]
    np.testing.assert_allclose(errors, errors[0][0], rtol=1e-5)


def test_each_epoch_and_block_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.tile(np.arange(20, dtype=np.float32)[:, None], (2, 3))
    seen, error = [], codes._error

    def kept(rows_BF: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(tuple(rows_BF[:, 0].tolist()))
        return error(rows_BF, *others)

    monkeypatch.setattr(codes, "_error", kept)
    codes.train(parted(rows, 2), **LEARNING | {"epochs": 2, "batch_size": 20})
    assert len(seen) == len(set(seen)) == 4
    assert len({tuple(sorted(batch)) for batch in seen}) == 1


def test_rows_that_are_not_finite_teach_nothing() -> None:
    rows, _ = clustered(60)
    holed = np.insert(rows, [7, 30], [[math.nan], [math.inf]], axis=0)
    plain, errors = codes.train(parted(rows, 1), **LEARNING)
    found, others = codes.train(parted(holed, 1), **LEARNING)
    assert errors == others
    np.testing.assert_array_equal(plain.encode(rows), found.encode(rows))
    assert found.encode(holed[7:8]).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="no row of features is finite"):
        codes.train(parted(holed[7:8], 1), **LEARNING)


def test_equal_rows_can_be_coded() -> None:
    rows = np.ones((20, 5), np.float32)
    encoder, errors = codes.train(parted(rows, 1), **LEARNING)
    assert np.isfinite(errors).all()
    assert len(np.unique(encoder.encode(rows), axis=0)) == 1


@pytest.mark.parametrize("bits", [0, 4, 12])
def test_a_code_is_whole_bytes(bits: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of 8, at least 8, is {bits}"):
        codes.train(parted(np.ones((2, 2)), 1), **LEARNING | {"bits": bits})


@pytest.mark.parametrize("size", [1, 8, 11])
@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_hamming_neighbours_are_those_of_a_plain_loop(size: int, blocks: int) -> None:
    generator = np.random.default_rng(size)
    queries, base = (generator.integers(256, size=(rows, size), dtype=np.uint8) for rows in (9, 50))
    rows, distances = codes.nearest(queries, np.array_split(base, blocks), 6)
    for query, found, far in zip(queries.tolist(), rows, distances, strict=True):
        all_of_them = []
        for row, code in enumerate(base.tolist()):
            apart = sum((a ^ b).bit_count() for a, b in zip(query, code, strict=True))
            all_of_them.append((apart, row))  # of equal distances the lower row first
        assert [(int(d), int(r)) for d, r in zip(far, found, strict=True)] == sorted(all_of_them)[:6]


def test_too_few_rows_and_wrong_arguments() -> None:
    zero, one = np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8)
    rows, distances = codes.nearest(zero, [one, zero], 3)
    assert rows.tolist() == [[1, 0, -1]]
    assert distances.tolist() == [[0, 2, -1]]
    with pytest.raises(ValueError, match="codes of 1 bytes, the queries of 2"):
        codes.nearest(zero, [np.zeros((4, 1), np.uint8)], 1)
    with pytest.raises(ValueError, match="at least 1, is 0"):
        codes.nearest(zero, [one], 0)
