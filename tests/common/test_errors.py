"""Errors, and what of them may leave a site."""

import pytest

from common import errors
from common.errors import FedreptileError, UpdateError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedreptileError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_may_leave_of_an_error_is_a_constant_of_its_kind(kind: type[FedreptileError]) -> None:
    secret = "/data/patient-7/scan.png"
    error = UpdateError("cause", secret) if kind is UpdateError else kind(secret)
    assert secret in str(error)
    assert error.public == kind.public
    assert kind.public
    assert "public" not in vars(error)
