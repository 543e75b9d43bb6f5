"""The public names are what they say, also after the modules behind them were imported."""

import importlib
import pkgutil

import gistnet


def test_no_room_hides_a_public_name():
    """Importing `gistnet.x` sets the attribute `x` of the package: a function of that name would be gone."""
    rooms = {module.name for module in pkgutil.iter_modules(gistnet.__path__)}
    assert rooms & set(gistnet.__all__) == set()
    importlib.import_module("gistnet.session")
    assert all(callable(getattr(gistnet, name)) for name in gistnet.__all__ if name != "__version__")
