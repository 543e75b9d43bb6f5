"""The five lines: load, encode, compress, generate; with a tiny teacher over bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gistnet
from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from tests.gistnets import context_gistnet

TEXT = "the river walked over seven quiet stones and never met the bridge; " * 4  # 268 bytes


@pytest.fixture(scope="module")
def saved(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))
    folder = tmp_path_factory.mktemp("saved") / "gistnet"
    GistNet.build(GistNetConfig(architecture="bottleneck", width=16, heads=2), teacher, 8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved: Path) -> gistnet.Compressor:
    return gistnet.load(saved)


def test_vectors_of_a_text_and_what_fills_no_span(model: gistnet.Compressor) -> None:
    vectors, tail = model.encode(TEXT)
    assert vectors.shape == (33, model.info()["dim"])
    assert model.teacher.tokenizer.decode(tail) == TEXT[33 * 8 :]
    with pytest.raises(DataError, match="empty text"):
        model.encode("")


def test_texts_together_have_the_vectors_of_each_alone(model: gistnet.Compressor) -> None:
    texts = [TEXT, "seven", TEXT[5:70], "a bridge", TEXT * 3]
    for compressor in (model, gistnet.Compressor(model.teacher, context_gistnet(model.teacher))):
        together = compressor.encode(texts)
        assert [len(each.vectors) for each in together] == [33, 0, 8, 1, 100]
        for text, encoded in zip(texts, together, strict=True):
            assert np.array_equal(encoded.vectors, compressor.encode(text).vectors)
            assert np.array_equal(encoded.tail, compressor.encode(text).tail)
    assert model.encode([]) == []
    ids = model.teacher.tokenizer.encode(TEXT)
    assert np.array_equal(model.encode(ids.tolist()).vectors, model.encode(ids).vectors)
    with pytest.raises(DataError, match="empty text"):
        model.encode(["a", ""])


@pytest.mark.parametrize("several", [[[1, 2], [3, 4]], np.zeros((1, 9), dtype=np.int64), ["a", 3], 7])
def test_what_is_no_text_is_refused(model: gistnet.Compressor, several: Any) -> None:
    with pytest.raises(DataError, match="expected the ids of one text"):
        model.encode(several)
    for nothing in (None, b"bytes"):
        with pytest.raises(DataError, match="expected a text or its token ids"):
            model.encode(nothing)  # type: ignore[call-overload]


def test_the_name_of_a_file_is_no_text(model: gistnet.Compressor, tmp_path: Path) -> None:
    """Silently, a few tokens of a path would be compressed."""
    (tmp_path / "river.txt").write_text(TEXT, encoding="utf-8")
    for given in ({}, {"tree": tmp_path / "tree"}):
        with pytest.raises(DataError, match="the name of a file, expected a text; Path"):
            model.compress(str(tmp_path / "river.txt"), **given)  # type: ignore[call-overload]
    assert not (tmp_path / "tree").exists()
    assert model.compress(str(tmp_path / "none.txt")).n_tokens == len(str(tmp_path / "none.txt"))


def test_wrong_arguments_are_named(model: gistnet.Compressor, saved: Path) -> None:
    document = model.compress(TEXT)
    for wrong, error, said in (
        ((TEXT, "q"), DataError, "document of type str, expected one that `compress` made"),
        ((document, None), DataError, "prompt of type NoneType, expected a text"),
    ):
        with pytest.raises(error, match=said):
            model.generate(*wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="budget '256', expected a whole number"):
        model.generate(document, "q", budget="256")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name None, expected"):
        gistnet.load(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model of type str, expected one of transformers"):
        gistnet.load(saved, model="gpt2")  # type: ignore[arg-type]
    assert model.teacher.tokenizer is not None
    with pytest.raises(ConfigError, match="a tokenizer without a model"):
        gistnet.load(saved, tokenizer=model.teacher.tokenizer.inner)


def test_an_answer_is_printed_in_a_line(model: gistnet.Compressor) -> None:
    answer = model.generate(model.compress(TEXT), "the bridge", budget=96, max_new_tokens=4)
    assert repr(answer) == f"Generation(text={answer.text!r})"


def test_a_bar_is_shown_for_many_batches_on_a_terminal_only(
    model: gistnet.Compressor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gistnet.tree.gist_encoder.MANY_BATCHES", 2)
    plain = model.encode(TEXT * 3).vectors
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert np.array_equal(model.encode(TEXT * 3).vectors, plain)
    assert capsys.readouterr().err != ""
    model.encode(TEXT)
    assert capsys.readouterr().err == ""


def test_a_file_is_compressed_into_a_tree(model: gistnet.Compressor, tmp_path: Path) -> None:
    (tmp_path / "river.txt").write_text(TEXT, encoding="utf-8")
    in_memory = model.compress(tmp_path / "river.txt")
    for _ in range(2):  # the second time all of it is there
        document = model.compress(tmp_path / "river.txt", tree=tmp_path / "tree")
    assert (document.name, document.n_tokens) == ("river.txt", in_memory.n_tokens)
    assert np.array_equal(document.gists(0, 0, 33), in_memory.gists(0, 0, 33))
    assert model.compress(TEXT[:9], tree=tmp_path / "tree").name == "main"
    assert model.compress(TEXT[:90], tree=tmp_path / "tree").n_tokens == 90  # goes on
    with pytest.raises(DataError, match="differs"):
        model.compress("another text", tree=tmp_path / "tree")
    with pytest.raises(ConfigError, match="tree"):
        model.compress(TEXT, name="river")


def test_an_answer_is_that_of_generate_and_its_pieces_join_to_it(model: gistnet.Compressor) -> None:
    document = model.compress(TEXT)
    answer = model.generate(document, "seven stones", budget=100, max_new_tokens=5)
    expected = gistnet.generate(document, "seven stones", teacher=model.teacher, budget=100, max_new_tokens=5)
    assert answer.tokens == expected.tokens
    assert "".join(model.stream(document, "seven stones", budget=100, max_new_tokens=5)) == answer.text
    with pytest.raises(DataError, match="empty prompt"):
        list(model.stream(document, " "))


def test_transformers_reads_the_context(model: gistnet.Compressor) -> None:
    document = model.compress(TEXT)
    inputs = model.context(document, "seven stones", budget=100)
    assert inputs["inputs_embeds"].shape[1] <= 100
    written = model.teacher.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert written[0].tolist() == model.generate(document, "seven stones", budget=100, max_new_tokens=5).tokens


def test_a_model_that_is_loaded_already_is_used_and_another_one_refused(
    saved: Path, model: gistnet.Compressor, teacher_folder: Path
) -> None:
    own = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    loaded = gistnet.load(saved, model=own, tokenizer=tokenizer)
    assert loaded.teacher.model is own
    assert np.array_equal(loaded.encode(TEXT).vectors, model.encode(TEXT).vectors)
    other = AutoModelForCausalLM.from_config(own.config)
    with pytest.raises(CheckpointError, match="trained with"):
        gistnet.load(saved, model=other, tokenizer=tokenizer)


def test_the_device_and_the_precision_are_those_asked_for(saved: Path, model: gistnet.Compressor) -> None:
    assert (model.teacher.device.type, model.teacher.dtype) == ("cpu", torch.float32)
    wide = gistnet.load(saved, device="cpu", precision="float64")
    assert wide.teacher.dtype == torch.float64
    assert wide.info()["fingerprint"] != model.info()["fingerprint"]
    for options in ({"device": "abacus"}, {"precision": "float16"}, {"precision": "float32", "model": object()}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            gistnet.load(saved, **options)


def test_a_name_that_there_is_not_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no-such-release"):
        gistnet.load("no-such-release")
