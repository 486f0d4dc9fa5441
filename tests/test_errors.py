"""Typed errors: their families and their sentences."""

import inspect

import pytest

from trimtab import errors

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
OWN = [value for value in CLASSES if issubclass(value, Exception)]


@pytest.mark.parametrize("error", OWN, ids=lambda error: error.__name__)
def test_every_error_belongs_to_the_family_and_says_what_it_means(error):
    assert issubclass(error, errors.TrimtabError)
    assert error.__doc__


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.ShapeError, ValueError),
        (errors.FileFormatError, ValueError),
        (errors.UnsupportedError, NotImplementedError),
        (errors.DeviceError, RuntimeError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_an_error_is_caught_as_the_builtin_that_callers_expect(error, builtin):
    assert issubclass(error, builtin)


def test_an_unknown_name_suggests_the_nearest_and_lists_the_known():
    error = errors.unknown_name("system", "katgo", ["fnet", "katago"])
    assert str(error) == "Unknown system 'katgo'. Did you mean 'katago'? Known: fnet, katago."


def test_a_name_like_none_of_the_known_gets_no_suggestion():
    error = errors.unknown_name("system", "xyz", ["fnet"])
    assert str(error) == "Unknown system 'xyz'. Known: fnet."


def test_a_missing_extra_says_what_to_install():
    sentence = (
        "Drawing needs the package 'no_such_package', which is not installed. "
        r"Run: pip install 'trimtab\[plot\]'"
    )
    with pytest.raises(errors.MissingExtraError, match=sentence):
        errors.require_extra("no_such_package.part", "plot", "Drawing")


def test_a_present_extra_is_imported():
    assert errors.require_extra("json", "plot", "Drawing").dumps(1) == "1"
