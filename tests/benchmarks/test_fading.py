"""Contexts of gists of several rates; with a tiny teacher."""

from pathlib import Path

import numpy as np
import torch

from benchmarks.fading import faded
from gistnet.data.config import SINK_TOKENS
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder


def test_a_faded_context_is_the_sink_coarse_gists_fine_ones_and_recent_text_in_the_order_of_the_document(
    teacher_folder: Path,
) -> None:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))
    config = GistNetConfig(architecture="bottleneck", width=16, heads=2)
    below = GistNet.build(config, teacher, 8)
    tokens = np.random.default_rng(0).integers(0, teacher.vocabulary_size, 203)
    coarse = compress(tokens, GistEncoder(teacher, GistNet.build(config, teacher, 4, below=below)))
    fine = compress(tokens, GistEncoder(teacher, GistNet.build(config, teacher, 4)))

    context = faded(teacher, coarse, [(fine, 0, 5), (coarse, 0, 6), (coarse, 1, 2)], 30, [7, 8])

    # Recent text would begin at 203 - 17: fine gists up to 184, coarse ones of 8 up to 160, two of 32 up to 96.
    half = {level: torch.from_numpy(coarse.gists(level, *of)).float() for level, of in ((1, (1, 3)), (0, (14, 20)))}
    expected = [
        teacher.embed(torch.from_numpy(tokens[:SINK_TOKENS])),
        half[1],
        half[0],
        torch.from_numpy(fine.gists(0, 41, 46)).float(),
        teacher.embed(torch.from_numpy(tokens[203 - 17 :])),
        teacher.embed(torch.tensor([7, 8])),
    ]
    assert torch.equal(context.inputs_embeds[0], torch.cat(expected))
    assert torch.equal(context.position_ids[0], torch.arange(SINK_TOKENS + 30 + 2))
