"""What light bridges refuse, and in which words."""

import math

import pytest
import torch

from genflow.process import LightBridge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be a finite number"),
        ({"components": 0}, "components must be a whole number"),
        ({"components": 2.5}, "components must be a whole number"),
        ({"components": "many"}, "components must be a whole number"),
        ({"dim": 0}, "dim must be a positive whole number"),
        ({"dim": [2, 0]}, "dim must be a positive whole number"),
        (
            {"covariance": "round"},
            "covariance must be one of 'diagonal', 'full', 'isotropic', 'low_rank'",
        ),
        ({"rank": 2}, "rank belongs to 'low_rank' alone"),
        ({"covariance": "low_rank"}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": 3}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": 0}, "rank must be a whole number from 1 to 2"),
        ({"covariance": "low_rank", "rank": True}, "rank must be a whole number from 1 to 2"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LightBridge(**({"dim": 3, "components": 4, "epsilon": 1.0} | arguments))


x = torch.zeros(4, 2)


def give(made, **changed):
    """What a bridge is given, one of it changed."""
    given = {"log_weight": torch.zeros(3), "location": torch.zeros(3, 2), "scale": torch.ones(3, 2)}
    return made.assign(**(given | changed))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: b.drift(0.5, torch.zeros(4, 3)), r"x must be \(B, 2\), got \(4, 3\)"),
        (lambda b: b.drift(0.5, torch.zeros(2)), r"x must be \(B, 2\), got \(2,\)"),
        (lambda b: b.drift(0.5, [0.0, 0.0]), r"x must be \(B, 2\), got list"),
        (lambda b: b.log_potential(torch.zeros(4, 3)), r"x1 must be \(B, 2\)"),
        (lambda b: b.log_normaliser(torch.zeros(4, 3)), r"x0 must be \(B, 2\)"),
        (lambda b: b.objective(x, torch.zeros(4, 3)), r"x1 must be \(B, 2\)"),
        (lambda b: b.plan(torch.zeros(4, 1, 2)), r"x must be \(B, 2\)"),
        (lambda b: b.anchor(torch.zeros(4, 3)), r"x0 must be \(B, 2\)"),
        (lambda b: b.drift(1.5, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(-0.1, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(math.nan, x), r"must lie in \[0, 1\]"),
        (lambda b: b.drift(torch.tensor([0.0, 0.5, 1.0, 1.5]), x), r"must lie in \[0, 1\]"),
        (lambda b: b.transition(0.5, 1.5, x), r"must lie in \[0, 1\]"),
        (lambda b: b.sample_at(x, -0.5), r"must lie in \[0, 1\]"),
        (lambda b: b.log_prob_at(1.5, x, x), r"must lie in \[0, 1\]"),
        (lambda b: b.log_prob_at(0.0, x, x), "needs s < t"),
        (lambda b: b.transition_law(0.5, 0.5, x), "needs s < t"),
        (lambda b: b.transition_law(0.5, 0.2, x), "needs s < t"),
        (lambda b: b.transition_law(torch.tensor([0.0, 0.5, 0.0, 0.0]), 0.5, x), "needs s < t"),
        (lambda b: b.drift(0.5, x, x), "knows no conditions"),
        (lambda b: b(0.5, x, cond=x), "knows no conditions"),
        (lambda b: b.backward_drift(0.5, x, x), "knows no conditions"),
        (lambda b: b.sample_path(x, [0.5, 0.2]), "rise strictly"),
        (lambda b: b.sample_path(x, [0.0, 0.0, 1.0]), "rise strictly"),
        (lambda b: b.sample_path(x, [0.0, 1.5]), r"within \[0, 1\]"),
        (lambda b: b.sample_path(x, [-0.5, 1.0]), r"within \[0, 1\]"),
        (lambda b: b.sample_path(x, 0.5), "rise strictly"),
        (
            lambda b: b.assign(torch.zeros(3), torch.zeros(2, 2), torch.ones(2, 2)),
            r"location has shape \(2, 2\), expected \(3, 2\)",
        ),
    ],
)
def test_bad_questions_are_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(LightBridge(2, 3, 1.0))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda b: b.drift(0.5, x.long()), "x must be a floating-point tensor"),
        (lambda b: b.transition(0.0, 1.0, x.long()), "x must be a floating-point tensor"),
        (lambda b: b.sample_path(x, [0.5, 1.0], x1=x[:3]), r"x1 has shape \(3, 2\) but x0 \(4, 2\)"),
        (lambda b: b.plan(x).log_prob(torch.zeros(4, 3)), r"log_prob: places have shape \(4, 3\)"),
        (lambda b: give(b, scale=torch.zeros(3, 2)), "eigenvalue of scale is 0; all must be positive"),
        (lambda b: give(b, scale=-torch.ones(3, 2)), "eigenvalue of scale is -1; all must be positive"),
        (lambda b: give(b, scale=torch.ones(3)), r"scale has shape \(3,\), expected \(3, 2\)"),
        (lambda b: give(b, log_weight=torch.zeros(())), r"log_weight has shape \(\), expected \(3,\)"),
        (lambda b: b.sample_path(x, []), "times must"),
        (lambda b: b.sample_path(x, [0.0, math.nan]), "times must"),
        (lambda b: b.anchor(x[:0]), "at least one row"),
    ],
)
def test_what_is_not_meant_is_refused(ask, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ask(LightBridge(2, 3, 1.0))


@pytest.mark.parametrize("family", ["diagonal", "isotropic", "full", "low_rank"])
def test_nothing_is_taken_from_what_is_refused(family):
    made = LightBridge(3, 2, 1.0, family, 1 if family == "low_rank" else None).double()
    given = made.numbers()
    worse = given[2].clone()
    worse[1] = -worse[1]
    with pytest.raises(ValueError, match="must be positive"):
        made.assign(given[0] + 1, given[1] + 1, worse)
    assert all(map(torch.equal, made.numbers(), given))


def test_a_bridge_of_as_many_as_it_takes_takes_any_number():
    made = LightBridge(2, "auto", 1.0)
    made.assign(torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 2))
    assert made.components == len(made.location) == 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda b: b.drift(0.5, x[:0]),
        lambda b: b.drift(x[:0, 0], x[:0]),
        lambda b: b.log_potential(x[:0]),
        lambda b: b.plan(x[:0]).sample(),
        lambda b: b.plan(x[:0]).mean,
        lambda b: b.plan(x[:0]).covariance_matrix,
        lambda b: b.plan(x[:0]).log_prob(x[:0]),
        lambda b: b.anchor(x).backward_drift(0.5, x[:0]),
        lambda b: b.anchor(x).log_density(0.5, x[:0]),
        lambda b: b.anchor(x).transition(1.0, 0.5, x[:0]),
    ],
)
def test_no_rows_are_no_answers(ask):
    assert len(ask(LightBridge(2, 3, 1.0))) == 0
