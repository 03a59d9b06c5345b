"""Spherical harmonics as variates: orthonormal, those of scipy, as many as there are."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y
from spheres import draw, nodes

from genflow.directions import Isotropic
from genflow.variate import Harmonics, Moments


@pytest.mark.parametrize("degree, d", [(2, 2), (30, 2), (2, 3), (6, 3), (20, 3)])
def test_harmonics_are_orthonormal(degree, d):
    theta, weight = nodes(d, 160)
    found = Harmonics(degree).features(theta, Moments(weight.new_zeros(1, d)), 2.0)[0]
    gram = (found * weight[:, None]).T @ found
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-11, rtol=0)


def test_harmonics_span_those_of_scipy():
    theta, weight = nodes(3, 80)
    found = Harmonics(6).features(theta, Moments(theta[:1]), 2.0)[0].numpy()
    theta, weight = theta.numpy(), weight.numpy()
    polar, longitude = np.arccos(theta[:, 2]), np.arctan2(theta[:, 1], theta[:, 0])
    for degree in (2, 3, 4, 6):
        for order in range(degree + 1):
            value = sph_harm_y(degree, order, polar, longitude)
            for part in (value.real, value.imag) if order else (value.real,):
                part = part / np.sqrt(weight @ part**2)
                inside = np.sum(((found * weight[:, None]).T @ part) ** 2)
                assert inside == pytest.approx(float(degree % 2 == 0), abs=1e-10)


@pytest.mark.parametrize("d", [4, 7])
def test_harmonics_of_degree_two_span_quadratic_forms(d):
    like = torch.zeros(1, d, dtype=torch.float64)
    theta = Isotropic().sample(200, d, draw(0), like)
    found = Harmonics(2).features(theta, Moments(like), 2.0)[0]
    assert int(torch.linalg.matrix_rank(found)) == found.shape[1] == d * (d + 1) // 2 - 1
    matrix = torch.randn(d, d, generator=draw(1), dtype=torch.float64)
    form = torch.einsum("li,ij,lj->l", theta, matrix, theta) - matrix.trace() / d  # of mean zero
    left = form - found @ torch.linalg.lstsq(found, form).solution
    assert float(left.abs().max()) < 1e-12


def test_numbers_of_harmonics():
    counts = {2: (2, 4, 6), 3: (5, 14, 27)}
    for d, each in counts.items():
        assert tuple(Harmonics(k).count(100, d) for k in (2, 4, 6)) == each
        theta = Isotropic().sample(5, d, draw(0))
        assert Harmonics(6).features(theta, Moments(torch.zeros(3, d)), 2.0).shape == (3, 5, each[2])
    assert [Harmonics(2).count(100, d) for d in (10, 32, 64)] == [54, 527, 2079]
    assert [Harmonics().count(k, 3) for k in (10, 28, 100, 500)] == [5, 14, 44, 230]
    with pytest.raises(ValueError, match="only degree 2 is known above three"):
        Harmonics(4).count(100, 10)
    for bad in (3, 0, 2.5):
        with pytest.raises((ValueError, TypeError), match="degree"):
            Harmonics(bad)
