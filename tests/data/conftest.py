import pytest

from gistnet.errors import TeacherError
from gistnet.model.config import TeacherConfig
from gistnet.model.loading import load_tokenizer
from gistnet.model.tokenizer import TeacherTokenizer


@pytest.fixture(scope="session")
def embedded_tokenizer() -> TeacherTokenizer:
    """The tokenizer of the embedded teacher; skips where the package that carries it is not installed."""
    try:
        return load_tokenizer(TeacherConfig())
    except TeacherError as error:
        pytest.skip(str(error))
