"""A tiny teacher over bytes and its GistNet."""

import numpy as np
import pytest
import torch

from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float64"))


@pytest.fixture(scope="module")
def encoder(teacher) -> GistEncoder:
    return GistEncoder(teacher, woken_gistnet(teacher))


@torch.no_grad()
def plain_nll(teacher: Teacher, tokens, scored: int) -> np.ndarray:
    """NLL of the last `scored` of the tokens, by one forward of transformers over their ids, nothing else given."""
    ids = torch.as_tensor(np.array(tokens))
    log_p = teacher.model(ids[None]).logits[0].log_softmax(-1)
    return -log_p[-scored - 1 : -1].gather(1, ids[-scored:, None])[:, 0].numpy()
