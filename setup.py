"""The package's one compiled module. All else stands in pyproject.toml, whose way to say this is still experimental."""

from setuptools import Extension, setup

numbers = Extension(
    "fer_utils.sources._numbers",
    ["fer_utils/sources/_numbers.c"],
    py_limited_api=True,
    optional=True,  # without a C compiler or Python's headers numpy parses a CSV's numbers, which takes longer
)
setup(ext_modules=[numbers])
