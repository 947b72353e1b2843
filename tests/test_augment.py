"""Every operation against torchvision's for one image, its distribution, and randomness as a function."""

import dataclasses
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from fer_utils import augment as augmentation
from fer_utils.augment import ERASED, Draws, MixDraws, alone, augment, draw, epoch_order, mix, mix_draw
from fer_utils.plots import data as plots
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Augment, load, names
from fer_utils.suite import NOTEBOOKS

# Greatest difference allowed on values in [0, 1]: float32 coordinates are some 1e-6 of the face apart, neighbouring
# pixels of the random faces up to 1.
CLOSE = 1e-4

EVERYTHING = Augment(
    flip=0.5,
    rotation=15,
    translate=0.1,
    scale=(0.8, 1.2),
    shear=10,
    crop_padding=4,
    resized_crop={"scale": (0.5, 1.0), "ratio": (0.75, 1.25)},
    brightness=0.2,
    contrast=0.3,
    saturation=0.4,
    sharpness={"factor": 1.5, "p": 0.3},
    autocontrast=0.3,
    erasing={"p": 0.5},
)


def random_faces(n=8, channels=1, size=48, seed=0):
    """Noise: neighbouring pixels differ as much as they can, so a sample at a wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def smooth_faces(n=8, seed=0):
    """What a face looks like to interpolation: little changes from one pixel to the next."""
    coarse = random_faces(n, size=8, seed=seed).float()
    return functional.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 255).to(torch.uint8)


def random(*shape, low=0.0, high=1.0, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)
    return low + (high - low) * torch.rand(*shape, generator=generator)


def assert_close(result, expected, tolerance=CLOSE):
    assert result.shape == expected.shape
    assert (result - expected).abs().max().item() <= tolerance


def per_face(images, function):
    """Apply a function of one image (C, H, W) float in [0, 1] and the face's index: the oracle's way."""
    return torch.stack([function(image, i) for i, image in enumerate(images.float() / 255)])


def affine_of(draws, side, size=None):
    """Return the oracle for rotation, translation, scale and shear of a face that is ``side`` pixels wide."""

    def apply(image, i):
        angle, scale, shear = (
            default if values is None else values[i].item()
            for values, default in ((draws.rotation, 0.0), (draws.scale, 1.0), (draws.shear, 0.0))
        )
        shift = [0.0, 0.0] if draws.translate is None else (draws.translate[i] * side).tolist()
        return oracle.affine(image, angle, shift, scale, [shear, 0.0], interpolation=InterpolationMode.BILINEAR)

    return apply


# ----------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "draws",
    [
        Draws(8, rotation=random(8, low=-180, high=180)),
        Draws(8, translate=random(8, 2, low=-0.3, high=0.3)),
        Draws(8, scale=random(8, low=0.5, high=2)),
        Draws(8, shear=random(8, low=-40, high=40)),
        Draws(
            8,
            rotation=random(8, low=-30, high=30, seed=1),
            translate=random(8, 2, low=-0.2, high=0.2, seed=2),
            scale=random(8, low=0.8, high=1.2, seed=3),
            shear=random(8, low=-20, high=20, seed=4),
        ),
    ],
    ids=["rotation", "translate", "scale", "shear", "all"],
)
def test_affine_operations_equal_torchvisions_affine(draws, channels):
    for side in (48, 30):
        images = random_faces(channels=channels, size=side)
        assert_close(augment(images, draws, side), per_face(images, affine_of(draws, side)))


def test_rotation_is_clockwise_and_translation_to_the_right_and_down():
    image = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    image[0, 0, 4, 24] = 255
    turned = augment(image, Draws(1, rotation=torch.tensor([90.0])), 48)
    assert turned[0, 0, 24, 43] == pytest.approx(1, abs=CLOSE)
    shifted = augment(image, Draws(1, translate=torch.tensor([[5 / 48, 7 / 48]])), 48)
    assert shifted[0, 0, 11, 29] == pytest.approx(1, abs=CLOSE)


def test_flip_is_a_mirror_image():
    images = random_faces(channels=3)
    flip = torch.tensor([True, False] * 4)
    expected = per_face(images, lambda image, i: oracle.horizontal_flip(image) if flip[i] else image)
    result = augment(images, Draws(8, flip=flip), 48)
    assert_close(result, expected)
    assert torch.equal(result[~flip], expected[~flip])


@pytest.mark.parametrize(("fill", "mode"), [("zeros", "constant"), ("border", "edge"), ("reflection", "symmetric")])
def test_crop_padding_is_a_pad_and_a_crop(fill, mode):
    images = random_faces(9)
    crop = torch.tensor([[y, x] for y in (-6, 0, 5) for x in (-6, 0, 5)])

    def expected(image, i):
        top, left = (crop[i] + 6).tolist()
        return oracle.crop(oracle.pad(image, [6], padding_mode=mode), top, left, 48, 48)

    result = augment(images, Draws(9, fill, crop_padding=crop.float()), 48)
    assert_close(result, per_face(images, expected))
    assert torch.equal(result[4], images[4] / 255)


@pytest.mark.parametrize(("fill", "mode"), [("border", "edge"), ("reflection", "symmetric")])
def test_fill_beyond_a_rotated_face(fill, mode):
    images = random_faces()
    draws = Draws(8, fill, rotation=random(8, low=-40, high=40), translate=random(8, 2, low=-0.1, high=0.1, seed=1))

    def expected(image, i):
        wide = oracle.pad(image, [40], padding_mode=mode)
        return oracle.center_crop(affine_of(draws, 48)(wide, i), [48, 48])

    assert_close(augment(images, draws, 48), per_face(images, expected))


@pytest.mark.parametrize("size", [48, 80])
def test_resized_crop_is_a_crop_and_a_resize(size):
    images = random_faces(6)
    windows = [(0, 0, 48, 48), (0, 0, 24, 36), (20, 8, 28, 40), (10, 10, 30, 20), (3, 18, 45, 30), (7, 9, 31, 33)]
    draws = Draws(6, resized_crop=torch.tensor(windows) / 48)
    result = augment(images, draws, size)
    for i, (top, left, height, width) in enumerate(windows):
        expected = oracle.resized_crop(images[i] / 255, top, left, height, width, [size, size], antialias=True)
        # At an edge of the crop that is no edge of the face, the oracle repeats the crop's last pixel, where ours sees
        # the face's next one: half a pixel of the crop.
        y, x = -(-size // (2 * height)), -(-size // (2 * width))
        rows = slice(0 if top == 0 else y, size if top + height == 48 else size - y)
        columns = slice(0 if left == 0 else x, size if left + width == 48 else size - x)
        assert_close(result[i, :, rows, columns], expected[:, rows, columns])


@pytest.mark.parametrize("size", [24, 28, 36, 44, 48, 64, 224])
def test_resize_alone_is_torchvisions_and_what_evaluation_does(size):
    images = random_faces(channels=1)
    result = augment(images, Draws(8), size)
    assert_close(result, per_face(images, lambda image, i: oracle.resize(image, [size, size], antialias=True)))
    preprocessing = Preprocessing(size, 1, (0.5,), (0.5,))
    assert torch.equal(preprocessing.normalize(result), preprocessing(images))


@pytest.mark.parametrize("size", [24, 32, 40])
def test_a_smaller_input_is_the_moved_face_shrunk_with_antialiasing(size):
    images = random_faces()
    draws = Draws(8, rotation=random(8, low=-30, high=30), scale=random(8, low=0.8, high=1.2, seed=1))
    moved = per_face(images, affine_of(draws, 48))
    assert_close(augment(images, draws, size), oracle.resize(moved, [size, size], antialias=True))


@pytest.mark.parametrize("size", [72, 224])
def test_a_larger_input_is_the_resized_face_moved(size):
    # Two bilinear samples are a little smoother than one, hence smooth faces. A rim darkened by a pixel of the face
    # would be off by 0.4 of its value.
    images = smooth_faces()
    draws = Draws(8, rotation=random(8, low=-30, high=30), translate=random(8, 2, low=-0.1, high=0.1, seed=1))
    resized = oracle.resize(images.float() / 255, [size, size], antialias=True)
    expected = torch.stack([affine_of(draws, size)(image, i) for i, image in enumerate(resized)])
    result = augment(images, draws, size)
    assert_close(result, expected, 0.03)
    assert (result - expected).abs().mean() < 2e-3


def test_a_larger_input_has_no_dark_rim():
    white = torch.full((2, 48, 48), 255, dtype=torch.uint8)
    draws = Draws(2, flip=torch.tensor([True, False]))
    assert_close(augment(white, draws, 224), torch.ones(2, 1, 224, 224), 1e-5)


def test_operations_follow_each_other_in_the_documented_order():
    # Whole pixels and right angles: each step of the oracle is exact, so that only the order can differ.
    n = 16
    images = random_faces(n)
    crop = random(n, 2, low=-6, high=6).round()
    flip = random(n, seed=1) < 0.5
    rotation = random(n, low=0, high=3, seed=2).round() * 90
    shift = random(n, 2, low=-5, high=5, seed=3).round()
    draws = Draws(n, crop_padding=crop, flip=flip, rotation=rotation, translate=shift / 48)

    def steps(image, i):
        top, left = (crop[i].int() + 6).tolist()
        image = oracle.crop(oracle.pad(image, [6]), top, left, 48, 48)
        image = oracle.horizontal_flip(image) if flip[i] else image
        return oracle.affine(image, rotation[i].item(), shift[i].tolist(), 1.0, [0.0, 0.0])

    # What a step moves out of sight stays lost to the oracle; ours may bring it back.
    seen = per_face(torch.full_like(images, 255), steps) == 1
    assert seen.float().mean() > 0.5
    assert_close(augment(images, draws, 48)[seen], per_face(images, steps)[seen])


def test_a_window_is_cut_before_the_face_is_flipped():
    image = torch.zeros(1, 1, 48, 48, dtype=torch.uint8)
    image[..., :24] = 255
    left_half = torch.tensor([[0.25, 0.0, 0.5, 0.5]])
    result = augment(image, Draws(1, resized_crop=left_half, flip=torch.tensor([True])), 48)
    assert_close(result[..., 1:], torch.ones(1, 1, 48, 47))


def test_faces_that_do_not_move_are_returned_exactly():
    images = random_faces(8, channels=3)
    nothing = torch.zeros(8)
    still = Draws(
        8,
        flip=nothing.bool(),
        rotation=nothing,
        translate=torch.zeros(8, 2),
        scale=nothing + 1,
        shear=nothing,
        crop_padding=torch.zeros(8, 2),
        resized_crop=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(8, 1),
        brightness=nothing + 1,
        sharpness=nothing + 1,
        autocontrast=nothing.bool(),
        erasing=torch.zeros(8, 4),
    )
    for draws in (Draws(8), draw(Augment(), 8, seed=0, epoch=0), still):
        assert torch.equal(augment(images, draws, 48), images / 255)
    one_moves = dataclasses.replace(
        Draws(8, rotation=torch.tensor([0, 0, 9.0, 0, 0, 0, 0, 0])), flip=torch.zeros(8, dtype=torch.bool)
    )
    result = augment(images, one_moves, 48)
    unchanged = [torch.equal(result[i], images[i] / 255) for i in range(8)]
    assert unchanged == [True, True, False, True, True, True, True, True]


# ---------------------------------------------------------------------------------------------- photometry

FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.2, 1.7, 2.5, 4.0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("brightness", oracle.adjust_brightness),
        ("contrast", oracle.adjust_contrast),
        ("saturation", oracle.adjust_saturation),
        ("sharpness", oracle.adjust_sharpness),
    ],
)
def test_factors_equal_torchvisions(name, function, channels):
    images = random_faces(channels=channels)
    expected = per_face(images, lambda image, i: function(image, FACTORS[i].item()))
    assert_close(augment(images, Draws(8, **{name: FACTORS}), 48), expected, 1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_autocontrast_equals_torchvisions(channels):
    images = random_faces(channels=channels) // 3 + 40
    images[3] = 77  # a constant face stays as it is
    chosen = torch.tensor([True, False, True, True, False, True, True, False])
    expected = per_face(images, lambda image, i: oracle.autocontrast(image) if chosen[i] else image)
    result = augment(images, Draws(8, autocontrast=chosen), 48)
    assert_close(result, expected, 1e-5)
    assert torch.equal(result[3], torch.full((channels, 48, 48), 77 / 255))


@pytest.mark.parametrize("channels", [1, 3])
def test_erasing_equals_torchvisions(channels):
    images = random_faces(5, channels=channels)
    rectangles = [(0, 0, 48, 48), (10, 20, 5, 7), (40, 0, 8, 3), (0, 47, 1, 1), (5, 5, 0, 0)]
    expected = per_face(images, lambda image, i: oracle.erase(image, *rectangles[i], torch.tensor(ERASED)))
    result = augment(images, Draws(5, erasing=torch.tensor(rectangles) / 48), 48)
    assert torch.equal(result, expected)
    assert ERASED == 0.5


def test_photometry_follows_the_documented_order():
    images = random_faces(channels=3)
    factors = {name: random(8, low=0.5, high=1.5, seed=i) for i, name in enumerate(("brightness", "contrast"))}
    factors |= {"saturation": random(8, low=0, high=2, seed=5), "sharpness": random(8, low=0, high=2, seed=6)}
    box = (8, 9, 10, 11)

    def steps(image, i):
        image = oracle.adjust_brightness(image, factors["brightness"][i].item())
        image = oracle.adjust_contrast(image, factors["contrast"][i].item())
        image = oracle.adjust_saturation(image, factors["saturation"][i].item())
        image = oracle.adjust_sharpness(image, factors["sharpness"][i].item())
        image = oracle.autocontrast(image)
        return oracle.erase(image, *box, torch.tensor(0.5))

    draws = Draws(
        8, **factors, autocontrast=torch.ones(8, dtype=torch.bool), erasing=torch.tensor([box]).repeat(8, 1) / 48
    )
    assert_close(augment(images, draws, 48), per_face(images, steps), 1e-5)


def test_saturation_leaves_grey_alone():
    images = random_faces(4)
    draws = Draws(4, saturation=torch.tensor([0.0, 0.5, 1.5, 3.0]))
    assert torch.equal(augment(images, draws, 48), images / 255)
    assert_close(augment(images.repeat(1, 3, 1, 1), draws, 48), (images / 255).repeat(1, 3, 1, 1), 1e-3)


# --------------------------------------------------------------------------------- randomness as a function


def same(one, other):
    assert len(one) == len(other)
    for item in dataclasses.fields(one):
        a, b = getattr(one, item.name), getattr(other, item.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, item.name
    return True


def test_draws_are_a_pure_function_of_seed_epoch_and_index():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = draw(EVERYTHING, 50, seed=7, epoch=3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert same(first, draw(EVERYTHING, 50, seed=7, epoch=3))
    assert same(first[:20], draw(EVERYTHING, 20, seed=7, epoch=3))
    for other in (draw(EVERYTHING, 50, seed=8, epoch=3), draw(EVERYTHING, 50, seed=7, epoch=4)):
        for name in alone(EVERYTHING):
            assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_draws_of_today_are_those_of_tomorrow():
    # A resumed run and a published figure rest on these numbers: they may not change with a version of anything.
    draws = draw(EVERYTHING, 3, seed=1, epoch=2)
    assert draws.rotation.tolist() == pytest.approx([0.58214849, 14.1570911, -11.2984419])
    assert draws.erasing[:2].count_nonzero() == 0
    assert draws.erasing[2].tolist() == pytest.approx([0.34027964, 0.25266951, 0.62275577, 0.43459758])
    assert epoch_order(10, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]
    shares = mix_draw(4, mixup=0.2, cutmix=1.0, seed=1, epoch=2).lam
    assert shares.tolist() == pytest.approx([0.000108393964, 0.0513656847, 0.658650875, 0.228342101])


def test_an_operation_does_not_change_the_draws_of_another():
    full = draw(EVERYTHING, 40, seed=0, epoch=1)
    for name, config in alone(EVERYTHING).items():
        single = draw(config, 40, seed=0, epoch=1)
        assert torch.equal(getattr(single, name), getattr(full, name))
        assert set(alone(config)) == {name}


def test_streams_are_independent_of_each_other():
    draws = draw(EVERYTHING, 4000, seed=0, epoch=0)
    columns = [
        getattr(draws, name).float().reshape(4000, -1).T.numpy() for name in alone(EVERYTHING) if name != "erasing"
    ]
    later = draw(EVERYTHING, 4000, seed=0, epoch=1).rotation[None].numpy()
    other = draw(EVERYTHING, 4000, seed=1, epoch=0).rotation[None].numpy()
    correlation = np.corrcoef(np.concatenate([*columns, later, other]))
    np.fill_diagonal(correlation, 0)
    # A crop's place depends on its own size; nothing else depends on anything. 0.06 is 4 standard errors.
    start = sum(len(c) for c in columns[: list(alone(EVERYTHING)).index("resized_crop")])
    correlation[start : start + 4, start : start + 4] = 0
    assert np.abs(correlation).max() < 0.065


def test_a_batch_is_a_slice_of_the_epoch():
    images = random_faces(30)
    draws = draw(EVERYTHING, 30, seed=0, epoch=0)
    whole = augment(images, draws, 48)
    for start, stop in ((0, 11), (11, 12), (12, 30)):
        assert torch.equal(augment(images[start:stop], draws[start:stop], 48), whole[start:stop])
    chosen = torch.tensor([29, 3, 3, 17])
    assert torch.equal(augment(images[chosen], draws[chosen], 48), whole[chosen])
    # Two ranks see every other face of one process's batch.
    assert torch.equal(augment(images[1::2], draws[1::2], 48), whole[1::2])


def test_images_are_left_as_they_were_and_autocast_changes_nothing():
    images = random_faces()
    before = images.clone()
    draws = draw(EVERYTHING, 8, seed=0, epoch=0)
    expected = augment(images, draws, 64)
    with torch.autocast("cpu", torch.bfloat16):
        result = augment(images, draws, 64)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert torch.equal(images, before)


# -------------------------------------------------------------------------------------------- distributions

MANY = 20_000
# Kolmogorov and Smirnov's distance that a true uniform sample of this size exceeds once in 10,000 times.
DISTANCE = 2.23 / MANY**0.5


def assert_uniform(values, low, high):
    values = np.sort(values.double().numpy())
    assert values[0] >= np.float32(low)
    assert values[-1] <= np.float32(high)
    place = (values - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    assert max(np.abs(place - steps[1:]).max(), np.abs(place - steps[:-1]).max()) < DISTANCE


def assert_share(chosen, p):
    assert chosen.double().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / len(chosen)) ** 0.5)


def test_ranges_are_uniform():
    config = Augment(
        rotation=30, translate=0.1, scale=(0.8, 1.3), shear=12, brightness=0.4, contrast=0.2, saturation=0.7
    )
    draws = draw(config, MANY, seed=0, epoch=0)
    assert_uniform(draws.rotation, -30, 30)
    assert_uniform(draws.translate[:, 0], -0.1, 0.1)
    assert_uniform(draws.translate[:, 1], -0.1, 0.1)
    assert_uniform(draws.scale, 0.8, 1.3)
    assert_uniform(draws.shear, -12, 12)
    assert_uniform(draws.brightness, 0.6, 1.4)
    assert_uniform(draws.contrast, 0.8, 1.2)
    assert_uniform(draws.saturation, 0.3, 1.7)


def test_factors_stop_at_zero():
    factors = draw(Augment(brightness=1.5), MANY, seed=0, epoch=0).brightness
    assert factors.min() == 0
    assert_share(factors == 0, 0.5 / 3)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_probabilities(p):
    config = Augment(flip=p, sharpness={"factor": 1.5, "p": p}, autocontrast=p, erasing={"p": p})
    draws = draw(config, MANY, seed=0, epoch=0)
    if p == 0:
        assert (draws.flip, draws.sharpness, draws.autocontrast, draws.erasing) == (None, None, None, None)
        return
    assert_share(draws.flip, p)
    assert_share(draws.autocontrast, p)
    assert_share(draws.sharpness == 1.5, p)
    assert ((draws.sharpness == 1.5) | (draws.sharpness == 1)).all()
    assert_share(draws.erasing[:, 2] > 0, p)


def test_crop_padding_is_whole_pixels_all_equally_likely():
    crop = draw(Augment(crop_padding=3), MANY, seed=0, epoch=0).crop_padding
    assert torch.equal(crop, crop.round())
    for axis in (0, 1):
        values, counts = crop[:, axis].unique(return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert (counts / MANY - 1 / 7).abs().max() < 0.01


def test_rectangles_have_the_area_and_shape_of_the_recipe():
    config = Augment(resized_crop={"scale": (0.4, 0.9), "ratio": (0.75, 1.5)}, erasing={"p": 1.0, "scale": (0.05, 0.2)})
    draws = draw(config, MANY, seed=0, epoch=0)
    for rectangles, area in ((draws.resized_crop, (0.4, 0.9)), (draws.erasing, (0.05, 0.2))):
        top, left, height, width = rectangles.double().unbind(1)
        assert min(top.min(), left.min()) >= 0
        assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
        # Single precision may put the outermost area a rounding beyond its range.
        assert_uniform((height * width).clamp(*area), *area)
    top, left, height, width = draws.erasing.double().unbind(1)
    assert_uniform(top / (1 - height), 0, 1)
    assert_uniform(left / (1 - width), 0, 1)
    assert_uniform((height / width).log().clamp(np.log(0.3), np.log(3.3)), np.log(0.3), np.log(3.3))
    height, width = draws.resized_crop[:, 2:].double().unbind(1)
    assert 0.75 - 1e-5 <= (width / height).min() < 0.76
    assert 1.49 < (width / height).max() <= 1.5 + 1e-5


def test_rectangles_that_cannot_have_their_shape_keep_their_area():
    config = Augment(erasing={"p": 1.0, "scale": (0.5, 1.0), "ratio": (3.0, 4.0)})
    height, width = draw(config, 500, seed=0, epoch=0).erasing[:, 2:].unbind(1)
    assert (height == 1).all()
    assert 0.5 <= width.min() < width.max() <= 1


unit = st.floats(0, 1)


@st.composite
def ranges(draw_from, low, high):
    return tuple(sorted((draw_from(st.floats(low, high)), draw_from(st.floats(low, high)))))


configs = st.builds(
    Augment,
    flip=unit,
    rotation=st.floats(0, 180),
    translate=st.floats(0, 0.9),
    scale=ranges(0.1, 4),
    shear=st.floats(0, 80),
    crop_padding=st.integers(0, 24),
    resized_crop=st.fixed_dictionaries({"scale": ranges(0.05, 1), "ratio": ranges(0.2, 5)}),
    fill=st.sampled_from(["zeros", "border", "reflection"]),
    brightness=st.floats(0, 2),
    contrast=st.floats(0, 2),
    saturation=st.floats(0, 2),
    sharpness=st.fixed_dictionaries({"factor": st.floats(0, 4), "p": unit}),
    autocontrast=unit,
    erasing=st.fixed_dictionaries({"p": unit, "scale": ranges(0.01, 1), "ratio": ranges(0.2, 5)}),
)


@settings(max_examples=60, deadline=None)
@given(configs, st.integers(0, 2**64 - 1), st.sampled_from([24, 48, 60]), st.sampled_from([1, 3]))
def test_any_augmentation_gives_finite_faces_in_range(config, seed, size, channels):
    result = augment(random_faces(5, channels), draw(config, 5, seed=seed, epoch=1), size)
    assert result.shape == (5, channels, size, size)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", names())
def test_every_recipe_augments(name):
    config = load(name).augment
    images = random_faces(6)
    result = augment(images, draw(config, 6, seed=0, epoch=0), 48)
    assert torch.equal(result, images / 255) == (not alone(config))


def test_no_faces():
    assert augment(random_faces(0), draw(EVERYTHING, 0, seed=0, epoch=0), 48).shape == (0, 1, 48, 48)
    assert epoch_order(0, seed=0, epoch=0, targets=torch.zeros(0, dtype=torch.int64)).shape == (0,)


# ----------------------------------------------------------------------------------------- order and mixing


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_the_order_is_a_permutation(n):
    order = epoch_order(n, seed=0, epoch=0)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, epoch_order(n, seed=0, epoch=0))
    if n > 10:
        assert not torch.equal(order, epoch_order(n, seed=0, epoch=1))
        assert not torch.equal(order, epoch_order(n, seed=1, epoch=0))


def test_first_places_are_spread_over_all_faces():
    first = torch.stack([epoch_order(10, seed=0, epoch=epoch)[0] for epoch in range(2000)])
    assert (torch.bincount(first, minlength=10) / 2000 - 0.1).abs().max() < 0.03


def test_balanced_order_draws_every_emotion_equally_often():
    targets = torch.cat([torch.full((count,), emotion) for emotion, count in ((0, 400), (1, 43), (3, 720), (6, 317))])
    targets = targets[epoch_order(len(targets), seed=9, epoch=9)]
    order = epoch_order(len(targets), seed=0, epoch=0, targets=targets)
    drawn = torch.bincount(targets[order], minlength=7)
    assert drawn[[2, 4, 5]].tolist() == [0, 0, 0]
    assert drawn[[0, 1, 3, 6]].max() - drawn[[0, 1, 3, 6]].min() <= 1
    # Every face of an emotion is drawn equally often in the long run.
    many = torch.cat([epoch_order(len(targets), seed=0, epoch=e, targets=targets) for e in range(200)])
    disgust = torch.bincount(many, minlength=len(targets))[targets == 1]
    mean = 200 * 370 / 43
    assert (disgust / mean - 1).abs().max() < 4.5 / mean**0.5
    assert torch.equal(order, many[: len(order)])
    # Emotions come at random places, in no fixed turn: a quarter of them follow their own kind.
    drawn = targets[many]
    assert_share(drawn[1:] == drawn[:-1], 1 / 4)
    assert torch.bincount(drawn[:200], minlength=7)[[0, 1, 3, 6]].min() > 25


def test_mixup_is_a_weighted_mean():
    x, partner = random(6, 1, 8, 8), random(6, 1, 8, 8, seed=1)
    draws = mix_draw(6, mixup=1.0, cutmix=0.0, seed=0, epoch=0)
    mixed, lam = mix(x, partner, draws)
    assert torch.equal(lam, draws.lam)
    assert_close(mixed, per_face(x * 255, lambda image, i: lam[i] * image + (1 - lam[i]) * partner[i]), 1e-6)


@pytest.mark.parametrize("size", [24, 48])
def test_cutmix_shows_the_partner_in_a_box_of_its_share(size):
    n = 200
    own, partner = torch.zeros(n, 3, size, size), torch.ones(n, 3, size, size)
    draws = mix_draw(n, mixup=0.0, cutmix=1.0, seed=0, epoch=0)
    top, left, height, width = draws.box.unbind(1)
    assert (height * width - (1 - draws.lam)).abs().max() < 1e-5
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    mixed, lam = mix(own, partner, draws)
    assert ((mixed == 0) | (mixed == 1)).all()
    # The share of targets is the share of pixels, and within one row and column of pixels of what was drawn.
    assert_close(lam, 1 - mixed.mean((1, 2, 3)), 1e-6)
    assert (lam - draws.lam).abs().max() < 2 / size
    for i in range(0, n, 20):
        rows, columns = mixed[i, 0].amax(1).nonzero(), mixed[i, 0].amax(0).nonzero()
        if len(rows):
            # A full rectangle: as many pixels as its rows times its columns.
            assert mixed[i, 0].sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_shares_follow_the_beta_distribution():
    for alpha in (0.2, 1.0):
        lam = mix_draw(MANY, mixup=alpha, cutmix=0.0, seed=0, epoch=0).lam.double()
        assert lam.mean().item() == pytest.approx(0.5, abs=0.015)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert_uniform(lam, 0, 1)  # Beta(1, 1)
    assert_uniform(mix_draw(MANY, mixup=0.0, cutmix=1.0, seed=0, epoch=0).lam.double(), 0, 1)


def test_both_kinds_share_the_faces():
    draws = mix_draw(MANY, mixup=0.2, cutmix=1.0, seed=0, epoch=0)
    assert_share(draws.boxed, 0.5)
    assert (draws.box[~draws.boxed] == 0).all()
    assert_uniform(draws.lam[draws.boxed].repeat_interleave(2)[:MANY], 0, 1)
    few = draws[:50]
    x, partner = random(50, 1, 48, 48), random(50, 1, 48, 48, seed=1)
    mixed, lam = mix(x, partner, few)
    blended = ~((mixed == x) | (mixed == partner)).flatten(1).all(1)
    assert torch.equal(blended, ~few.boxed)
    assert torch.equal(lam[~few.boxed], few.lam[~few.boxed])


def test_mixing_is_pure_and_slices():
    draws = mix_draw(60, mixup=0.4, cutmix=1.0, seed=0, epoch=5)
    assert same(draws, mix_draw(60, mixup=0.4, cutmix=1.0, seed=0, epoch=5))
    assert sorted(draws.partner.tolist()) == list(range(60))
    x, partner = random(60, 1, 24, 24), random(60, 1, 24, 24, seed=1)
    whole, shares = mix(x, partner, draws)
    part, part_shares = mix(x[10:25], partner[10:25], draws[10:25])
    assert torch.equal(part, whole[10:25])
    assert torch.equal(part_shares, shares[10:25])
    assert torch.equal(draws[torch.tensor([3, 1])].lam, draws.lam[[3, 1]])


def test_mixing_switched_off_changes_nothing():
    draws = mix_draw(5, mixup=0.0, cutmix=0.0, seed=0, epoch=0)
    x = random(5, 1, 24, 24)
    mixed, lam = mix(x, x[draws.partner], draws)
    assert torch.equal(mixed, x)
    assert torch.equal(lam, torch.ones(5))


def test_mixing_keeps_the_dtype():
    draws = mix_draw(4, mixup=0.4, cutmix=1.0, seed=0, epoch=0)
    for dtype in (torch.float64, torch.bfloat16):
        mixed, lam = mix(random(4, 1, 24, 24).to(dtype), random(4, 1, 24, 24, seed=1).to(dtype), draws)
        assert mixed.dtype == lam.dtype == dtype


def test_02_tells_the_whole_share_of_a_face_that_is_its_own_partner():
    cells = nbformat.read(NOTEBOOKS / "02_augment.ipynb", 4).cells
    (cell,) = (cell.source for cell in cells if "figure_mixed = None" in cell.source)
    face = np.zeros((1, 48, 48), np.uint8)
    known = {"augmentation": augmentation, "torch": torch, "plots": plots, "display": lambda _: None}
    known |= {"config": SimpleNamespace(mixup=0.4, cutmix=0, seed=0), "splits": SimpleNamespace(title_note="")}
    known |= {"faces": face, "epochs": {"epoch 1": np.float32(face[:, None])}, "labels": ["happy"]}
    exec(cell, known)
    assert "happy\n100%" in [text.get_text() for text in known["figure_mixed"].axes[0].texts]


# ------------------------------------------------------------------------------------------- alone and errors


def test_alone_lists_what_is_on():
    some = Augment(contrast=0.1, flip=0.5, scale=(0.9, 1.1), crop_padding=2)
    assert list(alone(some)) == ["flip", "scale", "crop_padding", "contrast"]
    assert alone(Augment()) == {}
    assert alone(Augment(sharpness={"factor": 2.0}, resized_crop={"ratio": (0.5, 2.0)})) == {}
    single = alone(Augment(rotation=5, erasing={"p": 0.2, "scale": (0.1, 0.2)}, fill="border"))["erasing"]
    assert single == Augment(erasing={"p": 0.2, "scale": (0.1, 0.2)}, fill="border")
    assert list(alone(EVERYTHING)) == [name for name in Augment.model_fields if name != "fill"]


@pytest.mark.parametrize(
    ("images", "draws", "size", "error", "told"),
    [
        (torch.zeros(2, 48, 48), Draws(2), 48, TypeError, "uint8, not torch.float32"),
        (random_faces(2, channels=2), Draws(2), 48, ValueError, r"\(2, 2, 48, 48\)"),
        (random_faces(2)[..., :40], Draws(2), 48, ValueError, r"\(2, 1, 48, 40\)"),
        (random_faces(2), Draws(3), 48, ValueError, "2 faces need as many draws, not 3"),
        (random_faces(2), Draws(2), 0, ValueError, "size must be at least 1, not 0"),
        (random_faces(2), Draws(2, rotation=torch.zeros(2)).to("meta"), 48, ValueError, "rotation are on meta"),
    ],
)
def test_wrong_input_is_refused(images, draws, size, error, told):
    with pytest.raises(error, match=told):
        augment(images, draws, size)


def test_wrong_draws_are_refused():
    with pytest.raises(ValueError, match=r"erasing must have shape \(2, 4\), not \(2,\)"):
        Draws(2, erasing=torch.zeros(2))
    with pytest.raises(ValueError, match="seed must be at least 0"):
        draw(EVERYTHING, 2, seed=-1, epoch=0)
    with pytest.raises(ValueError, match=r"epoch must be .* below 2\^32"):
        draw(Augment(), 2, seed=0, epoch=2**32)
    with pytest.raises(ValueError, match="n must be at least 0"):
        epoch_order(-1, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"needs 3 targets, not \(2,\)"):
        epoch_order(3, seed=0, epoch=0, targets=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="found -1 to 2"):
        epoch_order(3, seed=0, epoch=0, targets=torch.tensor([0, -1, 2]))
    with pytest.raises(ValueError, match=r"mixup and cutmix must be at least 0, not -0.1"):
        mix_draw(3, mixup=-0.1, cutmix=0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="3 draws"):
        mix(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), MixDraws(torch.arange(3), torch.ones(3)))


@pytest.mark.gpu
def test_cuda_gives_the_same_faces_without_waiting():
    images = random_faces(64, channels=3)
    draws = draw(EVERYTHING, 64, seed=0, epoch=0)
    mixing = mix_draw(64, mixup=0.2, cutmix=1.0, seed=0, epoch=0)
    expected = {size: augment(images, draws, size) for size in (24, 48, 96)}
    on_device, draws_there, mixing_there = images.cuda(), draws.to("cuda"), mixing.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = {size: augment(on_device, draws_there, size) for size in expected}
        mixed, lam = mix(results[48], results[48][mixing_there.partner], mixing_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for size, result in results.items():
        # A pixel at the edge of an erased rectangle may fall on either side of it.
        assert ((result.cpu() - expected[size]).abs() > 1e-3).float().mean() < 1e-4
    expected_mixed, expected_lam = mix(expected[48], expected[48][mixing.partner], mixing)
    assert ((mixed.cpu() - expected_mixed).abs() > 1e-3).float().mean() < 1e-3
    assert_close(lam.cpu(), expected_lam, 1e-3)
