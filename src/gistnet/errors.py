"""The few kinds of error a user can cause. Each carries one sentence: what was got and what was expected.

The command line prints that sentence and exits non-zero; any other exception is a bug and keeps its traceback.
"""


class GistNetError(Exception):
    """Base of every error that is the input's fault, or the machine's, and not the program's."""


class ConfigError(GistNetError):
    """A configuration that cannot be run: unknown key, wrong type, contradiction between fields."""


class DataError(GistNetError):
    """Documents or prepared data that cannot be used: not UTF-8, empty, too short, damaged."""


class TeacherError(GistNetError):
    """A language model that cannot be a teacher, or is not the teacher that was expected."""


class CheckpointError(GistNetError):
    """A checkpoint that is missing, damaged, or belongs to another run or teacher."""


class TrainingError(GistNetError):
    """Training that had to stop: a loss or gradient that is not finite."""


class ProcessError(TrainingError):
    """The processes of a run cannot go on together: one is gone, out of reach, or had to leave the others waiting."""


class MissingPackageError(GistNetError, ImportError):
    """A package that only some tasks need and that is not installed; the sentence names the extra that installs it."""


class StorageError(GistNetError):
    """The file system refused: full disk, no permission, vanished folder."""
