"""Errors, and what of them may leave a site."""

import pytest

from common import errors
from common.errors import CLAUSES, FedreptileError, PolicyRefusal, SealError, UpdateError, VersionError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedreptileError)]
KINDS.remove(VersionError)  # it names two versions, see below


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_may_leave_of_an_error_is_a_constant_of_its_kind(kind: type[FedreptileError]) -> None:
    secret = "/data/patient-7/scan.png"
    first = {UpdateError: "cause", SealError: "cause", PolicyRefusal: "hours.work"}.get(kind)
    error = kind(secret) if first is None else kind(first, secret)
    assert secret in str(error) and secret not in error.told()
    assert error.public == kind.public
    assert kind.public
    assert "public" not in vars(error)


@pytest.mark.parametrize("clause", CLAUSES)
def test_of_a_refusal_the_server_is_told_the_clause_and_a_constant(clause: str) -> None:
    assert PolicyRefusal(clause, "/data/patient-7").told() == f"the site's policy refuses: {clause} ({CLAUSES[clause]})"


def test_a_refusal_by_a_clause_that_no_policy_has_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="patient"):
        PolicyRefusal("patient", "")


def test_version_skew_names_both_versions_and_repeats_nothing_that_is_none() -> None:
    assert VersionError("0.2.0", "0.1.0").told() == "VersionError: the run's code is 0.2.0 and the site has 0.1.0"
    for text in ("/data/patient-7", "1 2", "0.1.0\n", "", "1" * 30):
        assert VersionError(text, "0.1.0").told().startswith("VersionError: the run's code is unknown and")
