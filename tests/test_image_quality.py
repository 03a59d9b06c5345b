"""The numbers of generated images against independent ones, the classifier that they rest on, and the
callback that writes them."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torch import nn
from toy_training import adam, trainer

import genflow
from genflow import diagnostics, plot_images
from genflow.data import Digits, Simulated
from genflow.diagnostics import Classifier, cached_classifier, fit_classifier, image_quality
from genflow.diagnostics import classifier as module
from genflow.diagnostics.classifier import labelled
from genflow.diagnostics.image_quality import _of_classes
from genflow.loss import Matching
from genflow.model import Generator
from genflow.network import MLP
from genflow.process import SDE
from genflow.solver import Euler
from genflow.source import Gaussian, Moons
from genflow.training import Checkpoint, DataModule, ImageQuality, Report, Training

DIGITS = Digits(Gaussian([1, 8, 8]), labels=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder with the classifier of the digits."""
    folder = tmp_path_factory.mktemp("cache")
    cached_classifier(DIGITS, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def judge(cache):
    return cached_classifier(DIGITS, cache)


def clouds(n: int, m: int, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(d, d))
    x, y = draw.normal(size=(n, d)) @ mix, draw.normal(size=(m, d)) * 1.3 + 0.4
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def test_frechet_distance_is_the_closed_form():
    x, y = clouds(200, 150)
    a, b = x.double().numpy(), y.double().numpy()
    s, t = np.cov(a.T), np.cov(b.T)
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    known = gap + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert diagnostics.frechet_distance(x, y) == pytest.approx(known, rel=1e-8)
    assert diagnostics.frechet_distance(y, x) == pytest.approx(known, rel=1e-8)
    assert diagnostics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    # not the root, nor with moments of other normalisation
    biased = gap + np.trace(s * 199 / 200 + t * 149 / 150 - 2 * sqrtm(s @ t).real)
    assert abs(biased / known - 1) > 1e-3


def test_kernel_distance_is_the_unbiased_estimator():
    x, y = clouds(120, 120)
    a, b = x.double().numpy(), y.double().numpy()

    def kernel(u, v):
        return (u @ v.T / 5 + 1) ** 3

    def off(k):
        return (k.sum() - np.trace(k)) / (120 * 119)

    known = off(kernel(a, a)) + off(kernel(b, b)) - 2 * kernel(a, b).mean()
    state = torch.get_rng_state()
    assert diagnostics.kernel_distance(x, y) == pytest.approx(known, rel=1e-6)
    assert torch.equal(state, torch.get_rng_state())
    biased = kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean()
    assert abs(biased / known - 1) > 0.01
    assert np.isfinite(diagnostics.kernel_distance(x, y[:50]))


def brute_manifolds(real, fake, k, k_density) -> list[float]:
    """Row by row from the definitions of both papers."""

    def radius(rows, i, k):
        return np.sort([np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i])[k - 1]

    d = cdist(real, fake)
    near, wide = ([radius(real, i, k) for i in range(len(real))] for k in (k, k_density))
    reach = [radius(fake, j, k) for j in range(len(fake))]
    n, m = d.shape
    return [
        np.mean([any(d[i, j] <= near[i] for i in range(n)) for j in range(m)]),
        np.mean([any(d[i, j] <= reach[j] for j in range(m)) for i in range(n)]),
        sum(d[i, j] <= wide[i] for i in range(n) for j in range(m)) / (k_density * m),
        np.mean([any(d[i, j] <= wide[i] for j in range(m)) for i in range(n)]),
    ]


@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (1, 2)])
def test_manifolds_are_those_of_brute_force(chunk, k, k_density):
    x, y = clouds(60, 45, d=3)
    found = diagnostics.manifolds(x, y, k, k_density, chunk)
    known = brute_manifolds(x.double().numpy(), y.double().numpy(), k, k_density)
    assert found == pytest.approx(known, abs=1e-12)
    # a row that counts as its own neighbour shrinks every ball
    off = brute_manifolds(x.double().numpy(), y.double().numpy(), k + 1, k_density + 1)
    assert max(abs(a - b) for a, b in zip(found, off)) > 0.05


def test_manifolds_tell_poor_samples_from_samples_of_one_kind():
    real = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    narrow = diagnostics.manifolds(real, 0.1 * real.flip(0))
    far = diagnostics.manifolds(real, real.flip(0) + 20)
    assert (narrow.precision, narrow.density) > (0.95, 1)
    assert narrow.recall < 0.1 > narrow.coverage - 0.15
    assert far == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="5 neighbours need more rows .* got 5"):
        diagnostics.manifolds(real, real[:5])


def test_nearest_are_those_of_scipy():
    draw = torch.Generator().manual_seed(0)
    train, x = (torch.rand(n, 1, 6, 6, generator=draw) * 2 - 1 for n in (90, 23))
    x[3] = train[70]
    found = diagnostics.nearest(x, train, k=4, chunk=5)
    d = cdist(x.flatten(1).double(), train.flatten(1).double())
    order = d.argsort(1)[:, :4]
    assert found.index.tolist() == order.tolist()
    np.testing.assert_allclose(found.distance, np.take_along_axis(d, order, 1), atol=1e-12)
    assert (float(found.distance[3, 0]), int(found.index[3, 0])) == (0, 70), "a copy is at 0 exactly"
    with pytest.raises(ValueError, match="90 training images, fewer than k=91"):
        diagnostics.nearest(x, train, k=91)


def test_digits_are_recognised(judge):
    x, labels = labelled(DIGITS, "test")
    assert judge.accuracy(x, labels) >= 0.97
    assert not judge.training
    features, guessed = judge.judge(x, batch_size=7)
    assert features.shape == (len(x), 64)
    with torch.no_grad():
        assert torch.equal(judge(x).argmax(1), guessed)
    known = judge.judge(labelled(DIGITS, "train")[0])[0]
    assert float(known.var(0).mean()) == pytest.approx(1, rel=1e-3)


def test_classifiers_repeat_and_leave_other_draws_alone(monkeypatch):
    monkeypatch.setattr(module, "LEAST", 3)
    x, labels = (v[:200] for v in labelled(DIGITS, "train"))
    state = torch.get_rng_state()
    one, same, other = (fit_classifier(x, labels, epochs=1, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["project.weight"], other["project.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_unit_features_leave_the_classes_alone():
    torch.manual_seed(0)
    model, x = Classifier([3, 20, 16], classes=4, width=4).eval(), torch.rand(50, 3, 20, 16)
    with torch.no_grad():
        before = model(x)
        module._unit_features(model, x)
        torch.testing.assert_close(model(x), before)
    assert float(model.judge(x)[0].var(0).mean()) == pytest.approx(1, rel=1e-5)


def test_a_kept_classifier_is_used_for_its_data_alone(cache, judge, monkeypatch):
    monkeypatch.setattr(module, "fit_classifier", lambda *a: Classifier([1, 8, 8], width=4))
    again = cached_classifier(DIGITS, cache)
    x = labelled(DIGITS, "test")[0]
    assert torch.equal(again.judge(x)[0], judge.judge(x)[0])
    assert len(list(cache.iterdir())) == 1
    cached_classifier(DIGITS, cache, seed=1)
    cached_classifier(Digits(Gaussian([1, 8, 8]), labels=True, holdout=0.2), cache)
    made = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(made) == 3
    for path in made[1:]:
        path.unlink()


def test_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit_classifier", lambda *a: Classifier([1, 8, 8], width=4))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_classifier(DIGITS)
    assert len(list((tmp_path / "genflow").glob("classifier_*.pt"))) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Classifier([64]), "must be .channels, height, width. of at least 4 x 4"),
        (lambda: Classifier([1, 8, 8], width=0), "width must be a whole number"),
        (lambda: Classifier([1, 8, 8]).features(torch.zeros(2, 1, 8, 9)), "expected .1, 8, 8."),
        (lambda: fit_classifier(torch.zeros(4, 1, 8, 8), torch.zeros(4).long()), "two classes"),
        (lambda: fit_classifier(torch.zeros(4, 1, 8, 8), torch.arange(4.0)), "whole numbers"),
        (lambda: fit_classifier(torch.zeros(4, 1, 8, 8), torch.arange(5)), "4 images but 5 labels"),
        (lambda: labelled(Digits(Gaussian(2)), "train"), "Digits yields no images with one label"),
        (lambda: labelled(Simulated(Gaussian(2), Moons()), "train"), "Simulated yields no images"),
    ],
)
def test_bad_input_is_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_numbers_order_samples_of_falling_quality(judge):
    (test, labels), (train, known) = labelled(DIGITS, "test"), labelled(DIGITS, "train")
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    fresh = labelled(DIGITS, "val")  # what a perfect model makes
    runs = {
        "good": fresh, "noisy": (fresh[0] + 0.5 * noise, fresh[1]), "noise": (noise, labels),
        "copies": (train, known), "one": (train[known == 3], torch.full((999,), 3)),
        "wrong": (fresh[0], (fresh[1] + 1) % 10),
    }  # fmt: skip
    reports = {k: image_quality(judge, x, test, train, c, labels) for k, (x, c) in runs.items()}
    found = {name: report.numbers for name, report in reports.items()}
    good, noisy = found["good"], found["noisy"]
    assert good["frechet_classifier"] < 2 * good["frechet_classifier_floor"]
    assert 2 * good["frechet_classifier"] < noisy["frechet_classifier"]
    assert 2 * noisy["frechet_classifier"] < found["noise"]["frechet_classifier"]
    assert noisy["kernel_classifier"] > 4 * abs(good["kernel_classifier"])
    assert good["class_accuracy"] > 0.95 < good["class_accuracy_real"]
    assert found["wrong"]["class_accuracy"] < 0.05
    assert found["noise"]["class_accuracy"] < 0.3
    assert found["one"]["precision"] > 0.8 > 0.3 > found["one"]["recall"]
    assert found["copies"]["nearest"] == 0 < 1 < good["nearest_test"]
    assert good["nearest"] == pytest.approx(good["nearest_test"], rel=0.1)
    shares = image_quality(judge, *fresh[:1], test, train, fresh[1], labels, known).numbers
    assert shares["frechet_classifier"] == good["frechet_classifier"]
    assert shares["frechet_classifier_floor"] != good["frechet_classifier_floor"]
    low, middle, high = good["nearest_quantiles"]
    least = cdist(fresh[0].flatten(1).double(), train.flatten(1).double()).min(1)
    np.testing.assert_allclose([low, middle, high], np.quantile(least, [0.05, 0.5, 0.95]), atol=1e-4)
    assert {k: v for k, v in good.items() if "floor" in k or "real" in k} == {
        k: v for k, v in found["noise"].items() if "floor" in k or "real" in k
    }, "what real images get does not depend on the samples"


def test_samples_that_are_not_finite_count_against_a_model(judge):
    (test, labels), (train, _) = labelled(DIGITS, "test"), labelled(DIGITS, "train")
    samples, n = test.clone(), len(test)
    samples[::2] = float("nan")
    samples[1, 0, 0, 0] = float("inf")
    found = image_quality(judge, samples, test, train, labels, labels).numbers
    left = n // 2 - 1
    assert found["finite"] == pytest.approx(left / n, abs=1e-9)
    assert found["class_accuracy"] <= left / n
    assert found["frechet_classifier"] > 5 * found["frechet_classifier_floor"]
    json.dumps(found, allow_nan=False)
    beyond = image_quality(judge, test * 3, test, train).numbers  # as a screen shows them
    held = image_quality(judge, (test * 3).clamp(-1, 1), test, train).numbers
    assert beyond == held
    assert "class_accuracy" not in beyond


def training(labels: bool = True) -> Training:
    network = MLP([1, 8, 8], width=16, depth=2, classes=10 if labels else None)
    model = Generator(Gaussian([1, 8, 8]), SDE(network), Euler(3))
    return Training(model, Matching(), optimizer=adam)


def loaded(data) -> DataModule:
    return DataModule(data, batch_size=32, val_batches=2)


@pytest.mark.parametrize("labels", [True, False])
def test_the_callback_adds_to_the_report(tmp_path, cache, labels):
    run, report = training(labels), Report(str(tmp_path), 50)
    quality = ImageQuality(str(tmp_path), 120, cache=str(cache), rows=4, neighbours=2)
    parts = [report, quality, Checkpoint(str(tmp_path))]
    trainer(tmp_path, 2, parts).fit(run, loaded(Digits(Gaussian([1, 8, 8]), labels)))
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["quality_samples"] == 120
    assert numbers == report.metrics, "what the command line returns"
    assert numbers.items() >= quality.metrics.items()
    assert {"w2", "frechet_classifier", "coverage", "nearest_test"} <= numbers.keys()
    assert ("class_accuracy" in numbers) == labels
    assert numbers["class_accuracy_real"] > 0.95, "labels of the data though the model has none"
    assert matplotlib.image.imread(tmp_path / "quality.png").std() > 0.1
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if not name.startswith("model.")]
    assert not [m for m in run.modules() if isinstance(m, Classifier)]
    assert run.model.training == training(labels).model.training


def test_any_model_can_be_judged_again(tmp_path, cache, judge):
    path = tmp_path / "judge.pt"
    genflow.save(judge, path)
    model = training().model
    found = []
    for k in range(2):
        quality = ImageQuality(str(tmp_path / str(k)), 60, 25, classifier=str(path))
        quality.score(model, DIGITS, seed=3)
        found.append(quality.metrics)
    assert found[0] == found[1]
    assert json.loads((tmp_path / "0" / "metrics.json").read_text()) == found[0]


def test_classes_are_asked_for_in_equal_shares(tmp_path, cache):
    asked = []

    class Perfect(nn.Module):
        """Yields test images of the class that is asked for."""

        device, most = torch.device("cpu"), None

        def sample(self, n, cond, generator, **options):
            asked.append(cond)
            x, labels = labelled(DIGITS, "test")
            return torch.stack([x[labels == c][i % 20] for i, c in enumerate(cond.tolist())])

    quality = ImageQuality(str(tmp_path), 200, cache=str(cache))
    figure = quality.score(Perfect(), DIGITS)
    assert asked[0].bincount().tolist() == [20] * 10
    assert quality.metrics["class_accuracy"] > 0.95
    assert quality.metrics["nearest"] == pytest.approx(quality.metrics["nearest_test"], rel=0.15)
    title = figure.get_suptitle()
    assert "Fréchet distance in our classifier's features" in title
    assert "FID" not in title


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (Simulated(Gaussian([1, 8, 8]), Gaussian([1, 8, 8])), {}, "Simulated yields no images"),
        (DIGITS, {"classifier": "model.pt"}, "'model.pt' holds a MLP, expected a genflow.diagnostics"),
        (DIGITS, {"classifier": "small.pt"}, "judges images of shape .1, 28, 28., but the data have"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(tmp_path, monkeypatch, data, options, said):
    monkeypatch.chdir(tmp_path)
    genflow.save(MLP(2, width=4, depth=1), "model.pt")
    genflow.save(Classifier([1, 28, 28], width=2), "small.pt")
    labels = data is DIGITS
    run = training(labels)
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, 2, [ImageQuality(**options)]).fit(run, loaded(data))
    assert run.batches_seen == 0


def test_the_report_must_come_first(tmp_path):
    with pytest.raises(ValueError, match="list it after Report"):
        trainer(tmp_path, 2, [ImageQuality(), Report(str(tmp_path))]).fit(training(), loaded(DIGITS))


def test_the_picture_puts_copies_on_top():
    train = torch.rand(9, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    samples = torch.stack([train[1] + 0.5, train[4]])
    found = diagnostics.nearest(samples, train, 2)
    figure = plot_images.quality(samples, train[found.index], found.distance, torch.tensor([0, 1]))
    left, right = (axis.get_images()[0].get_array() for axis in figure.axes)
    assert left.shape == (2 * 6 - 1, 3 * 6 - 1)
    assert right.shape == (2 * 6 - 1, 5)
    np.testing.assert_array_equal(left[:5, :5], left[:5, 6:11])
    assert np.abs(left[6:, :5] - left[6:, 6:11]).max() > 0.1
    assert [text.get_text() for text in figure.axes[0].texts][0] == "0.0"


def test_a_sheet_without_labels_has_the_rows_asked_for():
    samples = torch.rand(23, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = diagnostics.nearest(samples, samples, 1)
    figure = plot_images.quality(samples, samples[found.index], found.distance, rows=4)
    assert figure.axes[1].get_images()[0].get_array().shape == (4 * 5 - 1, 4 * 5 - 1, 3)


def test_floors_have_the_classes_that_samples_have():
    labels = torch.arange(60) % 4
    asked = torch.tensor([3, 3, 0, 3, 1])
    rows = _of_classes(asked, labels, torch.randperm(60))
    assert labels[rows].tolist() == asked.tolist()
    assert len(rows.unique()) == 5
    assert len(_of_classes(torch.zeros(20).long(), labels, torch.arange(60)).unique()) == 15
    with pytest.raises(ValueError, match="class 4 was asked for, but is not in the data"):
        _of_classes(torch.tensor([4]), labels, torch.arange(60))
