"""The file of a release: the same bytes always, and nothing in it that does not fit."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from common.errors import CheckpointError
from common.releases.artefact import KEY, Artefact, decode, encode, of_checkpoint, settings_of, take_apart
from tests.common.releases.small import artefact


def test_what_was_written_is_read() -> None:
    one = artefact()
    again = decode(encode(one), "x")
    assert again.settings == one.settings
    assert again.code_version == one.code_version
    assert all(torch.equal(again.params[name], value) for name, value in one.params.items())
    assert list(again.prototypes) == sorted(one.prototypes)
    assert all(torch.equal(again.prototypes[name][0], total) for name, (total, _) in one.prototypes.items())
    assert again.prototypes["scratch"][1] == 10


def test_the_same_release_is_the_same_bytes_in_another_process_and_order() -> None:
    one = artefact()
    turned = replace(
        one, params=dict(reversed(list(one.params.items()))), prototypes=dict(reversed(list(one.prototypes.items())))
    )
    program = (
        "import sys; from tests.common.releases.small import artefact; from common.releases.artefact import encode;"
        "sys.stdout.buffer.write(encode(artefact()))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert encode(one) == encode(turned) == other


def test_adaptation_takes_it_as_a_checkpoint_and_back() -> None:
    one = artefact(inner__optimizer="adam")
    assert one.slots
    assert encode(of_checkpoint(one.checkpoint())) == encode(one)


def test_folders_of_the_server_do_not_go_out() -> None:
    one = artefact(run__dir="/srv/secret", data__sites="/srv/data", model__initial="/srv/first")
    assert b"/srv" not in encode(one)
    assert "run.dir" not in settings_of(one)[0]
    assert settings_of(one)[1] == settings_of(artefact())[1]


def changed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> bytes:
    """Return a release's file in which description or tensors were changed."""
    described, tensors = take_apart(encode(artefact()), "x")
    change(described, tensors)
    return save(tensors, metadata={KEY: json.dumps(described)})


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.startswith("params/"))


WRONG: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "a setting that is not known": lambda d, _: d["settings"].update({"inner.stepz": 1}),
    "a setting of a wrong type": lambda d, _: d["settings"].update({"inner.steps": "three"}),
    "another entry": lambda d, _: d.update(more=1),
    "no entry": lambda d, _: d.pop("counts"),
    "another format": lambda d, _: d.update(format="2"),
    "a code version that steers a terminal": lambda d, _: d.update(code="\x1b[2J"),
    "another tensor": lambda _, t: t.update(extra=torch.zeros(1)),
    "another param": lambda _, t: t.update({"params/extra": torch.zeros(1)}),
    "a missing param": lambda _, t: t.pop(first(t)),
    "a slot of no optimizer": lambda _, t: t.update({"slots/extra": torch.zeros(1)}),
    "another shape": lambda _, t: t.update({first(t): torch.zeros(3, 3, 3)}),
    "another type": lambda _, t: t.update({first(t): t[first(t)].double()}),
    "a value that is not finite": lambda _, t: t[first(t)].view(-1)[0].fill_(float("nan")),
    "a sum that is not finite": lambda _, t: t["prototypes/scratch"][0].fill_(float("inf")),
    "a sum of another length": lambda _, t: t.update({"prototypes/scratch": torch.zeros(3)}),
    "a sum of whole numbers": lambda d, t: t.update({"prototypes/scratch": t["prototypes/scratch"].long()}),
    "a class without a sum": lambda d, _: d["counts"].update(other=1),
    "a sum without a count": lambda d, _: d["counts"].pop("scratch"),
    "a count of none": lambda d, _: d["counts"].update(scratch=0),
    "a count that is no number": lambda d, _: d["counts"].update(scratch=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_release_is_refused_that_has(name: str) -> None:
    with pytest.raises(CheckpointError, match="the release of today is not a release that can be used"):
        decode(changed(WRONG[name]), "the release of today")


def test_the_changing_itself_changes_nothing() -> None:
    decode(changed(lambda *_: None), "x")


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"\0" * 100, (10).to_bytes(8, "little") + b"[[[[[[[[[[" + b"x" * 99]
)
def test_bytes_that_are_no_release_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(data, "x")


def test_a_release_of_two_metadata_entries_is_refused() -> None:
    with pytest.raises(CheckpointError):
        decode(save({"a": torch.zeros(1)}, metadata={KEY: "{}", "format": "pt"}), "x")


def test_a_truncated_release_is_refused() -> None:
    data = encode(artefact())
    for size in (4, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(CheckpointError):
            decode(data[:size], "x")


def test_params_that_do_not_fit_are_not_written() -> None:
    one = artefact()
    bad: dict[str, Artefact] = {
        "missing": replace(one, params={}),
        "not finite": replace(one, params={name: value * float("inf") for name, value in one.params.items()}),
    }
    for text, wrong in bad.items():
        with pytest.raises(CheckpointError, match=text):
            encode(wrong)
