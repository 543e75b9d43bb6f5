"""The release of a GistNet that reads spans where they stand."""

import re
from pathlib import Path

import torch
import yaml

from gistnet.config import load_config
from gistnet.release.contents import read_release
from gistnet.release.make import make_release
from gistnet.release_folder import CARD_FILE
from gistnet.report.report import write_report
from gistnet.session import open_trained, train
from tests.conftest import tiny_values
from tests.release.conftest import TRAINING


def test_it_is_released_with_figures_and_a_card_that_says_what_it_reads(
    tmp_path: Path, teacher_folder: Path, corpus_file: Path
) -> None:
    values = tiny_values(tmp_path, teacher_folder, corpus_file)
    values["gistnet"] = {"reads": "context", "width": 16, "heads": 2}
    values["train"] |= {"steps": 2, "checkpoint_every_steps": 1}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(path)
    assert train(config)
    out = tmp_path / "tiny-context"
    make_release(config.run_folder, out, **TRAINING)

    assert any(r.name == "kl" and r.offsets == (1, 12) and r.value > 0 for r in read_release(out).records)
    card = (out / CARD_FILE).read_text(encoding="utf-8")
    assert "up to layer 2" in card
    assert "first 2 layers" in write_report(out, tmp_path / "page.html").read_text(encoding="utf-8")

    # The code of the card, with this teacher and this folder.
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = re.sub(r'Teacher\.from_pretrained\(".*"\)', "open_it().teacher", code).replace("gistnet.open_it", "open_it")
    code = code.replace('gistnet.GistNet.from_pretrained("tiny-context", teacher)', "open_it().gistnet")
    found: dict[str, object] = {"open_it": lambda: open_trained(out)}
    exec(code, found)
    gists = found["gists"]
    assert isinstance(gists, torch.Tensor) and gists.shape == (1, 2, 32) and bool(gists.isfinite().all())
    assert type(found["context"]).__name__ == "SpanContext"
