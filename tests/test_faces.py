"""Faces, digests of their pixels, and cuts that never put copies of one face on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_utils.faces import Faces, Skipped, Splits, cut, describe, digests

Rows = list[tuple[int, int]]


def picture(number: int) -> np.ndarray:
    """Return a picture of its own for each number, uint8 (48, 48)."""
    image = np.zeros((48, 48), np.uint8)
    image.flat[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
    return image


def faces(rows: Rows) -> Faces:
    """Return a face per (picture, target)."""
    if not rows:
        return Faces.empty()
    return Faces(
        np.stack([picture(number) for number, _ in rows]),
        np.array([target for _, target in rows], np.int64),
        np.array([f"{i}.png" for i in range(len(rows))]),
    )


# -- digests ----------------------------------------------------------------------------------------------------------


def test_digests_are_the_published_hash_of_the_pixels() -> None:
    # BLAKE2b with 16 bytes of 2,304 zeros, by `b2sum --length 128`.
    zeros = np.zeros((1, 48, 48), np.uint8)
    assert digests(zeros).tolist() == [b"a462b2bbf47c40b136dfb4649543ce3d"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_digests_are_equal_where_pixels_are(numbers: list[int]) -> None:
    found = digests(np.stack([picture(number) for number in numbers]))
    assert found.dtype == np.dtype("S32")
    for i, number in enumerate(numbers):
        assert [bool(same) for same in found == found[i]] == [other == number for other in numbers]


def test_every_pixel_counts() -> None:
    images = np.zeros((2305, 48, 48), np.uint8)
    images.reshape(2305, 2304)[np.arange(2304), np.arange(2304)] = 1
    assert len(set(digests(images))) == 2305


def test_digests_do_not_depend_on_the_memory_layout() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48)).astype(np.uint8)
    assert np.array_equal(digests(np.asfortranarray(images)), digests(images))
    assert np.array_equal(digests(images[::2]), digests(images)[::2])
    assert np.array_equal(digests(images[:, :, ::-1]), digests(images[:, :, ::-1].copy()))
    assert digests(images[:0]).shape == (0,)


# -- Faces ------------------------------------------------------------------------------------------------------------

GOOD = np.zeros((2, 48, 48), np.uint8)
TARGETS = np.zeros(2, np.int64)
NAMES = np.array(["a", "b"])


@pytest.mark.parametrize(
    ("images", "targets", "names", "said"),
    [
        (GOOD.astype(np.float32), TARGETS, NAMES, r"images must be uint8 .*not float32"),
        (GOOD[:, :47], TARGETS, NAMES, r"\(2, 47, 48\)"),
        (GOOD[:, :, :, None], TARGETS, NAMES, r"\(2, 48, 48, 1\)"),
        (GOOD, TARGETS[:1], NAMES, r"targets must be int64 \(2,\), not int64 \(1,\)"),
        (GOOD, TARGETS.astype(np.int32), NAMES, "not int32"),
        (GOOD, TARGETS + 7, NAMES, "targets must be -1 to 6"),
        (GOOD, TARGETS - 2, NAMES, "targets must be -1 to 6"),
        (GOOD, TARGETS, NAMES[:1], r"names must be \(2,\)"),
    ],
)
def test_wrong_arrays_are_refused(images: np.ndarray, targets: np.ndarray, names: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Faces(images, targets, names)


def test_digests_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="digests"):
        Faces(GOOD, TARGETS, NAMES, digests(GOOD)[:1])


def test_labels_and_counts() -> None:
    some = faces([(1, 0), (2, 3), (3, 3), (4, -1)])
    assert not some.labelled
    assert some.counts().tolist() == [1, 0, 0, 2, 0, 0, 0]
    assert some.select(slice(0, 3)).labelled
    assert not Faces.empty().labelled
    assert Faces.empty().counts().tolist() == [0] * 7


def test_selecting_takes_images_targets_names_and_digests_along() -> None:
    some = faces([(1, 0), (2, 3), (3, 6)])
    for index in (np.array([2, 0]), np.array([True, False, True]), slice(1, None)):
        chosen = some.select(index)
        assert chosen.targets.tolist() == some.targets[index].tolist()
        assert list(chosen.names) == list(some.names[index])
        assert np.array_equal(chosen.digests, digests(chosen.images))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 6)), max_size=20), st.randoms())
def test_sorting_gives_one_order_whatever_came_in(rows: Rows, chance: object) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = faces(rows).sorted(), faces(shuffled).sorted()
    assert np.array_equal(first.images, second.images)
    assert first.targets.tolist() == second.targets.tolist()
    keys = list(zip(first.digests, first.targets, strict=True))
    assert keys == sorted(keys)


def test_concatenating_keeps_order_and_longest_names() -> None:
    first, second = faces([(1, 0)]), faces([(2, 3)])
    long = Faces(second.images, second.targets, np.array(["a/very/long/name.png"]))
    both = Faces.concatenate([first, long, Faces.empty()])
    assert list(both.names) == ["0.png", "a/very/long/name.png"]
    assert both.targets.tolist() == [0, 3]
    assert len(Faces.concatenate([])) == 0


# -- cut --------------------------------------------------------------------------------------------------------------

LABELLED = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=120)


@given(LABELLED, st.floats(0, 0.95), st.integers(0, 5))
@settings(deadline=None)
def test_a_cut_is_a_partition_with_copies_on_one_side(rows: Rows, fraction: float, seed: int) -> None:
    whole = faces(rows)
    rest, part = cut(whole, fraction, seed)
    assert sorted([*rest.names, *part.names]) == sorted(whole.names)
    assert not set(rest.digests) & set(part.digests)
    position = {name: i for i, name in enumerate(whole.names)}
    for side in (rest, part):
        places = [position[name] for name in side.names]
        assert places == sorted(places)


@given(LABELLED, st.floats(0, 0.95), st.integers(0, 5))
@settings(deadline=None)
def test_a_cut_is_repeated_by_its_seed(rows: Rows, fraction: float, seed: int) -> None:
    whole = faces(rows)
    assert list(cut(whole, fraction, seed)[1].names) == list(cut(whole, fraction, seed)[1].names)


@given(st.lists(st.integers(0, 60), min_size=7, max_size=7), st.floats(0, 0.95))
@settings(deadline=None, max_examples=30)
def test_without_copies_every_emotion_gives_its_share(sizes: list[int], fraction: float) -> None:
    rows = [(100 * target + i, target) for target, size in enumerate(sizes) for i in range(size)]
    _, part = cut(faces(rows), fraction, 0)
    for target, size in enumerate(sizes):
        assert abs(part.counts()[target] - fraction * size) <= 0.5


@given(LABELLED, st.floats(0, 0.95))
@settings(deadline=None)
def test_copies_put_the_share_off_by_less_than_their_number(rows: Rows, fraction: float) -> None:
    # Equal pictures get one label here, so that the emotions' groups do not mix.
    whole = faces([(number, number % 7) for number, _ in rows])
    _, part = cut(whole, fraction, 0)
    for target in range(7):
        mine = whole.select(whole.targets == target)
        largest = max(np.unique(mine.digests, return_counts=True)[1], default=0)
        assert abs(part.counts()[target] - fraction * len(mine)) <= max(largest, 0.5)


def test_groups_of_copies_are_taken_while_they_fit() -> None:
    # Five groups of four for each emotion: ten of twenty faces are wanted, and a third group would be two too many.
    whole = faces([(10 * target + i // 4, target) for target in range(7) for i in range(20)])
    assert cut(whole, 0.5, 0)[1].counts().tolist() == [8] * 7


def test_seeds_cut_differently() -> None:
    whole = faces([(i, i % 7) for i in range(140)])
    parts = {tuple(cut(whole, 0.2, seed)[1].names) for seed in range(5)}
    assert len(parts) == 5
    assert {len(part) for part in parts} == {28}


def test_the_same_faces_are_cut_the_same_in_any_order_once_sorted() -> None:
    rows = [(i // 2, (i // 2) % 7) for i in range(100)]
    ways = (faces(rows), faces(rows[::-1]))
    first, second = (cut(way.sorted(), 0.3, 1)[1] for way in ways)
    assert np.array_equal(first.digests, second.digests)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        cut(faces([(1, 0)]), fraction, 0)


def test_faces_without_labels_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="labelled"):
        cut(faces([(1, 0), (2, -1)]), 0.5, 0)
    rest, part = cut(Faces.empty(), 0.5, 0)
    assert (len(rest), len(part)) == (0, 0)


# -- Splits -----------------------------------------------------------------------------------------------------------


def test_splits_are_read_by_part() -> None:
    splits = Splits(faces([(1, 0)]), faces([(2, 1)]), faces([(3, -1)]), source="csv")
    assert [(part, len(some)) for part, some in splits] == [("train", 1), ("val", 1), ("test", 1)]
    assert splits["val"] is splits.val
    with pytest.raises(KeyError, match="validation"):
        splits["validation"]


def test_the_fingerprint_identifies_training_and_validation_faces() -> None:
    train, val, test = faces([(1, 0), (2, 3)]), faces([(4, 1)]), faces([(3, 5)])
    mark = Splits(train, val, test, "folder").fingerprint()
    assert len(mark) == 16
    # Neither the layout, nor names, nor the test part are in it.
    renamed = Faces(train.images, train.targets, np.array(["x", "y"]))
    assert Splits(renamed, val, Faces.empty(), "parquet", skipped=(Skipped("a", "b"),)).fingerprint() == mark
    others = [
        Splits(faces([(2, 3), (1, 0)]), val, test, "folder"),
        Splits(faces([(1, 0), (2, 4)]), val, test, "folder"),
        Splits(faces([(1, 0), (5, 3)]), val, test, "folder"),
        Splits(Faces.concatenate([train, val]), Faces.empty(), test, "folder"),
        Splits(val, train, test, "folder"),
    ]
    assert len({mark, *(other.fingerprint() for other in others)}) == 6


def test_scores_are_reported_on_test_unless_it_has_no_labels() -> None:
    train, val = faces([(1, 0)]), faces([(2, 1)])
    assert Splits(train, val, faces([(3, 5)]), "csv").evaluation_part() == "test"
    assert Splits(train, val, faces([(3, -1)]), "parquet").evaluation_part() == "val"
    assert Splits(train, val, Faces.empty(), "parquet").evaluation_part() == "val"


def test_drawn_faces_are_called_so_wherever_they_show() -> None:
    drawn, real = (Splits(faces([(1, 0)]), Faces.empty(), Faces.empty(), source) for source in ("synthetic", "csv"))
    assert "synthetic" in drawn.title_note.lower()
    assert "synthetic" in drawn.banner.lower()
    assert real.title_note == real.banner == ""


def test_a_description_counts_the_parts() -> None:
    splits = Splits(faces([(i, 0) for i in range(1200)]), Faces.empty(), faces([(3, -1)]), "parquet")
    assert describe(splits) == "parquet: 1,200 train, 0 val, 1 test (test part unlabelled), 1 emotion"
    splits = Splits(faces([(i, i) for i in range(6)]), faces([(9, 6)]), faces([(7, 1)]), "csv")
    assert describe(splits) == "csv: 6 train, 1 val, 1 test, 7 emotions"


def test_halves_are_one_known_name_for_each_test_face() -> None:
    train, test = faces([(1, 0)]), faces([(2, 1), (3, 2)])
    halves = np.array(["PublicTest", "PrivateTest"])
    assert Splits(train, Faces.empty(), test, "csv", halves=halves).halves is halves
    for wrong, told in (
        (halves[:1], r"\(2,\), not \(1,\)"),
        (np.array(["PublicTest", "test"]), "PublicTest or Private"),
    ):
        with pytest.raises(ValueError, match=told):
            Splits(train, Faces.empty(), test, "csv", halves=wrong)
