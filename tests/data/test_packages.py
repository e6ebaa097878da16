"""What is said where an optional package isn't installed."""

import pytest

from jcl.data.packages import needed

pytestmark = pytest.mark.quick


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it():
    with (
        pytest.raises(ImportError, match=r"^from_text needs grain.*'jcl-kit\[text\]'$") as refused,
        needed("from_text", "grain", "text"),
    ):
        import no_such_package  # noqa: F401
    assert isinstance(refused.value.__cause__, ImportError)


def test_other_errors_and_packages_that_are_there_pass():
    with needed("here", "json", "text"):
        import json
    assert json.loads("1") == 1
    with pytest.raises(ValueError, match="another"), needed("here", "json", "text"):
        raise ValueError("another")
