"""A site's own model: what it is adapted on, what it says, and that it is the same after a trip over the disk."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from client.data.folder import open_folder
from client.data.held import Part, apart
from client.data.sites import open_site_data, site_names
from client.model import SiteModel, adapt_site, read_model
from client.site import Site
from common.checkpoint import Checkpoint, RunState, write_checkpoint
from common.errors import CheckpointError, FedreptileError, SettingsError, SiteDataError
from common.learning.episode import SiteData
from common.learning.judge import Judgement
from common.learning.threads import threads
from common.messages import Request
from common.plan import plan_for
from common.settings import Value
from simulations.reference import centralised_reptile
from tests.client.small import NumberedData, own_settings, settings_with


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def checkpoint_with(**changes: Value) -> Checkpoint:
    """Return the checkpoint of a run that has just begun."""
    settings = settings_with(**{"model__width": 16, **changes})
    plan = plan_for(settings)
    return Checkpoint(RunState(1, plan.initial, plan.initial_slots, {}, {}), settings, "test")


def adapted(
    checkpoint: Checkpoint, data: SiteData, share: float, *, others: bool = True
) -> tuple[SiteModel, Judgement]:
    """Adapt to all but a share of the data, and judge on that share."""
    return adapt_site(checkpoint, *apart(data, share), others=others)


Made = tuple[SiteModel, Judgement]


@pytest.fixture(scope="module")
def made(digit_folders: Path) -> Made:
    """A model of the five digits of line-1, and how it was judged."""
    checkpoint = checkpoint_with()
    return adapted(checkpoint, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.3)


@pytest.fixture(scope="module")
def pictures(digit_folders: Path) -> Tensor:
    data = open_folder(digit_folders / "line-2", checkpoint_with().settings.data)
    return torch.cat([data.inputs(name, range(4)) for name in data.classes()])


@pytest.mark.parametrize("counts", [{}, {"a": 5}])
def test_a_site_with_fewer_than_two_classes_says_what_to_do(counts: dict[str, int]) -> None:
    with pytest.raises(SiteDataError, match=f"has {len(counts)} class.*add another class"):
        adapt_site(checkpoint_with(), NumberedData(counts))


def said_of(model: SiteModel, data: SiteData) -> tuple[list[str], list[str]]:
    """Return what a model says of all there is, and what it is."""
    said = {
        name: [found.name for found in model.predict(data.inputs(name, range(data.count(name))))]
        for name in data.classes()
    }
    return [one for each in said.values() for one in each], [name for name, each in said.items() for _ in each]


# ------------------------------------------------------------------------------------------------- adapting


def test_the_model_says_on_held_back_pictures_what_it_was_judged_by(made: Made, digit_folders: Path) -> None:
    model, judgement = made
    data = open_folder(digit_folders / "line-1", model.settings.data)
    said, true = said_of(model, apart(data, 0.3)[1])
    assert judgement.after.total == len(true) > 10
    assert judgement.after.correct == sum(a == b for a, b in zip(said, true, strict=True))


def test_the_model_tells_the_sites_classes_apart_better_than_chance(made: Made) -> None:
    _, judgement = made
    # By chance 4 of 20 are right, and 11 or more in 1 of 1,700 draws.
    assert judgement.after.correct >= 11 and judgement.after.accuracy >= judgement.before.accuracy - 0.2


def test_log_probs_are_those_of_a_distribution_over_the_classes(made: Made, pictures: Tensor) -> None:
    found = made[0].log_probs(pictures)
    assert found.shape == (20, 5) and made[0].classes == tuple(f"digit-{digit}" for digit in range(5))
    assert torch.allclose(found.exp().sum(1), torch.ones(20), atol=1e-5)


def test_what_is_said_of_a_picture_does_not_depend_on_the_others(made: Made, pictures: Tensor) -> None:
    together = made[0].log_probs(pictures)
    alone = torch.cat([made[0].log_probs(picture[None]) for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-5)


def test_adapting_twice_gives_the_same_bits(made: Made, digit_folders: Path, pictures: Tensor) -> None:
    checkpoint = checkpoint_with()
    data = open_folder(digit_folders / "line-1", checkpoint.settings.data)
    again, _ = adapted(checkpoint, data, 0.3)
    assert torch.equal(again.log_probs(pictures), made[0].log_probs(pictures))


def test_adapting_moves_the_params_and_leaves_the_checkpoint_as_it_was(digit_folders: Path) -> None:
    checkpoint = checkpoint_with()
    before = {name: value.clone() for name, value in checkpoint.state.params.items()}
    model, _ = adapted(checkpoint, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.3)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.state.params.items())
    assert any(not torch.equal(value, before[name]) for name, value in model.params.items())


def test_frozen_params_are_in_the_model_as_published(digit_folders: Path) -> None:
    checkpoint = checkpoint_with(inner__frozen="conv1.*")
    model, _ = adapted(checkpoint, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.3)
    assert model.params.keys() == checkpoint.state.params.keys()
    assert torch.equal(model.params["conv1.weight"], checkpoint.state.params["conv1.weight"])
    assert not torch.equal(model.params["conv2.weight"], checkpoint.state.params["conv2.weight"])


def test_the_moving_average_is_adapted_where_there_is_one(digit_folders: Path) -> None:
    checkpoint = checkpoint_with(inner__steps=0)
    average = {name: value + 0.01 for name, value in checkpoint.state.params.items()}
    averaged = replace(checkpoint, state=replace(checkpoint.state, average=average))
    model, _ = adapted(averaged, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.3)
    assert all(torch.equal(value, average[name]) for name, value in model.params.items())


def test_with_nothing_held_back_all_is_adapted_on_and_nothing_judged() -> None:
    data = NumberedData({"a": 6, "b": 6})
    _, judgement = adapted(checkpoint_with(), data, 0.0)
    assert judgement.after.total == 0 and set(data.asked) == {(name, row) for name in "ab" for row in range(6)}


def test_a_class_with_one_picture_is_recognised_though_it_cannot_be_judged(digit_folders: Path, tmp_path: Path) -> None:
    for digit in (0, 1, 4):
        source = digit_folders / "line-1" / f"digit-{digit}"
        (tmp_path / "line" / source.name).mkdir(parents=True)
        for picture in sorted(source.iterdir())[: 1 if digit == 0 else 12]:
            (tmp_path / "line" / source.name / picture.name).write_bytes(picture.read_bytes())
    checkpoint = checkpoint_with()
    data = open_folder(tmp_path / "line", checkpoint.settings.data)
    model, judgement = adapted(checkpoint, data, 0.3)
    assert judgement.after.per_class().keys() == {"digit-1", "digit-4"}
    said = model.log_probs(data.inputs("digit-0", [0])).argmax(1)
    assert model.classes[int(said)] == "digit-0"


def test_a_model_is_adapted_as_the_adapt_settings_say_where_they_differ_from_those_of_rounds(
    digit_folders: Path,
) -> None:
    several: dict[str, Value] = {
        "inner__steps": 5,
        "adapt__steps": 1,
        "inner__learning_rate": 0.3,
        "adapt__learning_rate": 0.1,
    }
    once: dict[str, Value] = {"inner__steps": 1, "inner__learning_rate": 0.1}
    data = open_folder(digit_folders / "line-1", checkpoint_with().settings.data)
    models = [adapted(checkpoint_with(**changes), data, 0.3)[0] for changes in (several, once)]
    assert all(torch.equal(value, models[1].params[name]) for name, value in models[0].params.items())


def test_a_model_adapts_and_predicts_with_adam(digit_folders: Path) -> None:
    checkpoint = checkpoint_with(inner__optimizer="adam", inner__learning_rate=0.003)
    data = open_folder(digit_folders / "line-1", checkpoint.settings.data)
    _, judgement = adapted(checkpoint, data, 0.3)
    assert judgement.after.correct >= 11


def test_paper_mode_and_turned_classes_of_the_run_are_off_in_a_model_for_use(digit_folders: Path) -> None:
    checkpoint = checkpoint_with(model__normalisation="batch", judge__transductive=True, data__rotated_classes=True)
    model, _ = adapted(checkpoint, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.3)
    assert model.settings.model.normalisation == "frozen" and not model.settings.judge.transductive
    assert not model.settings.data.rotated_classes and len(model.classes) == 5


def test_a_linear_head_with_fewer_rows_than_classes_is_refused_with_what_to_do(digit_folders: Path) -> None:
    checkpoint = checkpoint_with(model__head="linear")
    data = open_folder(digit_folders / "line-1", checkpoint.settings.data)
    with pytest.raises(SettingsError, match=r"tells 3 classes apart and the site has 5; use .* prototype head"):
        adapted(checkpoint, data, 0.3)


@pytest.mark.parametrize("rows", [5, 7])
def test_a_linear_head_with_enough_rows_adapts_and_predicts(digit_folders: Path, tmp_path: Path, rows: int) -> None:
    checkpoint = checkpoint_with(model__head="linear", episode__way=rows, inner__steps=60, inner__learning_rate=0.05)
    data = open_folder(digit_folders / "line-1", checkpoint.settings.data)
    model, judgement = adapted(checkpoint, data, 0.3)
    assert judgement.after.correct >= 11
    said, true = said_of(model, apart(data, 0.3)[1])
    assert judgement.after.correct == sum(a == b for a, b in zip(said, true, strict=True))
    model.write(tmp_path / "m.safetensors")
    assert said_of(read_model(tmp_path / "m.safetensors"), apart(data, 0.3)[1]) == (said, true)


def test_a_float64_network_of_a_users_own_adapts_and_predicts(
    digit_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import torch\nfrom torch import nn\n"
        "def double(shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 16, dtype=torch.float64))\n"
    )
    (tmp_path / "model_test_network.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = checkpoint_with(model__network="model_test_network:double", inner__learning_rate=0.01)
    data = open_folder(digit_folders / "line-1", checkpoint.settings.data)
    try:
        model, judgement = adapted(checkpoint, data, 0.3)
    finally:
        sys.modules.pop("model_test_network", None)
    assert judgement.after.correct >= 11
    assert model.log_probs(data.inputs("digit-0", [0])).dtype == torch.float64


# ----------------------------------------------------------------------------------- classes of other sites


@pytest.fixture(scope="module")
def federated(digit_folders: Path, digit_sites: Path) -> Checkpoint:
    """A trained checkpoint with the class table of line-2, and with one of a class that line-1 has as well."""
    checkpoint = checkpoint_with(run__rounds=40, episode__way=5, inner__learning_rate=0.1, model__sharpness=20.0)
    settings = checkpoint.settings
    sites = {name: open_site_data(digit_sites, name, settings.data) for name in site_names(digit_sites)}
    params = centralised_reptile(sites, settings)
    own = own_settings("line-2", str(digit_folders), class_tables=True, min_count=2)
    packed = plan_for(settings).params.pack(params).numpy()
    table = Site(own, settings).class_table(Request(1, packed, np.empty(0, np.float32), False))
    sums = [torch.tensor(total) for total in table.sums]
    found = dict(zip(table.names, zip(sums, table.counts, strict=True), strict=True))
    found["digit-3"] = (torch.full_like(sums[0], 1e6), 10)
    return replace(checkpoint, state=replace(checkpoint.state, params=params, prototypes=found))


def test_classes_that_only_another_site_has_are_recognised(
    federated: Checkpoint, digit_folders: Path, pictures: Tensor
) -> None:
    own = open_folder(digit_folders / "line-1", federated.settings.data)
    model, _ = adapted(federated, own, 0.3)
    assert model.classes == tuple(f"digit-{digit}" for digit in range(10))
    said = [model.classes[i] for i in model.log_probs(pictures).argmax(1).tolist()]
    true = [f"digit-{digit}" for digit in range(5, 10) for _ in range(4)]
    # By chance 2 of 20 are right, and 8 or more in 1 of 2,400 draws.
    assert sum(a == b for a, b in zip(said, true, strict=True)) >= 12


def test_the_prototype_of_another_sites_class_is_the_mean_of_its_embeddings(
    federated: Checkpoint, digit_folders: Path
) -> None:
    model, _ = adapted(federated, open_folder(digit_folders / "line-1", federated.settings.data), 0.3)
    total, count = federated.state.prototypes["digit-7"]
    assert torch.allclose(model.prototypes[model.classes.index("digit-7")], total / count)


def test_a_class_that_the_site_has_itself_keeps_its_own_prototype(federated: Checkpoint, digit_folders: Path) -> None:
    own = open_folder(digit_folders / "line-1", federated.settings.data)
    alone, _ = adapted(federated, own, 0.3, others=False)
    together, _ = adapted(federated, own, 0.3)
    assert alone.classes == together.classes[:5]
    assert torch.equal(alone.prototypes, together.prototypes[:5])


def test_without_others_the_model_has_the_sites_classes_only(federated: Checkpoint, digit_folders: Path) -> None:
    own = open_folder(digit_folders / "line-1", federated.settings.data)
    model, _ = adapted(federated, own, 0.3, others=False)
    assert model.classes == tuple(f"digit-{digit}" for digit in range(5))


# ------------------------------------------------------------------------------------------------- unknown


def test_a_prediction_is_the_likeliest_class_with_its_probability(made: Made, pictures: Tensor) -> None:
    confidence, best = made[0].log_probs(pictures).exp().max(1)
    found = made[0].predict(pictures)
    assert [one.name for one in found] == [made[0].classes[i] for i in best.tolist()]
    assert [one.confidence for one in found] == confidence.tolist()
    assert [one.unknown for one in found] == [one.distance > (made[0].threshold or 0) for one in found]


def test_the_threshold_lies_where_all_but_a_twentieth_of_the_sites_own_inputs_are_nearer_each_left_out_once(
    federated: Checkpoint, digit_folders: Path
) -> None:
    data = open_folder(digit_folders / "line-1", federated.settings.data)
    model, _ = adapt_site(federated, data, others=False)
    inputs = {name: data.inputs(name, range(data.count(name))) for name in data.classes()}
    learner = plan_for(model.settings).learner
    embedded = {name: learner.embed(model.params, model.buffers, own) for name, own in inputs.items()}
    assert model.spread is not None and model.threshold is not None
    means = torch.stack([embedded[name].mean(0) for name in model.classes])
    distances = []
    for place, name in enumerate(model.classes):
        for left_out in range(12):
            without = means.clone()
            without[place] = torch.cat([embedded[name][:left_out], embedded[name][left_out + 1 :]]).mean(0)
            away = (embedded[name][left_out] - without).square().mean(1) / model.spread
            distances.append(float(away.min()))
    nearer = sum(away <= model.threshold * (1 + 1e-4) for away in distances)
    assert nearer == 58  # of 60: the next whole number above 0.95 * 61
    assert min(abs(away / model.threshold - 1) for away in distances) < 1e-4


def test_digits_that_the_model_has_never_seen_are_mostly_farther_away_than_new_ones_that_it_knows(
    federated: Checkpoint, digit_folders: Path, pictures: Tensor
) -> None:
    data = open_folder(digit_folders / "line-1", federated.settings.data)
    train, held = apart(data, 0.3)
    model, _ = adapt_site(federated, train, others=False)
    known = model.predict(torch.cat([held.inputs(name, range(held.count(name))) for name in held.classes()]))
    strange = model.predict(pictures)
    pairs = [(a.distance, b.distance) for a in known for b in strange]
    assert sum(near < far for near, far in pairs) / len(pairs) > 0.75
    assert sum(one.unknown for one in strange) / len(strange) > 3 * sum(one.unknown for one in known) / len(known)


def test_a_class_that_only_another_site_has_is_known_and_spread_as_the_sites_own(
    federated: Checkpoint, digit_folders: Path, pictures: Tensor
) -> None:
    data = open_folder(digit_folders / "line-1", federated.settings.data)
    with_others, alone = (adapted(federated, data, 0.0, others=others)[0] for others in (True, False))
    assert with_others.spread is not None and with_others.spread.shape == (10,)
    assert len(set(with_others.spread[5:].tolist())) == 1
    own = with_others.spread[:5]
    assert own.min() < with_others.spread[9] < own.max()
    unknown = [sum(one.unknown for one in model.predict(pictures)) for model in (with_others, alone)]
    assert unknown[0] < unknown[1]


def test_without_two_inputs_of_any_class_nothing_is_called_unknown(digit_folders: Path, pictures: Tensor) -> None:
    data = open_folder(digit_folders / "line-1", checkpoint_with().settings.data)
    single = Part(data, {name: [0] for name in data.classes()})
    model, _ = adapt_site(checkpoint_with(), single)
    assert model.threshold is None and not any(one.unknown for one in model.predict(pictures))


def test_with_the_linear_head_nothing_is_called_unknown(digit_folders: Path, pictures: Tensor) -> None:
    checkpoint = checkpoint_with(model__head="linear", episode__way=5)
    model, _ = adapted(checkpoint, open_folder(digit_folders / "line-1", checkpoint.settings.data), 0.0)
    assert not [one for one in model.predict(pictures) if one.unknown or one.distance == one.distance]


def test_what_is_not_a_number_is_unknown(made: Made, pictures: Tensor) -> None:
    assert all(one.unknown for one in made[0].predict(pictures * torch.nan))


# ------------------------------------------------------------------------------------------------- on disk


@pytest.fixture
def file(made: Made, tmp_path: Path) -> Path:
    made[0].write(tmp_path / "site" / "model.safetensors")
    return tmp_path / "site" / "model.safetensors"


def test_a_model_says_the_same_after_it_was_written_and_read(made: Made, file: Path, pictures: Tensor) -> None:
    found = read_model(file)
    assert torch.equal(found.log_probs(pictures), made[0].log_probs(pictures))
    assert found.predict(pictures) == made[0].predict(pictures) and made[0].threshold is not None
    assert found.classes == made[0].classes and found.settings == made[0].settings
    for kept, original in ((found.params, made[0].params), (found.buffers, made[0].buffers)):
        assert kept.keys() == original.keys() and all(torch.equal(kept[name], original[name]) for name in kept)


def test_classes_of_other_sites_survive_the_disk(
    federated: Checkpoint, digit_folders: Path, tmp_path: Path, pictures: Tensor
) -> None:
    model, _ = adapted(federated, open_folder(digit_folders / "line-1", federated.settings.data), 0.3)
    model.write(tmp_path / "m.safetensors")
    assert torch.equal(read_model(tmp_path / "m.safetensors").log_probs(pictures), model.log_probs(pictures))


def test_writing_replaces_the_old_model_and_leaves_nothing_beside_it(made: Made, file: Path) -> None:
    file.write_bytes(b"old")
    made[0].write(file)
    assert read_model(file).classes == made[0].classes and list(file.parent.iterdir()) == [file]


def test_a_model_that_was_there_survives_a_disk_that_fills_up(
    made: Made, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, FedreptileError), match="No space left"):
        made[0].write(file)
    assert file.read_bytes() == before


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata())  # noqa: SIM118


Change = Callable[[dict[str, Tensor], dict[str, str]], object]


def described(**values: object) -> Change:
    return lambda _, metadata: metadata.update(fedreptile=json.dumps({**json.loads(metadata["fedreptile"]), **values}))


REWRITTEN: dict[str, Change] = {
    "no prototypes": lambda tensors, _: tensors.pop("prototypes"),
    "a part that no model has": lambda tensors, _: tensors.update({"optimizer/x": torch.zeros(1)}),
    "no description": lambda _, metadata: metadata.pop("fedreptile"),
    "a description that is no JSON": lambda _, metadata: metadata.update(fedreptile="{"),
    "no classes": lambda _, metadata: metadata.update(fedreptile='{"settings": {}}'),
    "an unknown setting": described(settings={"inner.secret": 1}),
    "a setting out of range": described(settings={"episode.way": 0}),
    "another format": lambda _, metadata: metadata.update({"site-model": "2"}),
    "no format": lambda _, metadata: metadata.pop("site-model"),
    "fewer prototypes than classes": lambda tensors, _: tensors.update(prototypes=tensors["prototypes"][:-1].clone()),
    "prototypes of another size": lambda tensors, _: tensors.update(prototypes=tensors["prototypes"][:, 1:].clone()),
    "a param is missing": lambda tensors, _: tensors.pop("params/conv2.weight"),
    "a param that the network does not have": lambda tensors, _: tensors.update({"params/conv9.bias": torch.zeros(1)}),
    "a param of another shape": lambda tensors, _: tensors.update({"params/conv2.bias": torch.zeros(1)}),
    "fewer spreads than classes": lambda tensors, _: tensors.update(spread=tensors["spread"][:-1].clone()),
    "a spread of nothing": lambda tensors, _: tensors.update(spread=tensors["spread"] * 0),
    "a threshold without spreads": lambda tensors, _: tensors.pop("spread"),
    "a threshold that is no number": described(threshold="2"),
    "a threshold of nothing": described(threshold=0.0),
    "normalisation statistics are missing": lambda tensors, _: tensors.pop("buffers/norm2.running_mean"),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_a_file_that_is_not_a_whole_model_is_refused_by_name_when_it_is_read(file: Path, case: str) -> None:
    tensors, metadata = contents(file)
    REWRITTEN[case](tensors, metadata)
    save_file(tensors, file, metadata)
    with pytest.raises(CheckpointError) as raised:
        read_model(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(file: Path, part: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CheckpointError, match=file.name):
        read_model(file)


def test_a_file_with_something_after_its_end_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=file.name):
        read_model(file)


@pytest.mark.parametrize("found", ["nothing", "a folder", "text", "a run's checkpoint"])
def test_what_is_not_a_model_at_all_is_refused(tmp_path: Path, found: str) -> None:
    path = tmp_path / "m.safetensors"
    if found == "a folder":
        path.mkdir()
    elif found == "text":
        path.write_text("a model")
    elif found == "a run's checkpoint":
        checkpoint = checkpoint_with()
        write_checkpoint(path, checkpoint.state, checkpoint.settings)
    with pytest.raises(CheckpointError, match=r"m\.safetensors"):
        read_model(path)
