"""The drawn faces: repeatable, shaped like FER2013, learnable, with exactly the copies that are promised."""

from collections import Counter

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces, Splits
from fer_utils.sources import synthetic


def pixels(faces: Faces) -> list[bytes]:
    return [image.tobytes() for image in faces.images]


@pytest.mark.parametrize("n", [100, 237, 600])
def test_parts_have_the_sizes_and_every_emotion(n: int) -> None:
    splits = synthetic.generate(n)
    assert len(splits.train) + len(splits.val) + len(splits.test) == n
    assert len(splits.val) == len(splits.test) == round(0.15 * n)
    for _, faces in splits:
        assert faces.labelled
        assert (faces.counts() > 0).all()
        assert len(set(faces.names)) == len(faces)


def test_the_shares_of_emotions_are_those_of_fer2013() -> None:
    splits = synthetic.generate(1500)
    counts = sum(faces.counts() for _, faces in splits)
    # Goodfellow et al. 2013: 28,709 training faces, 436 of them disgust and 7,215 happy.
    published = np.array([3995, 436, 4097, 7215, 4965, 4830, 3171]) / 28709
    assert np.abs(counts / 1500 - published).max() < 0.01


def test_equal_seeds_give_equal_faces() -> None:
    first, again, other = (synthetic.generate(200, seed) for seed in (4, 4, 5))
    for part, faces in first:
        assert np.array_equal(faces.images, again[part].images)
        assert np.array_equal(faces.targets, again[part].targets)
        assert list(faces.names) == list(again[part].names)
    assert not set(pixels(first.train)) & set(pixels(other.train))


def test_faces_come_in_the_canonical_order_and_say_that_they_are_drawn(synthetic_splits: Splits) -> None:
    for _, faces in synthetic_splits:
        assert np.array_equal(faces.sorted().names, faces.names)
    assert synthetic_splits.synthetic
    assert "ynthetic" in synthetic_splits.rule
    assert "ynthetic" in synthetic_splits.title_note


@pytest.mark.parametrize(("n", "seed"), [(100, 1), (600, 0), (900, 7)])
def test_exact_copies_are_planted_in_the_numbers_told(n: int, seed: int) -> None:
    splits, told = synthetic.generate(n, seed), synthetic.planted(n)
    train, val, test = (pixels(faces) for _, faces in splits)
    in_train = set(train)
    assert len(train) - len(in_train) == told.train_copies + told.train_conflicts
    assert sum(image in in_train for image in val) == told.val_copies
    assert sum(image in in_train for image in test) == told.test_copies + told.test_conflicts == told.test_in_train
    assert not set(val) & set(test)
    assert n - len(set(train + val + test)) == told.exact

    labels: dict[bytes, set[int]] = {}
    for _, faces in splits:
        for image, target in zip(pixels(faces), faces.targets, strict=True):
            labels.setdefault(image, set()).add(int(target))
    assert sum(len(found) > 1 for found in labels.values()) == told.conflicting
    # No face is copied more than once, so each number can be counted on its own.
    assert max(Counter(train + val + test).values()) == 2


def test_mirrored_copies_are_planted_in_the_numbers_told(synthetic_splits: Splits) -> None:
    told = synthetic.planted(600)
    flat = synthetic_splits.train.images.std(axis=(1, 2)) == 0
    train = Counter(pixels(synthetic_splits.train.select(~flat)))
    assert sum(image[:, ::-1].tobytes() in train for image in synthetic_splits.test.images) == told.test_mirrored
    within = sum(image[:, ::-1].tobytes() in train for image in synthetic_splits.train.images[~flat])
    assert within == 2 * told.train_mirrored


def test_constant_images_are_planted_in_the_number_told() -> None:
    splits, told = synthetic.generate(1200), synthetic.planted(1200)
    flat = [faces.images[faces.images.std(axis=(1, 2)) == 0] for _, faces in splits]
    assert [len(images) for images in flat] == [told.constant, 0, 0]
    assert len(np.unique(flat[0][:, 0, 0])) == told.constant


def test_nothing_is_planted_twice_and_never_none() -> None:
    for n in (100, 6000, 35_887):
        assert min(vars(synthetic.planted(n)).values()) >= 1


def test_expressions_can_be_told_apart_but_not_always() -> None:
    splits = synthetic.generate(1800, seed=3)

    def small(faces: Faces) -> np.ndarray:
        return faces.images.reshape(-1, 16, 3, 16, 3).mean(axis=(2, 4)).reshape(len(faces), -1)

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(small(splits.train), splits.train.targets)
    right = model.predict(small(splits.test)) == splits.test.targets
    always_happy = (splits.test.targets == EMOTIONS.index("happy")).mean()
    assert right.mean() > always_happy + 0.15
    # 8% of the labels are wrong by design.
    assert right.mean() < 0.92


def test_faces_use_the_range_of_greys(synthetic_splits: Splits) -> None:
    deviations = synthetic_splits.test.images.std(axis=(1, 2))
    assert np.percentile(deviations, 5) > 10
    assert 90 < synthetic_splits.test.images.mean() < 165


@pytest.mark.parametrize(("n", "seed", "named"), [(99, 0, "99"), (0, 0, "at least 100"), (200, -1, "seed")])
def test_impossible_numbers_are_refused(n: int, seed: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        synthetic.generate(n, seed)
