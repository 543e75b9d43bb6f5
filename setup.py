"""What pyproject.toml cannot say: the releases beside the package go into it, as `gistnet/released`."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["gistnet*"]), "gistnet.released"],
    package_dir={"gistnet.released": "released"},
)
