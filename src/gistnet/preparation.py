"""The prepared corpus of a configuration: of the teacher only the tokenizer is read, and no model code is loaded."""

from gistnet.config import RunConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import prepare
from gistnet.model.loading import load_tokenizer


def prepare_data(config: RunConfig) -> PreparedDataset:
    """The prepared corpus of a configuration, made where it does not exist yet.

    Raises:
        DataError, ConfigError, TeacherError, StorageError: see `prepare` and `load_tokenizer`.
    """
    return prepare(config.data, load_tokenizer(config.teacher))
