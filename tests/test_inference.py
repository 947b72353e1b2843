"""Photos, folders, tables and arrays in; one answer for each out, whatever is wrong with its neighbours."""

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
import torch
from PIL import Image

from fer_utils import box, checkpoint, detection, inference, models, pictures, sources
from fer_utils.emotions import EMOTIONS
from fer_utils.export import ExportError, TorchEngine
from fer_utils.faces import Splits
from fer_utils.files import ROOT, sha256
from fer_utils.inference import Classifier, Prediction
from fer_utils.pictures import InputError
from fer_utils.plots import inference as inference_plots
from fer_utils.preprocessing import Preprocessing
from fer_utils.recipe import Recipe
from fer_utils.runs import Run

ASTRONAUT = np.asarray(skimage.data.astronaut())
HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def run(tiny_recipe: Recipe, synthetic_splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as a training leaves it, its network as it was initialised."""
    made = Run.create(tmp_path_factory.mktemp("runs") / "tiny")
    torch.manual_seed(0)
    model = models.build(tiny_recipe)
    preprocessing = Preprocessing.of(tiny_recipe, synthetic_splits.train)
    made.write_recipe(tiny_recipe)
    made.write_environment(synthetic_splits, "cpu", "float32", 1)
    checkpoint.save(made.file("best.ckpt"), checkpoint.model_state(model, preprocessing, tiny_recipe, 1))
    return made


@pytest.fixture(scope="module")
def classifier(run: Run) -> Classifier:
    return Classifier.from_run(run)


@pytest.fixture(scope="module")
def face(synthetic_splits: Splits) -> np.ndarray:
    picture: np.ndarray = synthetic_splits.test.images[0]
    return picture


def one(classifier: Classifier, image: object, **options: object) -> Prediction:
    (prediction,) = classifier.predict(image, **options)  # type: ignore[arg-type]
    return prediction


def crop_of(image: object) -> np.ndarray:
    """What the network sees of a picture that is a face."""
    (found,) = inference.located(image, detect=False)  # type: ignore[arg-type]
    assert found.error is None
    return found.crops[0]


# -- what can be given --


def test_every_way_to_give_a_face_gives_the_same_answer(
    classifier: Classifier, face: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "face.png"
    Image.fromarray(face).save(path)
    ways = {
        "path": path,
        "text": str(path),
        "PIL": Image.fromarray(face),
        "(H, W)": face,
        "(H, W, 1)": face[..., None],
        "(H, W, 3)": np.stack([face] * 3, axis=-1),
        "(1, H, W)": face[None],
        "(1, H, W, 3)": np.stack([face] * 3, axis=-1)[None],
        "float": face.astype(np.float32) / 255,
        "double": face / 255,
        "tensor": torch.from_numpy(face.copy()),
        "tensor (1, 3, H, W)": torch.from_numpy(face.copy()).repeat(1, 3, 1, 1).float() / 255,
    }
    answers = {name: one(classifier, way) for name, way in ways.items()}
    expected = classifier.probabilities(face[None])[0]
    for name, answer in answers.items():
        assert answer.error is None, (name, answer.error)
        assert answer.probabilities is not None
        assert list(answer.probabilities) == list(EMOTIONS)
        assert np.array_equal(list(answer.probabilities.values()), expected), name
        assert answer.label == EMOTIONS[expected.argmax()]
        assert answer.size == (48, 48)


def test_several_faces_in_one_array_or_tensor(classifier: Classifier, synthetic_splits: Splits) -> None:
    faces = synthetic_splits.test.images[:7]
    expected = classifier.probabilities(faces)
    for given in (faces, torch.from_numpy(faces.copy())[:, None], (image for image in faces), list(faces)):
        answers = list(classifier.predict(given, batch_size=3))
        assert [answer.source for answer in answers] == [f"image {i}" for i in range(7)]
        found = np.array([list(answer.probabilities.values()) for answer in answers if answer.probabilities])
        assert np.allclose(found, expected, atol=1e-6)


def test_the_temperature_of_the_evaluation_of_this_epoch_counts(run: Run, face: np.ndarray, tmp_path: Path) -> None:
    before = Classifier.from_run(run).probabilities(face[None])
    other = Run.create(tmp_path / "other")
    for name in ("best.ckpt", "recipe.yaml", "env.json"):
        other.file(name).write_bytes(run.file(name).read_bytes())
    of_it = {"epoch": 1, "sha256": sha256(other.file("best.ckpt"))}
    own, theirs = {"of_the_training": True}, {"of_the_training": False}
    expected = np.sqrt(before) / np.sqrt(before).sum()
    for evaluated, data, wanted in (
        (of_it, own, expected),
        ({**of_it, "epoch": 9}, own, before),
        ({**of_it, "sha256": "of another network"}, own, before),
        (of_it, theirs, before),
    ):
        other.write_json("metrics.json", {"checkpoint": evaluated, "data": data, "temperature": {"none": 2.0}})
        assert np.allclose(Classifier.from_run(other).probabilities(face[None]), wanted, atol=1e-6)


def test_generators_are_read_as_they_are_needed(classifier: Classifier, face: np.ndarray) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield face

    answers = classifier.predict(endless(), batch_size=4)
    assert read == 0
    next(answers)
    assert read == 4


def test_pictures_without_faces_do_not_pile_up(classifier: Classifier) -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield np.zeros((70, 90), np.uint8)

    assert next(classifier.predict(endless(), batch_size=2)).label is None
    assert read == 8


# -- image files of every kind --


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_exif_orientation_is_honoured(tmp_path: Path, face: np.ndarray) -> None:
    sideways = Image.fromarray(face).rotate(90, expand=True)
    exif = sideways.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = tmp_path / "phone.png"
    sideways.save(path, exif=exif)
    assert np.array_equal(crop_of(path), face)
    with Image.open(path) as opened:
        assert np.array_equal(crop_of(opened), face)


def test_transparency_lies_on_white(tmp_path: Path, face: np.ndarray) -> None:
    rgba = Image.fromarray(face).convert("RGBA")
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    palette = Image.fromarray(face // 2).convert("P")
    rgba.save(tmp_path / "alpha.png")
    rgba.convert("LA").save(tmp_path / "grey_alpha.png")
    palette.save(tmp_path / "palette.png", transparency=int(palette.getpixel((0, 0))))
    for name in ("alpha.png", "grey_alpha.png", "palette.png"):
        crop = crop_of(tmp_path / name)
        assert crop[0, 0] == 255, name
    assert np.array_equal(crop_of(tmp_path / "alpha.png")[1:], face[1:])


@pytest.mark.parametrize("name", ["sixteen.png", "sixteen.tif", "cmyk.jpg", "palette.gif", "lossless.webp", "bits.png"])
def test_modes_and_formats(name: str, tmp_path: Path, face: np.ndarray) -> None:
    image = Image.fromarray(face)
    if name.startswith("sixteen"):
        image = Image.fromarray(face.astype(np.uint16) * 257)
    elif name.startswith("cmyk"):
        image = image.convert("CMYK")
    elif name.startswith("bits"):
        image = image.convert("1")
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    crop = crop_of(tmp_path / name).astype(int)
    if name.startswith("bits"):
        assert set(np.unique(crop)) == {0, 255}
    else:
        # JPEG and CMYK lose a little, upside down or inverted would be far off.
        assert np.abs(crop - face).mean() < 8


def test_pillow_images_of_32_bits(face: np.ndarray) -> None:
    assert np.array_equal(crop_of(Image.fromarray(face.astype(np.int32) * 256)), face)
    assert np.array_equal(crop_of(Image.fromarray((face / 255).astype(np.float32))), face)
    # Bytes in 32 bits would be black, were they taken for 16.
    (found,) = inference.located(Image.fromarray(face.astype(np.int32)), detect=False)
    assert found.error is not None
    assert "32-bit values from" in found.error


def test_what_pillow_cannot_convert_has_an_error_and_the_others_answers(
    classifier: Classifier, face: np.ndarray
) -> None:
    odd, good = classifier.predict([Image.new("La", (48, 48)), Image.fromarray(face)], detect=False)
    assert odd.error is not None
    assert "colours of the kind La" in odd.error
    assert good.label is not None


def test_transparent_arrays_and_tensors_lie_on_white(tmp_path: Path, face: np.ndarray) -> None:
    rgba = Image.fromarray(face).convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 20, 10))
    rgba.save(tmp_path / "alpha.png")
    with Image.open(tmp_path / "alpha.png") as opened:
        array = np.array(opened)
    expected = crop_of(tmp_path / "alpha.png")
    assert (expected[:10, :20] == 255).all()
    channels = torch.from_numpy(array).permute(2, 0, 1)
    one_each = {
        "(H, W, 4)": array,
        "(1, H, W, 4)": array[None],
        "(1, 4, H, W)": np.moveaxis(array, -1, 0)[None],
        "float": array / 255,
        "tensor (1, 4, H, W)": channels[None],
        "float tensor": channels[None].float() / 255,
    }
    for name, given in one_each.items():
        # A second picture in it would fail here.
        assert np.array_equal(crop_of(given), expected), name
    grey = np.array(rgba.convert("LA"))
    for given in (grey, np.moveaxis(grey, -1, 0)[None], torch.from_numpy(grey).permute(2, 0, 1)[None]):
        assert np.array_equal(crop_of(given), expected)
    for several in (np.stack([array] * 3), channels.repeat(3, 1, 1, 1), np.stack([grey] * 3)):
        assert len(list(pictures.pictures(several))) == 3
    # What looks alike and is not: grey pictures, one of them four pixels high and one four pixels wide.
    assert len(list(pictures.pictures(np.zeros((4, 48, 48), np.uint8)))) == 4
    assert len(list(pictures.pictures(torch.zeros(5, 48, 4)))) == 5
    (item,) = pictures.pictures(torch.zeros(4, 48, 48))
    assert "one RGBA picture or four grey ones: give (1, 4, H, W) or (4, 1, H, W)" in str(item.picture)


def test_bfloat16_tensors(classifier: Classifier, face: np.ndarray) -> None:
    bits = (torch.from_numpy(face.copy()) > 127).to(torch.bfloat16)  # 0 and 1, which it holds exactly
    answer = one(classifier, bits)
    assert answer.error is None
    expected = classifier.probabilities((bits.float().numpy() * 255).astype(np.uint8)[None])[0]
    assert answer.probabilities is not None
    assert np.allclose(list(answer.probabilities.values()), expected, atol=1e-6)


def test_heic_and_video_say_what_to_do(classifier: Classifier, tmp_path: Path) -> None:
    files = {
        "photo.heic": (b"\0\0\0\x18ftypheic", "JPEG"),
        "disguised.jpg": (b"\0\0\0\x18ftypmif1", "JPEG"),
        "clip.mp4": (b"\0\0\0\x18ftypisom", "ffmpeg"),
        "clip.mov": (b"\0\0\0\x14ftypqt  ", "ffmpeg"),
        "clip.mkv": (b"\x1aE\xdf\xa3", "ffmpeg"),
        "clip.avi": (b"RIFF\0\0\0\0AVI LIST", "ffmpeg"),
    }
    for name, (head, told) in files.items():
        (tmp_path / name).write_bytes(head + bytes(100))
        error = one(classifier, tmp_path / name).error
        assert error is not None
        assert told in error, name


@pytest.mark.parametrize(
    ("head", "told"),
    [(b"\0\0\0\x18ftypisom", "ffmpeg"), (b"\x89PNG\r\n\x1a\n", "200,000,001 bytes; more than 200,000,000")],
)
def test_what_is_refused_is_not_read_into_memory(head: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(head)
        # It takes no room on the disk.
        file.truncate(200_000_001)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=told):
            pictures.read_picture(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_a_pipe_is_read_as_far_as_a_file_may_be_large(
    tmp_path: Path, face: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(Image.fromarray(face), "PNG")
    for most, told in ((len(content), None), (len(content) - 1, "are not read")):
        monkeypatch.setattr("fer_utils.sources.images.MAX_BYTES", most)
        pipe = tmp_path / f"pipe{most}"
        os.mkfifo(pipe)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(pipe.write_bytes, content)
            (item,) = pictures.pictures(pipe)
            writing.result()
        if told is None:
            assert isinstance(item.picture, Image.Image)
            assert np.array_equal(np.asarray(item.picture), face)
        else:
            assert told in str(item.picture)


# -- what cannot be used --


def test_one_bad_input_among_good_ones(classifier: Classifier, face: np.ndarray, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("this is no picture")
    whole = saved(Image.fromarray(ASTRONAUT), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    inputs = [
        face,
        text,
        tmp_path / "cut.jpg",
        tmp_path / "empty.png",
        tmp_path / "absent.png",
        tmp_path / "folder",
        "https://example.org/face.jpg",
        np.zeros((4, 5, 6, 7, 8), np.uint8),
        np.full((48, 48), 3.7),
        np.full((48, 48), np.nan),
        np.zeros((48, 48), np.int64),
        np.zeros((0, 48), np.uint8),
        torch.zeros(3, 48, 48),
        12,
        None,
        "",
        "a" * 300,
        "~nobody_of_this_name/face.png",
        Image.new("RGB", (0, 0)),
        face,
    ]
    told = [
        *("not an image", "truncated or broken", "the file is empty", "no such file", "no picture in this folder"),
        *("download the picture", "(4, 5, 6, 7, 8) is no picture", "divide by 255", "NaN", "int64", "no pixel"),
        *("one colour picture or three grey ones", "int is no picture", "NoneType is no picture"),
        *("the name is empty", "cannot be read", "cannot be read", "no pixel"),
    ]
    first, *bad, last = classifier.predict(inputs)
    assert first.error is None
    assert last.error is None
    assert first.probabilities == last.probabilities
    assert len(bad) == len(told)
    for prediction, text_ in zip(bad, told, strict=True):
        assert prediction.error is not None
        assert text_ in prediction.error, prediction.error
        assert prediction.label is None
        assert prediction.faces == ()


def test_a_float_that_rounding_took_beyond_its_end_is_its_end(face: np.ndarray) -> None:
    scaled = face.astype(np.float32) / 255
    scaled.flat[:2] = 1 + 1e-6, -1e-6
    wanted = face.copy()
    wanted.flat[:2] = 255, 0
    np.testing.assert_array_equal(crop_of(scaled), wanted)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are Unicode there")
def test_names_in_another_encoding_lose_no_answer(classifier: Classifier, face: np.ndarray, tmp_path: Path) -> None:
    for name in (b"a.png", b"caf\xe9.png", b"z.jfif"):
        Image.fromarray(face).save(os.fsencode(tmp_path) + b"/" + name, "PNG")
    table = inference.to_table(classifier.predict(tmp_path))
    inference.write_answers(table, tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["source"].tolist() == [
        f"{tmp_path}/{name}" for name in ("a.png", "caf\\udce9.png", "z.jfif")
    ]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_folder_without_permission_is_told(classifier: Classifier, face: np.ndarray, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0)
    Image.fromarray(face).save(tmp_path / "z.png")
    answers = list(classifier.predict(tmp_path))
    secret.chmod(0o700)
    assert [answer.error for answer in answers] == [None, "the folder cannot be read: Permission denied"]


def test_answers_that_are_not_finite_are_refused(run: Run, face: np.ndarray) -> None:
    broken = Classifier.from_run(run)
    assert isinstance(broken.engine, TorchEngine)
    with torch.no_grad():
        next(broken.engine.model.parameters()).fill_(float("nan"))
    with pytest.raises(ExportError, match="tiny gives probabilities that are not finite"):
        broken.probabilities(face[None])


def test_wrong_options_are_told_at_once(classifier: Classifier, face: np.ndarray) -> None:
    with pytest.raises(InputError, match="detect must be True, False or 'auto'"):
        classifier.predict(face, detect="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        classifier.predict(face, batch_size=0)
    with pytest.raises(InputError, match="uint8"):
        classifier.probabilities(np.zeros((1, 48, 48)))  # type: ignore[arg-type]


# -- folders and tables --


def test_a_folder_is_read_in_order_with_its_bad_files(classifier: Classifier, face: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("2.png", "1.png", "b/0.png"):
        Image.fromarray(face).save(tmp_path / name)
    (tmp_path / "3.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("neither, and not asked about")
    (tmp_path / ".hidden.png").write_text("nor this")
    (tmp_path / "4.jpg").symlink_to("gone.jpg")
    (tmp_path / "5.jpg").symlink_to("b")
    answers = list(classifier.predict(tmp_path))
    assert [Path(answer.source).relative_to(tmp_path).as_posix() for answer in answers] == [
        *("1.png", "2.png", "3.jpg", "4.jpg", "b/0.png")
    ]
    assert [answer.error is None for answer in answers] == [True, True, False, False, True]
    assert answers[3].error == "cannot be read: No such file or directory"


def unlabelled_tables(faces: np.ndarray, folder: Path) -> list[Path]:
    flat = faces.reshape(len(faces), -1)
    csv, parquet = folder / "faces.csv", folder / "df_test.parquet.gzip"
    pd.DataFrame({"pixels": [" ".join(map(str, row)) for row in flat]}).to_csv(csv, index=False)
    pd.DataFrame({"image": [row.astype(float).tolist() for row in flat]}).to_parquet(parquet)
    return [csv, parquet]


def test_tables_are_answered_in_the_order_of_their_rows(
    classifier: Classifier, synthetic_splits: Splits, tmp_path: Path
) -> None:
    faces = synthetic_splits.test.images[:9][::-1]
    expected = classifier.probabilities(faces).argmax(axis=1)
    for path in unlabelled_tables(faces, tmp_path):
        answers = list(classifier.predict(path))
        assert [answer.source for answer in answers] == [f"{path}[{row}]" for row in range(9)]
        assert [answer.label for answer in answers] == [EMOTIONS[target] for target in expected]


def test_a_bad_row_keeps_its_place(classifier: Classifier, synthetic_splits: Splits, tmp_path: Path) -> None:
    path, _ = unlabelled_tables(synthetic_splits.test.images[:3], tmp_path)
    lines = path.read_text().splitlines()
    lines[2] = "1 2 3"
    path.write_text("\n".join(lines))
    answers = list(classifier.predict(path))
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "3 pixels" in str(answers[1].error)
    assert inference.to_challenge_numbers(inference.to_table(answers))[1] == -1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "pixels" in str(one(classifier, tmp_path / "other.csv").error)


def test_what_stands_beside_the_pixels_of_a_table_is_not_looked_at(
    classifier: Classifier, synthetic_splits: Splits, tmp_path: Path
) -> None:
    faces = synthetic_splits.test.images[:4]
    texts = [" ".join(map(str, image.ravel())) for image in faces]
    labels, usages = ("happy", "7", "", "-1"), ("Training", "train", "", "PrivateTest")
    rows = [f"{label},{text},{usage}" for label, text, usage in zip(labels, texts, usages, strict=True)]
    (tmp_path / "own.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    table = pa.table({"image": faces.reshape(4, -1).astype(float).tolist(), "emotion_idx": list(labels)})
    pq.write_table(table, tmp_path / "own.parquet")
    expected = [EMOTIONS[target] for target in classifier.probabilities(faces).argmax(axis=1)]
    for name in ("own.csv", "own.parquet"):
        assert [answer.label for answer in classifier.predict(tmp_path / name)] == expected
    # Where no row is good, each still has its place.
    (tmp_path / "own.csv").write_text("pixels\n1 2\n3\n")
    answers = list(classifier.predict(tmp_path / "own.csv"))
    assert [answer.source for answer in answers] == [f"{tmp_path}/own.csv[{row}]" for row in range(2)]
    assert ["2 pixels" in str(answers[0].error), "1 pixels" in str(answers[1].error)] == [True, True]


def test_a_table_without_rows_is_told(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("emotion,pixels,Usage\n")
    pq.write_table(pa.table({"image": pa.array([], pa.list_(pa.float64()))}), tmp_path / "none.parquet")
    for name in ("none.csv", "none.parquet"):
        assert one(classifier, tmp_path / name).error == "there is no row in this table"


def test_numbers_are_those_of_the_published_tables() -> None:
    order = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    # The second face of a picture does not count, and a picture without one does.
    table = pd.DataFrame({"face": [0] * 7 + [1, None], "label": [*order, "happy", None]}).astype({"face": "Int64"})
    assert inference.to_challenge_numbers(table).tolist() == [0, 1, 2, 3, 4, 5, 6, -1]


def test_the_table_of_answers(classifier: Classifier, face: np.ndarray, tmp_path: Path) -> None:
    answers = list(classifier.predict([face, np.zeros((100, 100, 3), np.uint8), tmp_path / "absent.png"]))
    table = inference.to_table(answers)
    assert table["source"].tolist() == ["image 0", "image 1", str(tmp_path / "absent.png")]
    assert table["face"].fillna(-1).tolist() == [0, -1, -1]
    assert table["error"].tolist() == ["", "", "there is no such file"]
    inference.write_answers(table, tmp_path)
    back = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(back, table)
    assert np.load(tmp_path / "test_prediction.npy").tolist() == [*inference.to_challenge_numbers(table[:1]), -1, -1]
    text = pd.read_csv(tmp_path / "predictions.csv")
    assert text["p_happy"][0] == pytest.approx(back["p_happy"][0])
    # An empty table has the same columns and types.
    assert inference.to_table([]).dtypes.equals(table.dtypes)


# -- faces in photographs --


def test_the_faces_of_two_photographs_are_found(classifier: Classifier) -> None:
    for picture, (left, top, right, bottom) in ((ASTRONAUT, (174, 63, 277, 166)), (HOPPER, (141, 95, 384, 338))):
        answer = one(classifier, picture)
        (found,) = answer.faces
        side = right - left
        for value, expected in zip(found.box, (left, top, right, bottom), strict=True):
            assert abs(value - expected) < 0.04 * side
        assert found.crop.shape == (48, 48)
        assert answer.label == found.label


def test_several_faces_the_largest_first(classifier: Classifier) -> None:
    ground = np.asarray(Image.open(Path(skimage.data.__file__).parent / "coffee.png").convert("L"))
    scene = np.array(ground)
    large = np.asarray(Image.fromarray(ASTRONAUT).convert("L"))[20:220, 120:330]
    small = np.asarray(Image.fromarray(large).resize((120, 115)))
    scene[10:125, 10:130] = small
    scene[180:380, 300:510] = large
    answer = one(classifier, scene)
    assert len(answer.faces) == 2
    assert [face.box.left > 250 for face in answer.faces] == [True, False]
    assert (answer.label, answer.probabilities) == (answer.faces[0].label, answer.faces[0].probabilities)
    assert "2 faces" in answer.message


def resized(grey: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))


def test_a_face_is_found_where_it_is_however_large_the_photo() -> None:
    grey = detection.to_grey(Image.fromarray(ASTRONAUT))
    (alone,) = detection.find_faces(grey)
    (found,) = detection.find_faces(resized(grey, 1536))
    assert np.abs(np.array(found) / 3 - alone).max() < 0.1 * (alone.right - alone.left)
    # A face of a thirtieth of the photo's width.
    scene = np.full((600, 800), 128, np.uint8)
    scene[400:546, 600:746] = resized(grey, 146)
    (small,) = detection.find_faces(scene)
    assert np.abs((np.array(small) - (600, 400, 600, 400)) / 146 * 512 - alone).max() < 20


def test_a_face_within_a_face_is_a_part_of_it() -> None:
    scene = np.array(Image.open(HOPPER).convert("L"))
    (face,) = detection.find_faces(scene)
    small = resized(np.asarray(Image.fromarray(ASTRONAUT).convert("L"))[40:190, 150:300], 60)
    cheek, corner = scene.copy(), scene.copy()
    cheek[110:170, 240:300] = corner[:60, :60] = small
    (found,) = detection.find_faces(cheek)
    assert np.abs(np.array(found) - face).max() < 20
    assert len(detection.find_faces(corner)) == 2


def test_a_photo_of_16_bits_is_searched_as_one_of_8() -> None:
    grey = detection.to_grey(Image.fromarray(ASTRONAUT))
    deep, plain = (Image.fromarray(pixels) for pixels in (grey.astype(np.uint16) * 256 + 200, grey))
    (found,), (expected,) = inference.located(deep), inference.located(plain)
    assert len(expected.boxes) == 1
    assert found.boxes == expected.boxes
    assert np.array_equal(found.crops[0], expected.crops[0])


def test_an_opencv_without_its_detector_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cv2.data.haarcascades", str(tmp_path))
    monkeypatch.setattr(detection, "_cascade", detection._cascade.__wrapped__)
    assert inference.main([str(HOPPER), "--model", str(run.path)]) == 2
    assert "comes without its face detector: pip install" in capsys.readouterr().err
    assert inference.main([str(HOPPER), "--model", str(run.path), "--detect", "no"]) == 0


def test_threads_find_the_faces_of_their_own_pictures() -> None:
    grey = detection.to_grey(Image.fromarray(ASTRONAUT))
    scenes = [grey, np.ascontiguousarray(np.tile(grey, (2, 2))[:700, :900])]
    alone = [detection.find_faces(scene) for scene in scenes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: detection.find_faces(scenes[index % 2]), range(40)))
    assert together == alone * 20


def test_05_shows_the_emotions_of_one_photo_with_several_faces(classifier: Classifier) -> None:
    answer = one(classifier, np.concatenate([ASTRONAUT, ASTRONAUT[:, ::-1]], axis=1))
    found = len(answer.faces)
    assert found > 1
    cells = json.loads((ROOT / "notebooks" / "05_predict.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "plots.gallery(" in "".join(cell["source"])]
    shown: list[object] = []
    scope = {"kept": [answer], "table": inference.to_table([answer]), "found": found, "note": ""}
    scope |= {"plots": inference_plots}
    exec(source, scope | {"show": lambda name, _: shown.append(name), "display": shown.append, "Markdown": str})
    assert shown == ["emotions"]


def test_the_light_of_a_photo_hardly_matters() -> None:
    grey = detection.to_grey(Image.fromarray(ASTRONAUT))
    box, *_ = detection.find_faces(grey)
    dim = np.rint(grey * 0.6 + 50).astype(np.uint8)
    crops = [detection.cut_out(picture, box).astype(np.float64) for picture in (grey, dim)]
    # As in FER2013's faces, every grey is about equally often: mean and spread are those of 0 to 255.
    for crop in crops:
        assert crop.mean() == pytest.approx(127.5, abs=6)
        assert crop.std() == pytest.approx(255 / 12**0.5, abs=4)
    assert np.abs(crops[0] - crops[1]).mean() < 3


def test_a_crop_shows_what_is_in_its_box() -> None:
    grey = np.zeros((100, 140), np.uint8)
    grey[10:58, 60:84], grey[10:58, 84:108] = 80, 160
    crop = detection.cut_out(grey, detection.Box(60, 10, 108, 58))
    assert (np.unique(crop[:, :24]).size, np.unique(crop[:, 24:]).size) == (1, 1)
    assert crop[0, 0] < crop[0, -1]


def test_a_face_of_48_pixels_is_left_as_it_is_and_another_equalised(face: np.ndarray) -> None:
    assert np.array_equal(crop_of(face), face)
    assert np.array_equal(crop_of(np.stack([face] * 3, axis=-1)), face)
    larger = crop_of(np.kron(face // 2, np.ones((2, 2), np.uint8)))
    assert (larger.min(), larger.max()) == (0, 255)


@pytest.mark.real
def test_the_real_faces_have_flat_histograms(real_data: Path) -> None:
    faces = sources.load(real_data).test.images[:500]
    assert np.mean([np.abs(detection.equalised(face).astype(float) - face).mean() for face in faces]) < 4


def test_no_face_is_said_and_not_guessed(classifier: Classifier) -> None:
    answer = one(classifier, np.asarray(skimage.data.coffee()))
    assert (answer.label, answer.probabilities, answer.faces, answer.error) == (None, None, (), None)
    assert answer.message.endswith("no face found")


def filled() -> list[np.ndarray]:
    """Pictures (150, 150) with nothing but a face."""
    return [resized(np.rint(crop * 255).astype(np.uint8), 150) for crop in skimage.data.lfw_subset()[:20]]


def test_a_face_that_fills_the_picture_is_found() -> None:
    assert sum(bool(detection.find_faces(picture)) for picture in filled()) >= 18
    # A square that is cut down to the picture's width is about the same centre.
    tight = np.asarray(Image.open(HOPPER).convert("L"))[15:418, 160:365]
    (found,), (wider,) = detection.find_faces(tight), detection.find_faces(np.pad(tight, 40, mode="edge"))
    assert abs((found.top + found.bottom) / 2 + 40 - (wider.top + wider.bottom) / 2) < 5


@pytest.mark.parametrize(
    ("picture", "taken_for_a_face"),
    [
        (Image.new("L", (48, 48)), True),
        (Image.new("RGB", (48, 48)), True),
        (Image.new("RGB", (64, 56)), True),
        (Image.new("RGB", (65, 65)), False),
        (Image.new("L", (112, 112)), True),
        (Image.new("L", (128, 128)), True),
        (Image.new("L", (129, 129)), False),
        (Image.new("I;16", (112, 112)), True),
        (Image.new("1", (112, 112)), True),
        (Image.new("L", (112, 100)), False),
        (Image.new("RGB", (112, 112)), False),
        (Image.new("L", (64, 40)), False),
        (Image.new("L", (200, 200)), False),
    ],
)
def test_auto_takes_small_square_grey_pictures_for_faces(picture: Image.Image, taken_for_a_face: bool) -> None:
    (auto,) = inference.located(picture)
    assert bool(auto.boxes) == taken_for_a_face
    for no in (False, np.False_, 0):
        (taken,) = inference.located(picture, detect=no)  # type: ignore[arg-type]
        assert taken.boxes == ((0, 0, *picture.size),)
    (searched,) = inference.located(picture, detect=True)
    assert searched.boxes == ()


@pytest.mark.parametrize("shape", [(1, 1), (5, 900), (30, 30), (4000, 20)])
def test_odd_sizes_are_searched_too(shape: tuple[int, int]) -> None:
    assert detection.find_faces(np.zeros(shape, np.uint8)) == []


def test_boxes_lie_in_the_picture() -> None:
    grey = np.asarray(Image.fromarray(ASTRONAUT).convert("L"))
    # The face at the picture's very edge, and beyond it.
    turned = [np.ascontiguousarray(picture[:, ::-1]) for picture in filled()]
    for part in (grey[70:], grey[:, 180:], grey[:, :275], grey[:160], *filled(), *turned):
        height, width = part.shape
        for found in detection.find_faces(part):
            assert 0 <= found.left < found.right <= width
            assert 0 <= found.top < found.bottom <= height
            assert found.right - found.left == found.bottom - found.top


# -- the models --


def test_named_finds_the_model_that_is_meant(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "WEIGHTS", tmp_path)
    assert Classifier.named(str(run.path)).name == "tiny"
    monkeypatch.setattr("fer_utils.runs.OUTPUTS", run.path.parent)
    assert Classifier.named("tiny").name == "tiny"
    assert Classifier.named().name == "tiny", "without a box it is the newest run"
    monkeypatch.setattr("fer_utils.runs.OUTPUTS", tmp_path / "nothing")
    with pytest.raises(RuntimeError, match=r"no trained model in the box: train one with 03_train\.ipynb"):
        Classifier.named()
    with pytest.raises(RuntimeError, match="there is no run at another"):
        Classifier.named("another")


def test_a_name_of_a_run_and_of_the_box_is_what_is_preferred_and_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, boxed = list(box.listed().items())[-1]
    monkeypatch.setattr("fer_utils.runs.OUTPUTS", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    alone = Classifier.named(name, prefer="run")
    assert (alone.run, alone.note) == (None, "")
    own = tmp_path / name
    own.mkdir()
    assert Classifier.named(name, prefer="run").run is None, "an empty directory is no run"
    monkeypatch.chdir(tmp_path)
    assert Classifier.named(name).run is None, "nor is one where the command runs"
    monkeypatch.chdir(tmp_path.parent)
    own.rmdir()
    shutil.copytree(run.path, own)

    ours = Classifier.named(name, prefer="run")
    assert ours.run == own
    assert ours.note == (
        f"{name!r} is the run {own}; for the model of that name in the box give its file, {box.WEIGHTS / boxed.file}"
    )
    theirs = Classifier.named(name)
    assert theirs.run is None
    assert theirs.note == f"{name!r} is the model in the box; for the run of that name give its path, {own}"
    # What the notes say to give is one thing alone.
    assert (Classifier.named(str(own)).run, Classifier.named(str(own)).note) == (own, "")
    by_file = Classifier.named(str(box.WEIGHTS / boxed.file))
    assert by_file.note == ""
    assert by_file.engine.description == theirs.engine.description
    # A path is a path, whatever is preferred.
    monkeypatch.chdir(tmp_path)
    assert Classifier.named(name).run == Path(name)
    assert Classifier.named(name).note.startswith(f"{name!r} is the run")


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    for name in ("model.safetensors", "model.onnx", "model.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(RuntimeError, match="is a pickle"):
            Classifier.from_file(tmp_path / name)
        torch.save({"weights": Bomb()}, tmp_path / name)
        with pytest.raises(RuntimeError, match="is a pickle"):
            Classifier.from_file(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


# -- the command line --


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "fer_utils.inference", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def test_the_command_answers_good_and_bad(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    done = command(HOPPER, tmp_path / "text.png", "--json", "--model", run.path, "--out", tmp_path / "out")
    good, bad = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1
    assert good["error"] is None
    assert sum(good["probabilities"].values()) == pytest.approx(1)
    assert good["faces"][0]["box"]["right"] > good["faces"][0]["box"]["left"]
    assert good["size"] == {"width": 512, "height": 600}
    assert "not an image" in bad["error"]
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == 2
    assert "Traceback" not in done.stderr


def test_an_answer_is_a_line_whatever_the_name_of_its_picture(
    run: Run, face: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a\nb.png", "c\rd.png", "e\x1b[31mf.png", "g\u2028h.png", "\u7167\U0001f600.png"]
    (tmp_path / "in").mkdir()
    for name in names:
        Image.fromarray(face).save(tmp_path / "in" / name)
    (tmp_path / "in" / "z\nz.png").write_text("no picture")
    given = [str(tmp_path / "in"), "--model", str(run.path), "--out", str(tmp_path / "out")]
    assert inference.main(given) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    # In a line too what a terminal would take for a command.
    assert [Path(line.partition(": ")[0]).name for line in lines] == [
        *("a\\nb.png", "c\\rd.png", "e\\x1b[31mf.png", "g\\u2028h.png", names[-1])
    ]
    assert told.err.splitlines()[-1].startswith(f"{tmp_path}/in/z\\nz.png: error: ")
    sources = [str(tmp_path / "in" / name) for name in [*names[:4], "z\nz.png", names[4]]]
    # What programs read has the names as they are.
    assert pd.read_parquet(tmp_path / "out" / "predictions.parquet")["source"].tolist() == sources
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["source"].tolist() == sources
    inference.main([*given[:3], "--json"])
    assert [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()] == sources
    assert inference.main([str(tmp_path / "not\nthere")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_names_that_the_output_cannot_hold_lose_no_answer(
    options: list[str], run: Run, face: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Windows, where answers go into a file.
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="cp1252"))
    for name in ("\u7167.png", "\u00fc.png"):
        Image.fromarray(face).save(tmp_path / name)
    assert inference.main([str(tmp_path), "--model", str(run.path), *options]) == 0
    sys.stdout.flush()
    lines = held.getvalue().decode("cp1252").splitlines()
    if options:
        assert [Path(json.loads(line)["source"]).name for line in lines] == ["\u00fc.png", "\u7167.png"]
    else:
        assert [Path(line.partition(": ")[0]).name for line in lines] == ["\u00fc.png", r"\u7167.png"]


def test_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        inference.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "by default auto" in told
    assert "by default cpu" in told


def test_the_command_says_what_is_wrong(
    run: Run, face: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "face.png"
    Image.fromarray(face).save(path)
    assert inference.main([str(path), "--model", str(run.path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: ")
    assert inference.main([str(path), "--model", str(tmp_path / "absent")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert inference.main([str(path), "--model", str(run.path), "--device", "cuda:9"]) == 2
    assert "cuda:9" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        inference.main([])


def test_a_reader_that_has_read_enough_is_no_error(run: Run, face: np.ndarray, tmp_path: Path) -> None:
    for number in range(300):
        Image.fromarray(face).save(tmp_path / f"{number}.png")
    words = [sys.executable, "-m", "fer_utils.inference", str(tmp_path), "--json", "--model", str(run.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert json.loads(started.stdout.readline())["error"] is None
        started.stdout.close()
        assert "Traceback" not in started.stderr.read()
    assert started.returncode == 1


def test_the_command_says_which_network_answers_where_a_name_means_two(
    run: Run, face: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "face.png"
    Image.fromarray(face).save(path)
    name = list(box.listed())[-1]
    monkeypatch.setattr("fer_utils.runs.OUTPUTS", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    assert inference.main([str(path), "--model", name]) == 0
    assert capsys.readouterr().err == ""
    shutil.copytree(run.path, tmp_path / "outputs" / name)
    assert inference.main([str(path), "--model", name, "--json"]) == 0
    printed = capsys.readouterr()
    assert f"{name!r} is the model in the box" in printed.err
    assert str(tmp_path / "outputs" / name) in printed.err
    assert json.loads(printed.out)["error"] is None


@pytest.mark.parametrize("others", [[], ["absent.png"], [HOPPER]])
def test_an_address_is_told_whatever_stands_beside_it(
    others: list[str | Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "https://example.org/face.jpg"
    code = inference.main([address, *map(str, others), "--model", str(run.path)])
    told = capsys.readouterr().err
    assert f"{address}: error: addresses are not fetched: download the picture" in told
    assert code == (1 if others == [HOPPER] else 2)
    assert ("absent.png: error: there is no such file" in told) == (others == ["absent.png"])


def test_tables_that_cannot_be_written_are_told_before_a_model_is_loaded(
    face: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken = tmp_path / "face.png", tmp_path / "answers.csv"
    Image.fromarray(face).save(path)
    taken.write_text("kept")

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(Classifier, "named", loaded)
    for out in (taken, taken / "below"):
        assert inference.main([str(path), "--out", str(out)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert f"--out {out}: no tables can be written there" in told.err
    assert taken.read_text() == "kept"
    # One that may not be written to, which the one who runs the tests may be allowed to all the same.
    monkeypatch.setattr("tempfile.TemporaryFile", forbidden)
    assert inference.main([str(path), "--out", str(tmp_path)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def forbidden(**_: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_wrong_name_is_told_before_torch_is_imported() -> None:
    code = "import sys; from fer_utils import inference; print(inference.main(['absent.jpg']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["2", "False"]
    assert "absent.jpg: error: there is no such file" in done.stderr


def test_pictures_are_read_while_another_thread_imports_torch(
    tmp_path: Path, face: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "face.png"
    Image.fromarray(face).save(path)
    # As the command finds it while its network loads: torch is among the modules, and empty yet.
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    (item,) = pictures.pictures(path)
    assert isinstance(item.picture, Image.Image)
    (item,) = pictures.pictures([face])
    assert isinstance(item.picture, Image.Image)


def test_pictures_come_one_at_a_time(tmp_path: Path, face: np.ndarray) -> None:
    for number in range(3):
        Image.fromarray(face).save(tmp_path / f"{number}.png")
    items = pictures.pictures(tmp_path)
    next(items)
    # The second is read when it is asked for, not before.
    (tmp_path / "1.png").write_text("no picture any more")
    assert isinstance(next(items).picture, InputError)


@pytest.mark.gpu
def test_cuda_names_the_same_emotions(run: Run, synthetic_splits: Splits) -> None:
    images = synthetic_splits.test.images[:40]
    expected, found = (Classifier.from_run(run, device=name).predict(list(images)) for name in ("cpu", "cuda"))
    for one_there, one_here in zip(found, expected, strict=True):
        assert one_there.probabilities == pytest.approx(one_here.probabilities, abs=5e-3)


def test_what_cannot_be_answered_leaves_no_empty_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "face.png"
    Image.new("L", (48, 48)).save(path)
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    for folder in (out, mine):
        assert inference.main([str(path), "--model", "no_such", "--out", str(folder)]) == 2
    assert not out.exists()
    assert mine.is_dir(), "what was there before is the user's"
    assert inference.main([str(path), "--model", "no_such", "--out", str(tmp_path / "new" / "one")]) == 2
    assert not (tmp_path / "new").exists()

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_answer_all", interrupted)
    assert inference.main([str(path), "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not out.exists()
