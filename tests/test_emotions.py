"""One order inside; the published orders, written out by hand, map to it by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_utils import emotions
from fer_utils.emotions import target_of


def test_the_canonical_order_is_the_folders_alphabetical_order() -> None:
    assert emotions.EMOTIONS == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert list(emotions.EMOTIONS) == sorted(emotions.EMOTIONS)
    assert emotions.NUM_EMOTIONS == 7


# The challenge's own description: "(0=Angry, 1=Disgust, 2=Fear, 3=Happy, 4=Sad, 5=Surprise, 6=Neutral)".
@pytest.mark.parametrize(
    ("number", "spelling", "target"),
    [
        (0, "Angry", 0),
        (1, "Disgust", 1),
        (2, "Fear", 2),
        (3, "Happy", 3),
        (4, "Sad", 5),
        (5, "Surprise", 6),
        (6, "Neutral", 4),
    ],
)
def test_the_challenges_numbers_mean_their_names(number: int, spelling: str, target: int) -> None:
    assert emotions.FROM_CHALLENGE[number] == target
    assert target_of(spelling) == target
    assert emotions.EMOTIONS[target] == spelling.lower()


def test_mapping_the_challenges_labels_loses_none() -> None:
    assert sorted(emotions.FROM_CHALLENGE) == list(range(7))
    labels = np.array([6, 4, 5, 0])
    assert np.array(emotions.FROM_CHALLENGE)[labels].tolist() == [4, 5, 6, 0]


@pytest.mark.parametrize(
    ("spelling", "target"),
    [
        ("anger", 0),
        ("disgusted", 1),
        ("fearful", 2),
        ("afraid", 2),
        ("happiness", 3),
        ("NEUTRAL", 4),
        ("Sadness", 5),
        ("surprised", 6),
        ("  happy ", 3),
    ],
)
def test_published_spellings(spelling: str, target: int) -> None:
    assert target_of(spelling) == target


@pytest.mark.parametrize("spelling", ["contempt", "", "0", "happy!", "unknown"])
def test_other_names_are_refused_with_those_that_are_known(spelling: str) -> None:
    with pytest.raises(ValueError, match=r"seven emotions; known names: .*angry.*surprise") as error:
        target_of(spelling)
    assert repr(spelling) in str(error.value)


@given(st.sampled_from(emotions.EMOTIONS), st.lists(st.booleans(), min_size=8, max_size=8))
def test_case_does_not_matter(name: str, upper: list[bool]) -> None:
    mixed = "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=False))
    assert emotions.EMOTIONS[target_of(mixed)] == name


def test_each_emotion_has_a_colour_of_its_own() -> None:
    assert len(set(emotions.COLORS)) == 7
    assert all(len(color) == 7 and color.startswith("#") for color in emotions.COLORS)
