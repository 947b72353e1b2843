"""Every published layout, read from small files that are written here; what is bad in them, and what the cache does."""

import csv as stdlib_csv
import io
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_utils import sources
from fer_utils.audit import audit
from fer_utils.emotions import EMOTIONS
from fer_utils.faces import Faces, Splits, describe, digests
from fer_utils.files import write_json
from fer_utils.runs import describe_data
from fer_utils.sources import SourceError, cache, folder, jpeg, kaggle, row_numbers
from fer_utils.sources import csv as csv_source
from fer_utils.sources.numbers import COMPILED, NumberParser

CHALLENGE = {"angry": 0, "disgust": 1, "fear": 2, "happy": 3, "sad": 4, "surprise": 5, "neutral": 6}
"""The numbers of the challenge's tables, spelled out here on purpose."""

Row = tuple[np.ndarray, str, str]  # image, emotion, Usage


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own, and no data but its own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FER_CACHE", str(place))
    monkeypatch.delenv("FER_DATA", raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(place / "kagglehub"))
    return place


def made_rows(per_emotion: int = 6, usages: Iterable[str] = ("Training", "PublicTest"), seed: int = 0) -> list[Row]:
    """Random faces of every emotion and part, with copies within and across the parts and a conflicting label."""
    rng = np.random.default_rng(seed)
    rows = []
    for usage in usages:
        count = per_emotion * (4 if usage == "Training" else 1)
        rows += [
            (rng.integers(0, 256, (48, 48), dtype=np.uint8), emotion, usage)
            for emotion in EMOTIONS
            for _ in range(count)
        ]
    rows += [(rows[0][0], "angry", "Training"), (rows[1][0], "sad", "Training"), (rows[2][0], "sad", rows[-1][2])]
    rows += [(rows[3][0], emotion, rows[-1][2]) for emotion in ("surprise", "angry", "fear")]
    order = rng.permutation(len(rows))
    return [rows[i] for i in order]


def write_tree(rows: list[Row], place: Path, name: Callable[[int, str], str] = lambda i, usage: f"{usage}_{i}") -> Path:
    for i, (image, emotion, usage) in enumerate(rows):
        path = place / ("train" if usage == "Training" else "test") / emotion / f"{name(i, usage)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return place


def pixels(image: np.ndarray) -> str:
    return " ".join(str(value) for value in image.ravel())


def write_csv(rows: list[Row], path: Path, header: str = "emotion,pixels,Usage") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header]
    for image, emotion, usage in rows:
        fields = {"emotion": str(CHALLENGE[emotion]), "pixels": pixels(image), "usage": usage}
        lines.append(",".join(fields[name.strip().lower()] for name in header.split(",")))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(rows: list[Row], place: Path, kind: pa.DataType | None = None, suffix: str = ".parquet.gzip") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for part, usage in (("train", "Training"), ("test", "PublicTest")):
        some = [row for row in rows if row[2] == usage]
        labels = [CHALLENGE[emotion] if usage == "Training" else -1 for _, emotion, _ in some]
        images = pa.array([image.ravel().tolist() for image, _, _ in some], kind or pa.list_(pa.float64()))
        pq.write_table(pa.table({"image": images, "emotion_idx": labels}), place / f"df_{part}{suffix}")
    return place


def same(one: Faces, other: Faces) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.targets, other.targets)
    np.testing.assert_array_equal(one.digests, other.digests)


def faces_of(splits: Splits) -> set[tuple[bytes, int]]:
    return {
        (image.tobytes(), int(target))
        for _, part in splits
        for image, target in zip(part.images, part.targets, strict=True)
    }


# Layouts


def test_three_layouts_of_the_same_faces_agree(tmp_path: Path) -> None:
    rows = made_rows()
    tree = sources.load(write_tree(rows, tmp_path / "tree"))
    table = sources.load(write_csv(rows, tmp_path / "csv" / "fer2013.csv").parent)
    pair = sources.load(write_parquet(rows, tmp_path / "pair"))
    assert (tree.source, table.source, pair.source) == ("folder", "csv", "parquet")
    for other in (table, pair):
        same(tree.train, other.train)
        same(tree.val, other.val)
        assert other.fingerprint() == tree.fingerprint()
    same(tree.test, table.test)
    # Where one image has several labels, the order of its copies is the labels', which the parquet test part has not.
    np.testing.assert_array_equal(pair.test.images, tree.test.images)
    assert set(pair.test.targets) == {-1}
    assert pair.evaluation_part() == "val"
    known = {image.tobytes(): set() for image, _, _ in rows}
    for image, emotion, _ in rows:
        known[image.tobytes()].add(EMOTIONS.index(emotion))
    for image, target in faces_of(tree):
        assert target in known[image]
    assert len(tree.train) + len(tree.val) + len(tree.test) == len(rows)


def test_faces_are_ordered_and_copies_stay_on_one_side(tmp_path: Path) -> None:
    splits = sources.load(write_tree(made_rows(), tmp_path))
    for _, faces in splits:
        keys = list(zip(faces.digests.tolist(), faces.targets.tolist(), strict=True))
        assert keys == sorted(keys)
        np.testing.assert_array_equal(faces.digests, digests(faces.images))
    assert not set(splits.train.digests.tolist()) & set(splits.val.digests.tolist())
    assert len(splits.val) == pytest.approx(0.1 * (len(splits.train) + len(splits.val)), abs=4)


def test_predictions_for_a_table_can_be_put_back_in_row_order(tmp_path: Path) -> None:
    rows = made_rows()
    splits = sources.load(write_parquet(rows, tmp_path))
    test = [image for image, _, usage in rows if usage == "PublicTest"]
    assert splits.test.names[0].startswith("test[")
    back = np.empty_like(splits.test.images)
    back[row_numbers(splits.test.names)] = splits.test.images
    np.testing.assert_array_equal(back, np.stack(test))
    with pytest.raises(ValueError, match="names no row"):
        row_numbers(np.array(["train/angry/1.jpg"]))


def test_official_parts_by_file_name_and_by_usage(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    tree = sources.load(write_tree(rows, tmp_path / "tree"))
    table = sources.load(write_csv(rows, tmp_path / "fer2013.csv"))
    for part, usage in (("train", "Training"), ("val", "PublicTest"), ("test", "PrivateTest")):
        wanted = {(image.tobytes(), EMOTIONS.index(emotion)) for image, emotion, its in rows if its == usage}
        for splits in (tree, table):
            faces = splits[part]
            assert {(i.tobytes(), int(t)) for i, t in zip(faces.images, faces.targets, strict=True)} == wanted
    assert "file names" in tree.rule
    assert "Usage" in table.rule


def test_val_fraction_cuts_training_and_leaves_all_else_to_the_test_set(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    path = write_csv(rows, tmp_path / "fer2013.csv")
    training = sum(usage == "Training" for _, _, usage in rows)
    splits = sources.load(path, val_fraction=0.2)
    assert len(splits.val) == pytest.approx(0.2 * training, abs=4)
    assert len(splits.train) + len(splits.val) == training
    assert len(splits.test) == len(rows) - training
    whole = sources.load(path, val_fraction=0)
    assert (len(whole.train), len(whole.val)) == (training, 0)
    other = sources.load(path, val_fraction=0.2, split_seed=1)
    assert set(other.val.digests.tolist()) != set(splits.val.digests.tolist())
    for wrong in (1, -0.1, float("nan")):
        with pytest.raises(SourceError, match="val_fraction"):
            sources.load(path, val_fraction=wrong)


def test_val_fraction_tests_on_the_labelled_of_the_other_parts(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    path = write_csv(rows, tmp_path / "fer2013.csv")
    lines = path.read_text().splitlines()
    blind = [re.sub(r"^\d", "-1", line) if line.endswith("PrivateTest") else line for line in lines]
    path.write_text("\n".join(blind) + "\n")
    splits = sources.load(path, val_fraction=0.2)
    assert splits.test.labelled
    assert len(splits.test) == sum(usage == "PublicTest" for _, _, usage in rows)
    assert f"{sum(usage == 'PrivateTest' for _, _, usage in rows):,} have no label" in splits.rule


def test_a_test_part_of_both_halves_tells_which_face_is_of_which(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    places = [write_tree(rows, tmp_path / "tree"), write_csv(rows, tmp_path / "fer2013.csv")]
    for place in places:
        # The second time from the cache.
        for _ in range(2):
            splits = sources.load(place, val_fraction=0.2)
            assert splits.halves is not None
            for usage in ("PublicTest", "PrivateTest"):
                wanted = sorted((i.tobytes(), EMOTIONS.index(e)) for i, e, its in rows if its == usage)
                some = splits.test.select(splits.halves == usage)
                found = sorted((i.tobytes(), int(t)) for i, t in zip(some.images, some.targets, strict=True))
                assert found == wanted
        assert sources.load(place).halves is None
        assert sources.load(place, val_fraction=0.2, cache=False).halves is not None


def test_a_usage_column_in_two_tables_tells_the_halves(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    for name, training in (("train.csv", True), ("test.csv", False)):
        write_csv([row for row in rows if (row[2] == "Training") is training], tmp_path / name)
    two, one = sources.load(tmp_path), sources.load(write_csv(rows, tmp_path / "whole" / "fer2013.csv"))
    assert two.rule == one.rule
    assert "Usage column" in two.rule
    two, one = (sources.load(place, val_fraction=0.1) for place in (tmp_path, tmp_path / "whole"))
    same(two.test, one.test)
    np.testing.assert_array_equal(two.halves, one.halves)
    # Where a table lacks the column, it is the tables that tell.
    write_csv([row for row in rows if row[2] == "Training"], tmp_path / "train.csv", "emotion,pixels")
    assert "told by the files" in sources.load(tmp_path).rule


def test_parts_that_are_no_halves_of_the_challenge_are_not_told_apart(tmp_path: Path) -> None:
    rows = made_rows(usages=("Training", "PublicTest"))
    assert sources.load(write_csv(rows, tmp_path / "fer2013.csv"), val_fraction=0.2).halves is None
    other = made_rows(usages=("Training", "PublicTest", "PrivateTest"))
    write_tree(other, tmp_path / "tree", lambda i, usage: f"{usage[:7]}_{i}")
    (tmp_path / "tree" / "test").rename(tmp_path / "tree" / "validation")
    write_tree(made_rows(2, usages=("PublicTest",), seed=1), tmp_path / "tree", lambda i, usage: f"face_{i}")
    splits = sources.load(tmp_path / "tree", val_fraction=0.2)
    assert {name.partition("/")[0] for name in splits.test.names} == {"validation", "test"}
    assert splits.halves is None


def test_folders_of_three_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    for part, usage in (("Training", "a"), ("validation", "b"), ("test", "c")):
        for image, emotion, _ in made_rows(2, usages=(usage,), seed=len(part)):
            path = tmp_path / part / emotion / f"{digests(image[None])[0].decode()}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    splits = sources.load(tmp_path)
    assert {name.partition("/")[0] for name in splits.val.names} == {"validation"}
    assert {name.partition("/")[0] for name in splits.test.names} == {"test"}
    assert "folders" in splits.rule
    assert len(sources.load(tmp_path, val_fraction=0.1).test) == len(splits.val) + len(splits.test)


def test_names_that_contradict_their_folder_tell_nothing(tmp_path: Path) -> None:
    write_tree(made_rows(usages=("Training", "PublicTest", "PrivateTest")), tmp_path)
    moved = tmp_path / "validation"
    for emotion in EMOTIONS:
        (moved / emotion).mkdir(parents=True)
        for path in sorted((tmp_path / "train" / emotion).iterdir())[:3]:
            path.rename(moved / emotion / path.name)
    splits = sources.load(tmp_path)
    assert {name.partition("/")[0] for name in splits.val.names} == {"validation"}


def test_faces_without_any_parts_are_cut_in_three(tmp_path: Path) -> None:
    rows = made_rows(20, usages=("Training",))
    for i, (image, emotion, _) in enumerate(rows):
        (tmp_path / emotion).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / emotion / f"{i}.bmp")
    splits = sources.load(tmp_path)
    assert len(splits.test) == pytest.approx(0.1 * len(rows), abs=5)
    assert len(splits.val) == pytest.approx(0.1 * len(rows), abs=5)
    assert len(splits.train) + len(splits.val) + len(splits.test) == len(rows)
    assert not set(splits.train.digests.tolist()) & set(splits.test.digests.tolist())
    assert "no parts" in splits.rule
    table = sources.load(write_csv(rows, tmp_path / "alone.csv"))
    same(table.test, splits.test)


def test_spellings_of_emotions_and_parts(tmp_path: Path) -> None:
    rows = made_rows()
    spelled = {"angry": "Anger", "happy": "HAPPINESS", "sad": "sadness", "surprise": "surprised", "fear": "Fearful"}
    plain = sources.load(write_tree(rows, tmp_path / "plain"))
    renamed = [(image, spelled.get(emotion, emotion.title()), usage) for image, emotion, usage in rows]
    write_tree(renamed, tmp_path / "other")
    (tmp_path / "other" / "train").rename(tmp_path / "other" / "Training")
    (tmp_path / "other" / "test").rename(tmp_path / "other" / "PrivateTest")
    other = sources.load(tmp_path / "other")
    assert other.fingerprint() == plain.fingerprint()
    same(other.test, plain.test)


@pytest.mark.parametrize("header", ["emotion, Usage, pixels", "pixels,emotion,Usage", " Usage,PIXELS, Emotion"])
def test_columns_are_found_by_name(tmp_path: Path, header: str) -> None:
    rows = made_rows()
    plain = sources.load(write_csv(rows, tmp_path / "fer2013.csv"))
    other = sources.load(write_csv(rows, tmp_path / "other" / "icml_face_data.csv", header).parent)
    for part, faces in other:
        same(faces, plain[part])


def test_csv_with_quotes_carriage_returns_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    rows = made_rows()
    plain = sources.load(write_csv(rows, tmp_path / "fer2013.csv"))
    with (tmp_path / "quoted.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = stdlib_csv.writer(file, quoting=stdlib_csv.QUOTE_ALL)
        writer.writerow(["emotion", "Usage", "pixels"])
        for i, (image, emotion, usage) in enumerate(rows):
            writer.writerow([CHALLENGE[emotion], usage, pixels(image)])
            if i % 10 == 0:
                file.write("\r\n")
    quoted = sources.load(tmp_path / "quoted.csv")
    for part, faces in quoted:
        same(faces, plain[part])
    np.testing.assert_array_equal(row_numbers(quoted.train.names), row_numbers(plain.train.names))


def test_kaggles_train_and_test_tables(tmp_path: Path) -> None:
    rows = made_rows()
    training = [row for row in rows if row[2] == "Training"]
    testing = [row for row in rows if row[2] != "Training"]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = stdlib_csv.writer(file, quoting=stdlib_csv.QUOTE_NONNUMERIC)
        writer.writerow(["emotion", "pixels"])
        writer.writerows([CHALLENGE[emotion], pixels(image)] for image, emotion, _ in training)
    write_csv(testing, tmp_path / "test.csv", "pixels")
    splits = sources.load(tmp_path)
    pair = sources.load(write_parquet(rows, tmp_path / "pair"))
    for part, faces in splits:
        same(faces, pair[part])
        np.testing.assert_array_equal(faces.names, pair[part].names)


def test_a_csv_is_read_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_utils.sources import csv

    path = write_csv(made_rows(3), tmp_path / "fer2013.csv")
    path.write_text(path.read_text().rstrip("\n"))  # and without a newline at its end
    plain = sources.load(path, cache=False)
    for block, line in ((700, 50), (8_300, 1_000), (100_000, 20_000)):
        monkeypatch.setattr(csv, "BLOCK", block)
        monkeypatch.setattr(csv, "LINE", line)
        for part, faces in sources.load(path, cache=False):
            same(faces, plain[part])
            np.testing.assert_array_equal(faces.names, plain[part].names)


def test_a_bad_row_is_named_whichever_thread_parses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_utils.sources import csv

    monkeypatch.setattr(csv, "BLOCK", 20_000)  # some two rows
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    lines = path.read_text().splitlines()
    total = len(lines) - 1
    for row in (5, 40, total - 1):
        label, numbers, usage = lines[1 + row].split(",")
        lines[1 + row] = f"{label},{numbers} 7,{usage}"
    path.write_text("\n".join(lines) + "\n")
    splits = sources.load(path, on_bad="skip", cache=False)
    expected = [(f"fer2013.csv row {row}", "has 2,305 pixels; expected 2,304 (48 × 48)") for row in (5, 40, total - 1)]
    assert [(item.name, item.reason) for item in splits.skipped] == expected
    rows = np.concatenate([row_numbers(faces.names) for _, faces in splits])
    assert sorted(rows) == sorted(set(range(total)) - {5, 40, total - 1})


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.uint8()), pa.list_(pa.int64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), 2304)]
)
def test_parquet_of_integers_floats_and_fixed_lengths(tmp_path: Path, kind: pa.DataType) -> None:
    rows = made_rows(3)
    plain = sources.load(write_parquet(rows, tmp_path / "plain"))
    other = sources.load(write_parquet(rows, tmp_path / "other", kind, suffix=".parquet"))
    for part, faces in other:
        same(faces, plain[part])


def test_parquet_labels_absent_null_and_minus_one_mean_unlabelled(tmp_path: Path) -> None:
    place = write_parquet(made_rows(), tmp_path)
    test = pq.read_table(place / "df_test.parquet.gzip")
    plain = sources.load(place)
    for labels in (
        None,
        pa.array([None] * len(test), pa.int64()),
        pa.array([-1.0] * len(test)).cast(pa.int32()),
        pa.array([-1.0] * len(test)),
        pa.array([float("nan")] * len(test)),
    ):
        images = test.select(["image"])
        table = images if labels is None else images.append_column("emotion_idx", labels)
        pq.write_table(table, place / "df_test.parquet.gzip")
        same(sources.load(place).test, plain.test)
    # A column in which one label is missing is one of floats to pandas.
    train = pq.read_table(place / "df_train.parquet.gzip")
    floats = pa.array([float(label) for label in train["emotion_idx"].to_pylist()])
    pq.write_table(train.set_column(1, "emotion_idx", floats), place / "df_train.parquet.gzip")
    same(sources.load(place).train, plain.train)


def test_an_unlabelled_test_folder(tmp_path: Path) -> None:
    rows = made_rows()
    write_tree(rows, tmp_path)
    labelled = sources.load(tmp_path)
    for path in sorted((tmp_path / "test").glob("*/*.png")):
        path.rename(tmp_path / "test" / path.name)
    for emotion in EMOTIONS:
        (tmp_path / "test" / emotion).rmdir()
    splits = sources.load(tmp_path)
    np.testing.assert_array_equal(splits.test.images, labelled.test.images)
    assert set(splits.test.targets) == {-1}
    assert splits.fingerprint() == labelled.fingerprint()
    # Official names of all three parts change nothing: by a face without an emotion nothing can be chosen.
    for path in sorted((tmp_path / "test").iterdir())[::2]:
        path.rename(path.with_name(path.name.replace("PublicTest", "PrivateTest")))
    np.testing.assert_array_equal(sources.load(tmp_path).test.images, labelled.test.images)


# Finding the layout


def test_one_folder_in_a_folder_is_gone_into(tmp_path: Path) -> None:
    write_tree(made_rows(), tmp_path / "data" / "fer2013")
    (tmp_path / "data" / "README.txt").write_text("the faces")
    (tmp_path / "data" / ".git").mkdir()
    splits = sources.load(str(tmp_path / "data"))
    assert splits.source == "folder"
    assert splits.location == str(tmp_path / "data")


def test_a_relative_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(made_rows(), tmp_path / "synthetic")
    monkeypatch.chdir(tmp_path)
    for data in ("./synthetic", Path("synthetic")):
        splits = sources.load(data)
        assert (splits.source, splits.location) == ("folder", str(tmp_path / "synthetic"))


def test_a_location_is_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(made_rows(), tmp_path / "away" / "faces")
    (tmp_path / "away" / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "away" / "deep")
    (tmp_path / "named").symlink_to(tmp_path / "away" / "faces")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    loaded = {data: sources.load(data) for data in ("away/faces", "away/deep/../faces", "~/away/faces")}
    # What is above a link's target is not what is above the link.
    loaded["link/../faces"] = sources.load("link/../faces")
    assert {data: splits.location for data, splits in loaded.items()} == dict.fromkeys(
        loaded, str(tmp_path / "away" / "faces")
    )
    assert sources.load("named").location == str(tmp_path / "named")
    monkeypatch.chdir(tmp_path / "away" / "deep")
    again = sources.load(loaded["away/faces"].location)
    assert again.fingerprint() == loaded["away/faces"].fingerprint()
    assert sources.load("synthetic:200").location == "synthetic:200"


def test_a_place_that_is_not_there_or_holds_nothing_known_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere is not there.*synthetic.*kaggle"):
        sources.load(tmp_path / "nowhere")
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "notes.txt").write_text("hello")
    (tmp_path / "more").mkdir()
    with pytest.raises(SourceError, match=r"(?s)Looked for: .*train/angry.*fer2013\.csv.*df_train.*Found: more, stuff"):
        sources.load(tmp_path)
    with pytest.raises(SourceError, match=r"\.csv.*\.parquet"):
        sources.load(tmp_path / "stuff" / "notes.txt")
    with pytest.raises(SourceError, match="data is empty"):
        sources.load("")
    with pytest.raises(SourceError, match="on_bad"):
        sources.load("synthetic", on_bad="ignore")  # type: ignore[arg-type]


def test_two_layouts_in_one_place_are_not_guessed_between(tmp_path: Path) -> None:
    rows = made_rows(3)
    write_tree(rows, tmp_path)
    write_csv(rows, tmp_path / "fer2013.csv")
    with pytest.raises(
        SourceError, match=r"more than one layout: a folder tree; fer2013\.csv\. Give .*\(fer2013\.csv\)"
    ):
        sources.load(tmp_path)
    assert sources.load(tmp_path / "fer2013.csv").source == "csv"


def test_two_layouts_one_folder_down_are_told_with_advice_that_works(tmp_path: Path) -> None:
    rows, data = made_rows(3), tmp_path / "data"
    inner = data / "inner"
    write_csv([row for row in rows if row[2] == "Training"], inner / "train.csv", "emotion,pixels")
    write_csv([row for row in rows if row[2] != "Training"], inner / "test.csv", "pixels")
    write_csv(rows, inner / "icml_face_data.csv")
    for place in (data, inner):
        with pytest.raises(SourceError) as caught:
            sources.load(place)
        told = str(caught.value)
        assert f"{inner} holds more than one layout: icml_face_data.csv; train.csv and test.csv." in told
        assert "the path of the one file that is meant (icml_face_data.csv), or move all layouts but the one" in told
    assert set(sources.load(inner / "icml_face_data.csv").test.targets) != {-1}
    write_parquet(rows, inner)
    (inner / "icml_face_data.csv").rename(tmp_path / "icml_face_data.csv")
    # No file alone is one of these two layouts.
    with pytest.raises(SourceError, match=r"df_test\.parquet\.gzip; train\.csv and test\.csv\. Move all layouts but"):
        sources.load(data)
    for path in inner.glob("*.parquet.gzip"):
        path.unlink()
    assert set(sources.load(data).test.targets) == {-1}, "train.csv and test.csv are left, the latter without labels"


def test_auto_takes_what_is_there_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_utils.sources import synthetic

    generate = synthetic.generate
    monkeypatch.setattr(synthetic, "generate", lambda: generate(200))  # fewer, to be fast
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    # Nothing: drawn faces, and it is said why. No address outside this machine is asked: none can be.
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".gitkeep").touch()
    drawn = sources.load("auto")
    assert drawn.synthetic
    assert "FER_DATA is not set" in drawn.rule
    # Kaggle's cache, then data/, then FER_DATA.
    dataset = tmp_path / "hub" / "datasets" / "msambare" / "fer2013"
    write_tree(made_rows(3, seed=1), dataset / "versions" / "1")
    assert sources.load("auto").synthetic, "an unfinished download is no data"
    (dataset / "1.complete").touch()
    assert sources.load("auto").source == "kaggle"
    write_tree(made_rows(3, seed=2), tmp_path / "data" / "fer2013")
    assert sources.load("auto").location == str(tmp_path / "data")
    write_csv(made_rows(3, seed=3), tmp_path / "named.csv")
    monkeypatch.setenv("FER_DATA", str(tmp_path / "named.csv"))
    assert sources.load("auto").source == "csv"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_DATA", "named.csv")
    assert sources.load("auto").location == str(tmp_path / "named.csv")
    monkeypatch.setenv("FER_DATA", "synthetic")
    assert sources.load("auto").location == "synthetic"
    monkeypatch.setenv("FER_DATA", str(tmp_path / "gone.csv"))
    with pytest.raises(SourceError, match=r"FER_DATA is .*gone\.csv is not there\. It takes the path"):
        sources.load("auto")


@pytest.mark.parametrize("named", ["kaggle", "auto"])
def test_the_variable_takes_no_name_that_might_need_the_network(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_DATA", named)
    with pytest.raises(SourceError) as caught:
        sources.load("auto")
    told = str(caught.value)
    assert f"$FER_DATA is {named}" in told
    assert "the path of a folder or file, synthetic or synthetic:N." in told
    assert "(--data kaggle)" in told
    assert "one of auto" not in told
    # A folder of that name is one.
    write_tree(made_rows(3), tmp_path / named)
    splits = sources.load("auto")
    assert (splits.source, splits.location) == ("folder", str(tmp_path / named))


def test_synthetic_faces_by_number(tmp_path: Path) -> None:
    splits = sources.load("synthetic:200")
    assert splits.synthetic
    assert sum(len(faces) for _, faces in splits) == 200
    again = sources.load("synthetic:200")
    same(again.train, splits.train)
    assert (again.rule, again.fingerprint()) == (splits.rule, splits.fingerprint())
    for wrong in ("synthetic:", "synthetic:many", "synthetic:-5", "synthetic:3"):
        with pytest.raises(SourceError, match=wrong):
            sources.load(wrong)


# Kaggle


def test_kaggles_cache_is_looked_for_where_kagglehub_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kagglehub.cache import Cache
    from kagglehub.handle import parse_dataset_handle

    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    handle = parse_dataset_handle(kaggle.HANDLE)
    place = Path(Cache().get_path(handle))
    write_tree(made_rows(3), place)
    assert kaggle.cached() is None
    Cache().mark_as_complete(handle)
    assert kaggle.cached() == place
    assert kaggle.download() == place
    splits = sources.load("kaggle")
    assert (splits.source, splits.location) == ("kaggle", "msambare/fer2013/versions/1")


def test_without_a_network_kaggle_says_how_to_get_the_data_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"could not be downloaded.*By hand.*msambare/fer2013.*FER_DATA"):
        sources.load("kaggle")


# Images


def jpeg_bytes(image: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def test_alike_jpegs_unpacked_as_one_have_pillows_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((48, 48)))
    rows = made_rows(20)
    wanted = {}
    for i, (noise, emotion, usage) in enumerate(rows):
        # Most share a header, as Kaggle's do; some are of another quality, optimised, progressive, or have comments.
        options = [{}, {}, {}, {"quality": 95}, {"optimize": True}, {"progressive": True}, {"comment": b"hi"}][i % 7]
        data = jpeg_bytes(noise if i % 2 else np.roll(smooth, i, 1), **({"quality": 92} | options))
        path = tmp_path / ("train" if usage == "Training" else "test") / emotion / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        wanted[path.relative_to(tmp_path).as_posix()] = by_pillow(data)
    splits = sources.load(tmp_path)
    found = {name: image for _, faces in splits for name, image in zip(faces.names, faces.images, strict=True)}
    assert found.keys() == wanted.keys()
    for name, image in wanted.items():
        np.testing.assert_array_equal(found[name], image)
    assert splits.converted == 0


@settings(deadline=None)  # of no use on a busy machine
@given(
    damage=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    seed=st.integers(0, 3),
)
def test_a_damaged_jpeg_harms_no_other_and_fares_as_it_would_alone(
    damage: list[tuple[int, int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    files = [bytearray(jpeg_bytes(rng.integers(0, 256, (48, 48), dtype=np.uint8))) for _ in range(6)]
    for which, at, value in damage:
        files[which][at % len(files[which])] = value
    unpacked = folder.unpack({i: bytes(file) for i, file in enumerate(files)}, threading.Lock())
    alone = {}
    for i, file in enumerate(files):
        one = folder._unpack_alone({i: bytes(file)}, [i])
        if one.good:
            alone[i] = one.images[0]
        assert (i in unpacked.bad) == (i in one.bad)
    assert sorted(unpacked.good) == sorted(alone)
    for i, image in zip(unpacked.good, unpacked.images, strict=True):
        np.testing.assert_array_equal(image, alone[i])
    assert unpacked.digests.tolist() == digests(unpacked.images).tolist()


def test_a_thread_waits_for_its_turn_and_not_for_ever() -> None:
    turn = threading.Lock()
    files = {0: jpeg_bytes(np.full((48, 48), 7, np.uint8))}
    with turn:  # as by a thread whose files come from a slow disk
        held = folder.unpack(files, turn)
    free = folder.unpack(files, turn)
    np.testing.assert_array_equal(held.images, free.images)
    assert not turn.locked()


def test_files_that_vanish_while_they_are_read_are_told(tmp_path: Path) -> None:
    for emotion in EMOTIONS:
        (tmp_path / "train" / emotion).mkdir(parents=True)
        (tmp_path / "train" / emotion / "one.jpg").write_bytes(jpeg_bytes(np.zeros((48, 48), np.uint8)))
    tree = folder.scan(tmp_path, "skip")
    for emotion in EMOTIONS[1:]:
        (tmp_path / "train" / emotion / "one.jpg").unlink()
    contents = folder.read(tree)
    assert contents.names.tolist() == [f"train/{EMOTIONS[0]}/one.jpg"]
    assert [item.name for item in contents.skipped] == [f"train/{emotion}/one.jpg" for emotion in EMOTIONS[1:]]
    assert all("cannot be read" in item.reason for item in contents.skipped)
    # Nothing at all is left of these: the error names them rather than an empty array.
    tree = folder.scan(tmp_path, "skip")
    (tmp_path / "train" / EMOTIONS[0] / "one.jpg").unlink()
    with pytest.raises(SourceError, match=rf"train/{EMOTIONS[0]}/one\.jpg.*cannot be read"):
        folder.read(tree)


def test_only_plain_grey_faces_are_unpacked_as_one() -> None:
    grey = np.zeros((48, 48), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert jpeg.header_length(jpeg_bytes(grey)) > 0
    for data in (
        jpeg_bytes(np.zeros((48, 40), np.uint8)),
        jpeg_bytes(np.zeros((48, 48, 3), np.uint8)),
        jpeg_bytes(grey, progressive=True),
        jpeg_bytes(grey, exif=exif),
        b"",
        b"\xff\xd8\xff",
        b"no image",
    ):
        assert jpeg.header_length(data) == 0


def test_other_sizes_and_modes_are_converted_and_counted(tmp_path: Path) -> None:
    rows = made_rows(3)
    write_tree(rows, tmp_path)
    ramp = np.tile(np.arange(0, 192, 2, dtype=np.uint8), (96, 1))  # from left to right
    rgb = np.stack([ramp, ramp, ramp], axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    variants = {
        "large.png": Image.fromarray(ramp),
        "colour.webp": Image.fromarray(rgb),
        "sixteen.png": Image.fromarray(ramp.astype(np.uint16) * 256 + 99),
        "palette.gif": Image.fromarray(ramp).convert("P"),
        "binary.bmp": Image.fromarray(ramp > 96),
        "lab.tiff": Image.merge("LAB", [Image.fromarray(ramp), *[Image.new("L", (96, 96), 128)] * 2]),
        "sixteen.pgm": Image.fromarray(ramp.astype(np.int32) * 256 + 99),
        "alpha.tiff": Image.fromarray(np.dstack([rgb, np.full_like(ramp, 255)])),
    }
    for name, image in variants.items():
        image.save(tmp_path / "train" / "happy" / name, **({"lossless": True} if name.endswith("webp") else {}))
    Image.fromarray(ramp).save(tmp_path / "train" / "happy" / "turned.png", exif=exif)
    splits = sources.load(tmp_path, val_fraction=0)
    assert splits.converted == len(variants) + 1
    found = {Path(str(n)).name: image for n, image in zip(splits.train.names, splits.train.images, strict=True)}
    wanted = ramp.reshape(48, 2, 48, 2).mean((1, 3))
    for name in ("large.png", "colour.webp", "sixteen.png", "sixteen.pgm", "palette.gif", "alpha.tiff"):
        assert np.abs(found[name][:, 2:-2] - wanted[:, 2:-2]).max() < 3, name
    assert np.abs(found["turned.png"][:, 2:-2] - wanted[:, ::-1][:, 2:-2]).max() < 3
    # Lightness is no linear measure of grey, but it rises with it.
    assert (np.diff(found["lab.tiff"].astype(int).mean(0)[2:-2]) >= 0).all()
    assert set(np.unique(found["binary.bmp"][:, :20])) == {0}


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    shades = np.tile(np.arange(60, 156, 2, dtype=np.uint8), (48, 1))
    wanted = shades.copy()
    wanted[:, :24] = 255
    clear = np.dstack([shades] * 3 + [np.where(wanted == 255, 0, 255).astype(np.uint8)])
    clear[:, :24, :3] = 0  # what most programs store there
    few = np.where(wanted == 255, 7, shades)
    pictures = {"colour.png": Image.fromarray(clear), "grey.png": Image.fromarray(clear).convert("LA")}
    pictures |= {"level.png": Image.fromarray(few), "palette.png": Image.fromarray(few).convert("P")}
    for name, image in pictures.items():
        level = {"transparency": 7} if name in ("level.png", "palette.png") else {}
        image.save(tmp_path / "train" / "sad" / name, **level)
    splits = sources.load(tmp_path, val_fraction=0)
    found = {Path(str(n)).name: image for n, image in zip(splits.train.names, splits.train.images, strict=True)}
    for name in pictures:
        np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    assert splits.converted == len(pictures)


# Bad items


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 × 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (48, 48), shade) for shade in (0, 100, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((48, 48), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


GREY = jpeg_bytes(np.random.default_rng(5).integers(0, 256, (48, 48), dtype=np.uint8))
BAD_FILES = {
    "truncated.jpg": (GREY[: len(GREY) // 2], "truncated"),
    "headless.jpg": (GREY[100:], "not an image"),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"this is no image", "not an image"),
    "bomb.png": (bomb(), "pixels"),
    "animated.gif": (animation(), "animated"),
    "floats.tiff": (floats(), "32-bit"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n", "not an image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_or_skipped(tmp_path: Path, name: str) -> None:
    write_tree(made_rows(3), tmp_path)
    good = sources.load(tmp_path, val_fraction=0)
    data, reason = BAD_FILES[name]
    (tmp_path / "train" / "sad" / name).write_bytes(data)
    with pytest.raises(SourceError, match=rf"(?s)train/sad/{name}: .*{reason}.*on_bad") as raised:
        sources.load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    splits = sources.load(tmp_path, on_bad="skip", val_fraction=0)
    assert [item.name for item in splits.skipped] == [f"train/sad/{name}"]
    assert reason in splits.skipped[0].reason
    same(splits.train, good.train)
    same(splits.test, good.test)
    # What was skipped is bad still, whatever the cache holds by now.
    with pytest.raises(SourceError, match=name):
        sources.load(tmp_path, val_fraction=0)
    assert sources.load(tmp_path, on_bad="skip", val_fraction=0).skipped == splits.skipped


def test_an_unreadable_file_and_a_dangling_link(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    (tmp_path / "train" / "fear" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "train" / "fear" / "folder.jpg").mkdir()
    splits = sources.load(tmp_path, on_bad="skip")
    assert {item.name for item in splits.skipped} == {"train/fear/gone.jpg", "train/fear/folder.jpg"}
    with pytest.raises(SourceError, match=r"2 bad items"):
        sources.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_file_without_permission_to_read_it(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    path = tmp_path / "train" / "fear" / "secret.jpg"
    path.write_bytes(GREY)
    path.chmod(0)
    with pytest.raises(SourceError, match=r"secret\.jpg: .*cannot be read"):
        sources.load(tmp_path)


def test_many_bad_files_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    for i in range(15):
        (tmp_path / "train" / "sad" / f"bad{i:02}.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"(?s)15 bad items.*bad00\.jpg.*bad09\.jpg.*and 5 more"):
        sources.load(tmp_path)


def test_hidden_files_are_passed_over_silently(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    plain = sources.load(tmp_path)
    for name in (".DS_Store", "train/.DS_Store", "train/sad/Thumbs.db", "train/sad/._x.jpg", "test/sad/desktop.ini"):
        (tmp_path / name).write_bytes(b"not a face")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "sad" / ".thumbnails").mkdir()
    again = sources.load(tmp_path)
    assert again.skipped == ()
    same(again.train, plain.train)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are Unicode there")
def test_names_in_another_encoding_can_be_written(tmp_path: Path) -> None:
    tree = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_tree(made_rows(), tree)
    angry = os.fsencode(tree) + b"/train/angry"
    os.rename(os.path.join(angry, sorted(os.listdir(angry))[0]), os.path.join(angry, b"d\xff.png"))
    Path(os.fsdecode(os.path.join(angry, b"\xfe.png"))).write_bytes(b"")
    with pytest.raises(SourceError, match=r"angry/\\udcfe\.png: the file is empty"):
        sources.load(tree)
    splits = sources.load(tree, on_bad="skip")
    assert "train/angry/d\\udcff.png" in {*splits.train.names, *splits.val.names}
    audit(splits, near=False).table.to_csv(tmp_path / "table.csv")
    write_json(tmp_path / "env.json", describe_data(splits))
    assert "caf\\\\udce9" in (tmp_path / "env.json").read_text()
    table = write_csv(made_rows(), tmp_path / "table.csv")
    pair = write_parquet(made_rows(), tmp_path / "pair")
    for file, suffix in ((table, ".csv"), (pair / "df_train.parquet.gzip", ".parquet")):
        names = sources.load(file.rename(Path(os.fsdecode(os.fsencode(tmp_path) + b"/tabl\xe9") + suffix))).train.names
        assert all(str(name).startswith("tabl\\udce9[") for name in names)


def test_a_folder_that_is_no_emotion_or_part(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    plain = sources.load(tmp_path)
    (tmp_path / "train" / "contempt").mkdir()
    (tmp_path / "train" / "contempt" / "1.jpg").write_bytes(GREY)
    (tmp_path / "extra").mkdir()
    (tmp_path / "train" / "loose.jpg").write_bytes(GREY)
    with pytest.raises(SourceError, match=r"(?s)extra: .*train/loose\.jpg: .*train/contempt: .*'contempt'.*happy"):
        sources.load(tmp_path)
    splits = sources.load(tmp_path, on_bad="skip")
    assert {item.name for item in splits.skipped} == {"extra", "train/loose.jpg", "train/contempt"}
    same(splits.train, plain.train)


@pytest.mark.parametrize("remove", [True, False], ids=["missing", "empty"])
def test_a_missing_emotion(tmp_path: Path, remove: bool) -> None:
    write_tree(made_rows(3), tmp_path)
    for path in (tmp_path / "test" / "disgust").iterdir():
        path.unlink()
    if remove:
        (tmp_path / "test" / "disgust").rmdir()
    with pytest.raises(SourceError, match=r"test/disgust: .*missing or empty"):
        sources.load(tmp_path)
    splits = sources.load(tmp_path, on_bad="skip")
    assert [item.name for item in splits.skipped] == ["test/disgust"]
    assert splits.test.counts()[EMOTIONS.index("disgust")] == 0
    assert len(splits.test) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_part_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    (tmp_path / "validation").symlink_to(tmp_path / "not mounted")
    with pytest.raises(SourceError, match="validation: a link to a folder that is not there"):
        sources.load(tmp_path)


def test_an_empty_split(tmp_path: Path) -> None:
    write_tree(made_rows(3), tmp_path)
    (tmp_path / "validation").mkdir()
    with pytest.raises(SourceError, match="validation: an empty split"):
        sources.load(tmp_path)
    assert len(sources.load(tmp_path, on_bad="skip").val) > 0, "then validation is cut from train"
    (tmp_path / "train").rename(tmp_path / "away")
    (tmp_path / "train").mkdir()
    with pytest.raises(SourceError, match="no training faces"):
        sources.load(tmp_path, on_bad="skip")
    write_csv([], tmp_path / "none" / "fer2013.csv")
    for on_bad in ("raise", "skip"):
        with pytest.raises(SourceError, match=r"fer2013\.csv.*empty split"):
            sources.load(tmp_path / "none", on_bad=on_bad)


def test_what_the_system_refuses_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/dev/null", "a" * 300, "~nobody_of_this_name/faces"):
        for look in (sources.load, sources.check):
            with pytest.raises(SourceError, match=r"cannot be (read|found)"):
                look(place)
    for place in ("a" * 300, "~nobody_of_this_name/faces"):
        monkeypatch.setenv("FER_DATA", place)
        for look in (sources.load, sources.check):
            with pytest.raises(SourceError, match=rf"{place}.* cannot be (read|found)"):
                look("auto")
    monkeypatch.setenv("FER_DATA", str(tmp_path / "away"))
    for place, told in (
        ("", "data is empty"),
        ("auto", "FER_DATA is .*away"),
        ("synthetic:some", "number N of faces"),
        ("synthetic:5", "at least 100 faces"),
    ):
        for look in (sources.load, sources.check):
            with pytest.raises(SourceError, match=told):
                look(place)
    with pytest.raises(SourceError, match="split_seed is -1"):
        sources.load("synthetic", split_seed=-1)
    sources.check("synthetic:500")


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion,pixels"])
def test_a_share_that_leaves_no_training_faces_is_refused(tmp_path: Path, header: str) -> None:
    path = write_csv(made_rows(1), tmp_path / "fer2013.csv", header)
    with pytest.raises(SourceError, match=r"val_fraction 0\.99 leaves no training faces"):
        sources.load(path, val_fraction=0.99)


def test_some_faces_without_labels_are_counted(tmp_path: Path) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    lines = path.read_text().splitlines()
    last = next(i for i, line in enumerate(lines) if line.endswith("PublicTest"))
    for text in ("", "NaN", "-1"):
        lines[last] = (
            text + lines[last][1:] if lines[last][0].isdigit() else text + lines[last][lines[last].index(",") :]
        )
        path.write_text("\n".join(lines))
        assert "(1 of test unlabelled)" in describe(sources.load(path))


def test_a_test_part_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    write_csv(made_rows(3), tmp_path / "test.csv", "pixels")
    with pytest.raises(SourceError, match="no training faces"):
        sources.load(tmp_path)


GOOD = " ".join(["7"] * 2304)
BAD_ROWS = {
    "short": (f"0,{GOOD[:-2]},Training", "2,303 pixels"),
    "long": (f"0,{GOOD} 7,Training", "2,305 pixels"),
    "256": (f"0,{GOOD[:-1]}256,Training", "pixel 2303 is 256"),
    "1000": (f"0,{GOOD[:-1]}1000,Training", "pixel 2303 is 1000"),
    "negative": (f"0,-1{GOOD[1:]},Training", "pixel 0 is -1"),
    "nan": (f"0,nan{GOOD[1:]},Training", "pixel 0 is nan"),
    "fraction": (f"0,7.5{GOOD[1:]},Training", "pixel 0 is 7.5"),
    "colon": (f"0,7:{GOOD[1:]},Training", "pixel 0 is 7:"),
    "comma": (f"0,7,{GOOD[2:]},Training", "4 fields"),
    "label 7": (f"7,{GOOD},Training", "emotion is 7"),
    "contempt": (f"contempt,{GOOD},Training", "emotion is contempt"),
    "no label": (f",{GOOD},Training", "no emotion"),
    "usage": (f"0,{GOOD},Validation", "Usage is 'Validation'"),
    "cut off": ("0,7 7 7", "2 fields"),
    "junk": ("\x00\xff\x01", "1 fields"),
    "open quote": (f'0,"{GOOD},Training', "no row of a table"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_csv_row_is_named_or_skipped(tmp_path: Path, name: str) -> None:
    rows = made_rows()
    path = write_csv(rows, tmp_path / "fer2013.csv")
    good = sources.load(path)
    line, reason = BAD_ROWS[name]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:21], line, *lines[21:]]))
    with pytest.raises(SourceError, match="on_bad") as raised:
        sources.load(path)
    assert "fer2013.csv row 20: " in str(raised.value)
    assert reason in str(raised.value)
    splits = sources.load(path, on_bad="skip")
    assert [item.name for item in splits.skipped] == ["fer2013.csv row 20"]
    for part, faces in splits:
        same(faces, good[part])
        # Rows are counted with the bad one.
        wanted = row_numbers(good[part].names)
        np.testing.assert_array_equal(row_numbers(faces.names), wanted + (wanted >= 20))


def test_a_table_without_pixels_or_with_no_table_in_it(tmp_path: Path) -> None:
    for text in ("emotion,image\n0,1\n", "", "\x89PNG\r\n", "pixels,pixels\n"):
        (tmp_path / "fer2013.csv").write_text(text)
        with pytest.raises(SourceError, match=r"fer2013\.csv.*column names"):
            sources.load(tmp_path)
    # As a spreadsheet saves them in some languages, and as "Unicode text".
    for data in (b"emotion;pixels;Usage\r\n", "emotion\tpixels\tUsage\r\n".encode("utf-16")):
        (tmp_path / "fer2013.csv").write_bytes(data)
        with pytest.raises(SourceError, match=r"in UTF-8 with commas between: pixels"):
            sources.load(tmp_path)
    (tmp_path / "fer2013.csv").write_bytes(b"emotion,pixels\r0,1 2\r")
    with pytest.raises(SourceError, match=r"fer2013\.csv has lines that end in a carriage return alone"):
        sources.load(tmp_path)
    row = f"0,{GOOD[:-2]},Training"
    (tmp_path / "fer2013.csv").write_text(f"\n\r\nemotion,pixels,Usage\n{row}\n")
    with pytest.raises(SourceError, match=r"^1 bad item in .*\n.*row 0: has 2,303 pixels"):
        sources.load(tmp_path)
    images = pa.array([[1.0]])
    pq.write_table(pa.Table.from_arrays([images, images], ["image", "image"]), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet has the column image twice"):
        sources.load(tmp_path / "x.parquet")
    pq.write_table(pa.table({"picture": [[1.0]]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet has the columns picture; expected image"):
        sources.load(tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": ["1 2 3"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"holds string; expected a list"):
        sources.load(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but nothing more")
    with pytest.raises(SourceError, match=r"x\.parquet cannot be read as a parquet table"):
        sources.load(tmp_path / "x.parquet")


BAD_IMAGES = {
    "short": ([7.0] * 2303, 0, "2,303 pixels"),
    "long": ([7.0] * 2305, 0, "2,305 pixels"),
    "256": ([7.0] * 2303 + [256.0], 0, "pixel 2303 is 256"),
    "nan": ([float("nan")] + [7.0] * 2303, 0, "pixel 0 is nan"),
    "infinite": ([7.0, float("inf")] + [7.0] * 2302, 0, "pixel 1 is inf"),
    "negative": ([-1.0] + [7.0] * 2303, 0, "pixel 0 is -1"),
    "fraction": ([0.5] * 2304, 0, "pixel 0 is 0.5"),
    "null pixel": ([None] + [7.0] * 2303, 0, "pixel 0 is nan"),
    "null": (None, 0, "no image"),
    "label 7": ([7.0] * 2304, 7, "emotion is 7"),
    "no label": ([7.0] * 2304, -1, "no emotion"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_parquet_row_is_named_or_skipped(tmp_path: Path, name: str) -> None:
    place = write_parquet(made_rows(), tmp_path)
    good = sources.load(place)
    image, label, reason = BAD_IMAGES[name]
    table = pq.read_table(place / "df_train.parquet.gzip").to_pydict()
    images = [*table["image"][:20], image, *table["image"][20:]]
    labels = [*table["emotion_idx"][:20], label, *table["emotion_idx"][20:]]
    pq.write_table(pa.table({"image": images, "emotion_idx": labels}), place / "df_train.parquet.gzip")
    with pytest.raises(SourceError, match="on_bad") as raised:
        sources.load(place)
    assert "df_train.parquet.gzip row 20: " in str(raised.value)
    assert reason in str(raised.value)
    splits = sources.load(place, on_bad="skip")
    assert [item.name for item in splits.skipped] == ["df_train.parquet.gzip row 20"]
    for part, faces in splits:
        same(faces, good[part])


# Numbers


def slowly(text: bytes, columns: int) -> list[int] | None:
    """What a row holds, by Python's own means; None where it is not ``columns`` plain numbers up to 255."""
    words = text.split(b" ")
    numbers = [int(word) for word in words if word.isdigit() and len(word) <= 3]
    plain = all(not word or (word.isdigit() and len(word) <= 3) for word in words)
    return numbers if plain and len(numbers) == columns and max(numbers, default=0) <= 255 else None


ODD_WORDS = ["", "7", "007", "256", "999", "-1", "0255", "x", "1.5", "300", "7:", ";", "!3"]


EITHER_PARSER = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="numpy"),
        pytest.param(
            True,
            id="compiled",
            marks=pytest.mark.skipif(not COMPILED, reason="no C compiler was there when the package was installed"),
        ),
    ],
)


@EITHER_PARSER
@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.integers(0, 255).map(str), st.sampled_from(ODD_WORDS)), min_size=3, max_size=5),
        min_size=1,
        max_size=40,
    )
)
def test_numbers_are_parsed_right_or_not_at_all(compiled: bool, rows: list[list[str]]) -> None:
    data, begins, ends = b"", [], []
    for row in rows:
        data += b"3,"
        begins.append(len(data))
        data += " ".join(row).encode()
        ends.append(len(data))
        data += b",Training\n"
    out = np.empty((len(rows), 4), np.uint8)
    right = NumberParser(compiled).parse(data, begins, ends, out)
    for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if right[i]:
            assert out[i].tolist() == slowly(data[begin:end], 4)
    if all(slowly(data[begin:end], 4) is not None for begin, end in zip(begins, ends, strict=True)):
        assert all(right), "plain rows need no second look"


@EITHER_PARSER
def test_rows_with_more_spaces_than_they_need_are_parsed_at_once(compiled: bool) -> None:
    data, out = b"3,  1   20  ,7 255,", np.empty((2, 2), np.uint8)
    assert NumberParser(compiled).parse(data, [2, 13], [12, 18], out) == [True, True]
    np.testing.assert_array_equal(out, [[1, 20], [7, 255]])


@EITHER_PARSER
def test_a_csv_with_odd_and_bad_rows_is_the_same_by_either_parser(
    compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_source, "NumberParser", partial(NumberParser, compiled))
    pixels = [" ".join(map(str, np.random.default_rng(row).integers(0, 256, 2304))) for row in range(6)]
    path = tmp_path / "fer2013.csv"
    rows = [
        f"3,{pixels[0]},Training",
        f"4,  {pixels[1].replace(' ', '  ', 40)} ,Training",  # more spaces than are needed
        f"4,{pixels[2]} 7,Training",
        f"4,{pixels[3][:-1]}x,Training",
        f'6,"{pixels[4]}",PublicTest\r',
        f"0,256 {pixels[5].partition(' ')[2]},Training",
        "3",
    ]
    path.write_text("\n".join(["emotion,pixels,Usage", *rows]) + "\n", newline="")
    found = csv_source.read({"all": path}, "skip", tmp_path)
    expected = np.array([pixels[i].split() for i in (0, 1, 4)], np.uint8).reshape(-1, 48, 48)
    np.testing.assert_array_equal(found.images, expected)
    assert found.names.tolist() == ["fer2013[0]", "fer2013[1]", "fer2013[4]"]
    assert [item.name for item in found.skipped] == [f"fer2013.csv row {row}" for row in (2, 3, 5, 6)]


@pytest.mark.skipif(not COMPILED, reason="no C compiler was there when the package was installed")
def test_the_compiled_parser_reads_and_writes_nowhere_but_where_it_was_told() -> None:
    from fer_utils.sources import _numbers

    def parse(data: bytes, begins: list[int], ends: list[int], out: np.ndarray) -> bytes:
        return _numbers.parse(data, np.array(begins), np.array(ends), out)

    out = np.full((3, 2), 99, np.uint8)
    assert parse(b"1 2", [0], [3], out[1:2]) == b"\1"
    np.testing.assert_array_equal(out, [[99, 99], [1, 2], [99, 99]])
    # The last digits of the text, and digits beyond a row's end: too many numbers, or too few.
    assert parse(b"1 2 3,1 2,1", [0, 6, 10], [5, 9, 11], np.empty((3, 2), np.uint8)) == b"\0\1\0"
    assert parse(b"1 234", [0], [3], out[:1]) == b"\0"
    assert parse(b"", [], [], np.empty((0, 2), np.uint8)) == b""
    for begins, ends in (([-1], [3]), ([0], [4]), ([2], [1])):
        with pytest.raises(ValueError, match="row 0 does not lie in the 3 bytes of data"):
            parse(b"1 2", begins, ends, out[:1])
    with pytest.raises(ValueError, match="as many as out has rows"):
        parse(b"1 2", [0, 0], [3], out[:1])
    with pytest.raises(ValueError, match="as many as out has rows"):
        parse(b"1 2", [0, 0], [3, 3], np.empty(3, np.uint8))
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read-write"):
        parse(b"1 2", [0], [3], out[:1])
    with pytest.raises(TypeError):
        _numbers.parse("1 2", np.array([0]), np.array([3]), np.empty((1, 2), np.uint8))  # type: ignore[arg-type]


# The cache


def entries(place: Path) -> list[Path]:
    return sorted(place.glob("*.faces"))


@pytest.fixture(params=["folder", "csv", "parquet"])
def any_layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The place of a layout, and a file in it."""
    rows = made_rows()
    if request.param == "folder":
        write_tree(rows, tmp_path / "data")
        return tmp_path / "data", next((tmp_path / "data" / "train" / "sad").iterdir())
    if request.param == "csv":
        path = write_csv(rows, tmp_path / "data" / "fer2013.csv")
        return path.parent, path
    place = write_parquet(rows, tmp_path / "data")
    return place, place / "df_train.parquet.gzip"


def test_a_second_load_is_the_first(any_layout: tuple[Path, Path], own_cache: Path) -> None:
    place, _ = any_layout
    first = sources.load(place)
    assert len(entries(own_cache)) == 1
    stamp = entries(own_cache)[0].stat().st_mtime_ns
    second = sources.load(place)
    assert entries(own_cache)[0].stat().st_mtime_ns == stamp, "it was taken, not made again"
    for part, faces in second:
        same(faces, first[part])
        np.testing.assert_array_equal(faces.names, first[part].names)
    assert (second.rule, second.location, second.source) == (first.rule, first.location, first.source)


@pytest.mark.parametrize("at_once", [1, 7, 512])
def test_images_are_kept_however_many_are_written_at_a_time(
    any_layout: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(cache, "_IMAGES_AT_ONCE", at_once)
    plain = sources.load(any_layout[0], cache=False)
    for loaded in (sources.load(any_layout[0]), sources.load(any_layout[0])):
        for part, faces in loaded:
            same(faces, plain[part])
            np.testing.assert_array_equal(faces.names, plain[part].names)
            np.testing.assert_array_equal(digests(faces.images), faces.digests)
    assert len(entries(own_cache)) == 1


def test_an_entry_with_an_empty_part_is_kept_whole(tmp_path: Path, own_cache: Path) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    plain = sources.load(path, val_fraction=0, cache=False)
    for loaded in (sources.load(path, val_fraction=0), sources.load(path, val_fraction=0)):
        assert len(loaded.val) == 0
        for part, faces in loaded:
            same(faces, plain[part])
    assert len(entries(own_cache)) == 1


def test_nothing_is_kept_when_not_wanted(any_layout: tuple[Path, Path], own_cache: Path) -> None:
    sources.load(any_layout[0], cache=False)
    assert entries(own_cache) == []


def test_a_changed_source_is_noticed(any_layout: tuple[Path, Path]) -> None:
    place, path = any_layout
    before = sources.load(place)
    # Of the same size and the same age: only the moment of the change tells.
    times = path.stat()
    if place.joinpath("train").is_dir():
        other = next((place / "train" / "happy").iterdir())
        data, size = other.read_bytes(), times.st_size
        path.write_bytes(data[:size] + bytes(max(0, size - len(data))))
    elif path.suffix == ".csv":
        path.write_text(path.read_text().replace("\n3,", "\n0,"))
    else:
        table = pq.read_table(path)
        labels = pa.array([0 if label == 3 else label for label in table["emotion_idx"].to_pylist()])
        pq.write_table(table.set_column(1, "emotion_idx", labels), path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = sources.load(place)
    assert after.fingerprint() != before.fingerprint()


def test_a_new_and_a_removed_file_are_noticed(tmp_path: Path) -> None:
    write_tree(made_rows(), tmp_path)
    before = sources.load(tmp_path)
    (tmp_path / "train" / "sad" / "new.jpg").write_bytes(GREY)
    more = sources.load(tmp_path)
    assert len(more.train) + len(more.val) == len(before.train) + len(before.val) + 1
    (tmp_path / "train" / "sad" / "new.jpg").unlink()
    assert sources.load(tmp_path).fingerprint() == before.fingerprint()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "junk"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, own_cache: Path, damage: str) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    sources.load(path)
    first = sources.load(path, cache=False)
    (entry,) = entries(own_cache)
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes({"flip": bytes(data), "truncate": data[:-100], "empty": b"", "junk": b"junk" * 20}[damage])
    again = sources.load(path)
    for part, faces in again:
        same(faces, first[part])
    assert cache.load("no such key") is None
    assert entries(own_cache)[0].stat().st_size == len(data), "and it is whole again"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FER_CACHE", str(tmp_path / "file" / "cache"))
    first = sources.load(path)
    assert sources.load(path).fingerprint() == first.fingerprint()


def test_writing_to_faces_changes_no_cache(tmp_path: Path, own_cache: Path) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    first = sources.load(path)
    (entry,) = entries(own_cache)
    stored = entry.read_bytes()
    for taken in (first, sources.load(path)):
        taken.train.images[:] = 0
        assert entry.read_bytes() == stored


def test_a_user_without_a_home_has_no_cache_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", none)
    monkeypatch.setattr("pathlib.Path.expanduser", lambda self: none() if str(self).startswith("~") else self)
    monkeypatch.delenv("KAGGLEHUB_CACHE")
    monkeypatch.setenv("FER_CACHE", "~/faces")
    assert len(sources.load(path).train) > 0
    assert kaggle.cached() is None


def test_the_caches_place_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("FER_CACHE", "~/faces")
    assert cache.directory() == tmp_path / "faces"


def test_old_entries_are_removed(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ENTRIES", 2)
    path = write_csv(made_rows(), tmp_path / "fer2013.csv")
    for seed in range(4):
        sources.load(path, split_seed=seed)
    assert len(entries(own_cache)) == 2


def test_the_cache_lies_in_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FER_CACHE")
    assert "fer_utils" in str(cache.directory())


# What loading costs


def test_loading_needs_no_torch(tmp_path: Path) -> None:
    write_parquet(made_rows(3), tmp_path)
    code = "import sys; from fer_utils import sources; sources.load(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.real
def test_the_real_folder(real_data: Path) -> None:
    if not any((place / "train").is_dir() for place in (real_data, real_data / "fer2013")):
        pytest.skip(f"{real_data} is no folder tree with train/ and test/")
    splits = sources.load(real_data)
    assert len(splits.train) + len(splits.val) >= 28_709
    assert splits.train.counts().argmax() == EMOTIONS.index("happy")
    assert splits.converted == 0
    root = real_data if (real_data / "train").is_dir() else real_data / "fer2013"
    rng = np.random.default_rng(0)
    for i in rng.choice(len(splits.train), 200, replace=False):
        name = str(splits.train.names[i])
        np.testing.assert_array_equal(splits.train.images[i], by_pillow((root / name).read_bytes()))
        assert name.split("/")[1] == EMOTIONS[splits.train.targets[i]]
