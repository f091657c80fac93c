"""Seals: neither the content nor what it belongs to can be exchanged."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from common.errors import SealError
from common.trust.seals import SEAL, Facts, digest_of, opened, sealed, unsealed

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
FACTS = Facts("run", 3, "train", site="line-3", base="b" * 64, policy="p" * 64, ledger="l" * 64)


def content(value: float = 1.0, scalar: float = 0.1, name: str = "delta", number: int = 3) -> RecordDict:
    return RecordDict(
        {
            "update": ArrayRecord({name: Array(np.full(5, value, np.float32))}),
            "scalars": MetricRecord({"num-examples": scalar}),
            "config": ConfigRecord({"round": number, "names": ["a", "b"], "raw": b"\x00", "yes": True}),
        }
    )


def test_sealed_content_opens_with_the_right_key_and_is_what_it_was() -> None:
    found = opened(sealed(content(), FACTS, KEY), KEY.public_key(), Facts("run", 3, "train", site="line-3"))
    assert found.facts == FACTS and digest_of(found.content) == digest_of(content()) == found.digest
    assert SEAL not in found.content


def test_a_seal_survives_the_way_that_messages_take() -> None:
    sent = recorddict_from_proto(recorddict_to_proto(sealed(content(), FACTS, KEY)))
    assert opened(sent, KEY.public_key(), FACTS).facts == FACTS


@pytest.mark.parametrize(
    "other",
    [content(value=1.0000001), content(scalar=0.2), content(name="delta2"), content(number=4), content(scalar=1)],
    ids=["array", "scalar", "name", "number", "type"],
)
def test_any_change_of_the_content_is_found(other: RecordDict) -> None:
    seal = sealed(content(), FACTS, KEY)[SEAL]
    with pytest.raises(SealError) as raised:
        opened(RecordDict({**other, SEAL: seal}), KEY.public_key(), FACTS)
    assert raised.value.cause == "altered"


def test_a_record_that_was_added_or_left_out_is_found() -> None:
    whole = sealed(content(), FACTS, KEY)
    for changed in (
        RecordDict({**whole, "more": ConfigRecord({})}),
        RecordDict({name: record for name, record in whole.items() if name != "scalars"}),
    ):
        with pytest.raises(SealError, match="altered"):
            opened(changed, KEY.public_key(), FACTS)


@pytest.mark.parametrize("field", ["run", "round", "kind", "site", "base", "policy", "ledger"])
def test_what_was_signed_for_something_else_is_a_replay(field: str) -> None:
    changes: dict[str, Any] = {field: 4 if field == "round" else "another"}
    changed = replace(FACTS, **changes)
    with pytest.raises(SealError) as raised:
        opened(sealed(content(), changed, KEY), KEY.public_key(), FACTS)
    assert raised.value.cause == "replayed"


@pytest.mark.parametrize("field", ["run", "round", "kind", "site", "base", "policy", "ledger"])
def test_what_a_seal_says_cannot_be_changed_without_the_key(field: str) -> None:
    whole = sealed(content(), FACTS, KEY)
    seal = whole[SEAL]
    assert isinstance(seal, ConfigRecord)
    seal[field] = 4 if field == "round" else "another"
    with pytest.raises(SealError) as raised:
        opened(whole, KEY.public_key(), FACTS)
    assert raised.value.cause == "bad-signature"


def test_another_key_is_refused() -> None:
    with pytest.raises(SealError) as raised:
        opened(sealed(content(), FACTS, OTHER), KEY.public_key(), FACTS)
    assert raised.value.cause == "bad-signature"


def _without(whole: RecordDict) -> RecordDict:
    return unsealed(whole)


def _metric(whole: RecordDict) -> RecordDict:
    return RecordDict({**unsealed(whole), SEAL: MetricRecord({"round": 3})})


def _incomplete(whole: RecordDict) -> RecordDict:
    seal = whole[SEAL]
    assert isinstance(seal, ConfigRecord)
    return RecordDict({**unsealed(whole), SEAL: ConfigRecord({k: v for k, v in seal.items() if k != "signature"})})


def _no_hex(whole: RecordDict) -> RecordDict:
    seal = whole[SEAL]
    assert isinstance(seal, ConfigRecord)
    return RecordDict({**unsealed(whole), SEAL: ConfigRecord({**seal, "signature": "zz"})})


def _wrong_type(whole: RecordDict) -> RecordDict:
    seal = whole[SEAL]
    assert isinstance(seal, ConfigRecord)
    return RecordDict({**unsealed(whole), SEAL: ConfigRecord({**seal, "round": "3"})})


@pytest.mark.parametrize("damage", [_without, _metric, _incomplete, _no_hex, _wrong_type])
def test_content_without_a_whole_seal_counts_as_unsigned(damage: Callable[[RecordDict], RecordDict]) -> None:
    with pytest.raises(SealError) as raised:
        opened(damage(sealed(content(), FACTS, KEY)), KEY.public_key(), FACTS)
    assert raised.value.cause == "unsigned"


def test_a_true_and_a_one_are_not_the_same_content() -> None:
    one, true = RecordDict({"c": ConfigRecord({"x": 1})}), RecordDict({"c": ConfigRecord({"x": True})})
    assert digest_of(one) != digest_of(true)
