"""Everything that can be set for a run: one frozen dataclass, parsed once at the edge.

The same keys (``section.name-with-hyphens``) are used in ``[tool.flwr.app.config]`` of
pyproject.toml, in a TOML file and in ``--set key=value``. Values are bool, int, float or str,
because that is what a Flower run config can hold.
"""

import codecs
import dataclasses
import difflib
import fnmatch
import json
import keyword
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from common.columns import parse_columns
from common.errors import SettingsError

Value = bool | int | float | str

NETWORKS = ("omniglot", "texture", "mlp")
AUGMENTS = ("none", "affine", "flip", "affine+flip")


def setting(
    default: Value,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[Value, ...] | None = None,
) -> Any:
    """Return the field of a setting: its default, what it means, and which values it may have."""
    limits = {"meaning": meaning, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class RunSettings:
    rounds: int = setting(2000, "rounds in all; 0: sites only say what they are, have and wish", least=0)
    seed: int = setting(0, "seed of every random stream of the run", least=0)
    dir: str = setting("", "absolute folder for checkpoint and journal; empty: under the data home")
    checkpoint_seconds: float = setting(0.0, "least seconds between checkpoints; 0 writes one every round", least=0)
    resume: bool = setting(True, "continue from the checkpoint in the run's folder, if there is one")


@dataclass(frozen=True)
class DataSettings:
    """What an input is. It is agreed on for the run, so that every site reads its own data alike."""

    sites: str = setting("", "absolute path of the sites, in any layout that the project reads; empty: the data home's")
    kind: str = setting("image", "what an input is", choices=("image", "vector", "table"))
    channels: int = setting(1, "image: 1 grey, 3 colour, 4 with transparency", choices=(1, 3, 4))
    size: int = setting(28, "image: height and width that pictures are resized to; vector: its length", least=1)
    bits: int = setting(8, "image: of a grey level; 16 keeps what cameras and scanners record", choices=(8, 16))
    white: float = setting(
        0.0, "image: the number in files of more than 8 bits that means white; 0: the largest of its type", least=0
    )
    invert: bool = setting(False, "image: swap dark and light when reading files")
    beside: str = setting(
        "",
        "image: what lies beside each picture and adds a grey channel, spaces between: file patterns from the "
        "picture's folder ('{stem}_template.png ../masks/{class}/{stem}.png'), or arrays of an .npz file",
    )
    label: str = setting("label", "the column of a table, or array of an .npz file, that names the class")
    inputs: str = setting("inputs", "the array of an .npz file that holds the inputs")
    columns: str = setting(
        "", "table: its columns, commas between; a plain name holds numbers, 'name=a|b|c' one of these values"
    )
    absent_columns: bool = setting(False, "table: a site may lack a column; it then counts as missing in every row")
    rotated_classes: bool = setting(False, "image: each class turned by 90, 180 and 270 degrees counts as a class too")
    hold_back: float = setting(
        0.0, "part of each class that is never trained on, chosen by content, to judge models on", least=0, most=0.9
    )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: [C, H, W] of an image, [F] of a vector or an encoded row of a table."""
        if self.kind == "image":
            return (self.channels + len(self.beside.split()), self.size, self.size)
        return (self.size,) if self.kind == "vector" else (sum(column.width for column in parse_columns(self.columns)),)


@dataclass(frozen=True)
class EpisodeSettings:
    way: int = setting(5, "classes in an episode (a site with fewer uses all it has)", least=2)
    shot: int = setting(10, "support inputs per class", least=1)
    query: int = setting(5, "query inputs per class, where an episode is judged", least=1)


@dataclass(frozen=True)
class ModelSettings:
    network: str = setting(
        "omniglot", "'omniglot' for images, 'texture' for surfaces, 'mlp' for tables, or 'module:function' of your own"
    )
    width: int = setting(
        32,
        "channels of each block of 'omniglot' (64 in the paper), units of each layer of 'texture' and 'mlp'",
        least=1,
    )
    depth: int = setting(4, "blocks of 'omniglot' (4 in the paper), hidden layers of 'texture' and 'mlp'", least=1)
    head: str = setting("prototype", "how embeddings become classes", choices=("prototype", "linear"))
    sharpness: float = setting(5.0, "prototype head: factor on the mean squared distance in the softmax", least=0)
    normalisation: str = setting(
        "frozen",
        "'frozen': statistics of the support set; 'batch': of the batch at hand, as in the paper",
        choices=("frozen", "batch"),
    )
    initial: str = setting("", "absolute path of a checkpoint whose params the run starts from")


@dataclass(frozen=True)
class InnerLoop:
    """What ``adapt`` does at a site."""

    optimizer: str = setting("sgd", "'adam' has beta1 = 0 and is the paper's", choices=("sgd", "adam"))
    learning_rate: float = setting(0.5, "inner learning rate", least=0)
    steps: int = setting(5, "inner steps", least=0)
    batch_size: int = setting(20, "support inputs per inner step", least=1)
    frozen: str = setting("", "names of params that are not adapted, as patterns, spaces between")
    augment: str = setting("none", "random change of support images per step", choices=AUGMENTS)
    views: int = setting(1, "augmented copies of each support input", least=1)
    precision: str = setting(
        "full",
        "'bf16': the network computes in bfloat16 where torch's autocast deems it safe; params, gradients, optimizer "
        "and head stay as they are, and so do predictions",
        choices=("full", "bf16"),
    )
    checkpointing: bool = setting(
        False,
        "keep less for the backward pass and compute it again, block by block (elements of nn.Sequential and "
        "nn.ModuleList): less memory, more time, the same result",
    )

    def is_frozen(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.frozen.split())


@dataclass(frozen=True)
class AdaptSettings:
    """How the learned params are adapted where they are used: in judging and for a site's own model.

    Rounds may learn best with larger inner steps than are best in the end; the paper too judges
    with other numbers than it trains with (section 6). -1: as in [inner]. What has no key here
    (optimizer, frozen names, precision, checkpointing) is as in [inner] too.
    """

    learning_rate: float = setting(-1.0, "inner learning rate; -1 as in [inner]", least=-1)
    steps: int = setting(-1, "inner steps; -1 as in [inner]", least=-1)
    batch_size: int = setting(-1, "support inputs per inner step; -1 as in [inner]", least=-1)
    augment: str = setting("", "as inner.augment; empty: as in [inner]", choices=("", *AUGMENTS))
    views: int = setting(-1, "augmented copies of each support input; -1 as in [inner]", least=-1)


@dataclass(frozen=True)
class OuterSettings:
    """What the server does with the sites' updates."""

    meta_step_size: float = setting(1.0, "step size along the mean update", least=0)
    anneal: bool = setting(True, "lower the step size linearly to 0 over the run")
    layer_step_sizes: str = setting("", "factors on the step size by name pattern: 'backbone.conv1.*=0.5 head.*=2'")
    optimizer: str = setting("plain", "outer step: along the mean update, or Adam on it", choices=("plain", "adam"))
    weighting: str = setting(
        "uniform", "each site counts the same, or by its number of support inputs", choices=("uniform", "num-examples")
    )
    average: float = setting(
        0.0, "decay of the moving average of params that is published; 0 off", least=0, most=0.99999
    )
    sites_per_round: int = setting(5, "sites sampled a round; 0 all; 1 is serial Reptile", least=0)
    quorum: float = setting(0.5, "least part of the asked sites whose updates a round needs", least=0, most=1)
    deadline: float = setting(600.0, "seconds that a round waits for its sites", least=0)
    failed_rounds: int = setting(3, "rounds without quorum in a row that end the run", least=1)
    join_sites: int = setting(1, "sites that must have joined before the first round", least=1)
    join_deadline: float = setting(300.0, "seconds to wait for them", least=0)
    class_tables: bool = setting(False, "ask for class tables under the final params")


@dataclass(frozen=True)
class JudgeSettings:
    every: int = setting(50, "rounds between judgements during a run; 0 never", least=0)
    held_out: int = setting(0, "sites that are never trained on, only judged", least=0)
    episodes: int = setting(4, "episodes that a held-out site is judged on each time", least=1)
    shot: int = setting(5, "support inputs per class when a held-out site is judged", least=1)
    transductive: bool = setting(False, "batch normalisation only: queries share one batch without the support")


@dataclass(frozen=True)
class CampaignSettings:
    """A new class for everybody: what the run is to bring, to whom and from where. All of it is the server's choice.

    In a campaign the server may also choose inner.steps, inner.learning-rate and episode.shot, up to what the limits of
    each site's policy allow.
    """

    class_: str = setting("", "name of the new class; empty: the run is no campaign")
    description: str = setting("", "what the class is, for people at the sites")
    sites: str = setting("", "sites that take part, commas between; empty: all that are here")
    canary: str = setting(
        "", "sites that get the release first, commas between; empty: the first of those that take part"
    )
    release: int = setting(
        0, "number of the release that the run starts from, its champion; 0: there is none yet", least=0
    )

    delta: str = setting(
        "int8",
        "difference to the release before, published beside the whole: what is released is rounded to it",
        choices=("int8", "bf16", "off"),
    )

    @property
    def site_names(self) -> tuple[str, ...]:
        """The chosen sites, sorted; none: all."""
        return tuple(sorted({name.strip() for name in self.sites.split(",") if name.strip()}))

    @property
    def canary_names(self) -> tuple[str, ...]:
        return tuple(sorted({name.strip() for name in self.canary.split(",") if name.strip()}))


@dataclass(frozen=True)
class GateSettings:
    """What the challenger of a campaign must reach before it is released, judged at sites on what they hold back."""

    least_recall: float = setting(
        0.8, "new class: least part recognised in leave-one-out, at each site that has it", least=0, most=1
    )
    least_by_table: float = setting(
        0.8,
        "new class: least part recognised by just its class table, if there is one, as at sites without it",
        least=0,
        most=1,
    )
    most_drop: float = setting(
        5.0, "points by which the recall of an old class may fall, over all sites or without any one", least=0, most=100
    )
    most_site_drop: float = setting(
        5.0, "points by which the accuracy on old classes may fall at any site", least=0, most=100
    )
    slack: int = setting(
        1, "held-back inputs that may be lost whatever the points: with few, one is many points", least=0
    )
    most_ece_rise: float = setting(
        0.1, "rise of the expected calibration error, over all sites or without any one", least=0, most=1
    )
    least_unknown: float = setting(
        0.7,
        "least area under the ROC curve of unknown against known, the new class hidden, at each site",
        least=0,
        most=1,
    )
    quorum: float = setting(
        0.5, "least part of the campaign's sites that must judge, and never fewer than 2", least=0, most=1
    )


class Sections:
    """A frozen dataclass whose fields are sections: frozen dataclasses of settings. Raises SettingsError when built
    with a value out of range."""

    def __post_init__(self) -> None:
        for key, value, limits in _walk(self):
            _check(key, value, limits)

    @classmethod
    def from_flat(cls, flat: Mapping[str, Value]) -> Self:
        """Build settings from ``section.key`` values; what is not given keeps its default.

        Raises:
            SettingsError: for an unknown key (the nearest valid one is named), a value of the
                wrong type, or one out of range.
        """
        return cls().with_values(flat)

    def with_values(self, flat: Mapping[str, Value]) -> Self:
        """Return these settings with some values replaced. Raises SettingsError like ``from_flat``."""
        valid = flatten(self)
        changes: dict[str, dict[str, Value]] = {}
        for key, value in flat.items():
            if key not in valid:
                raise SettingsError(f"unknown setting {key!r}; the nearest valid one is {nearest(key, valid)!r}")
            section, name = key.split(".", 1)
            changes.setdefault(section, {})[_attribute(name)] = _typed(key, value, valid[key])
        sections = {s: dataclasses.replace(getattr(self, s), **c) for s, c in changes.items()}
        return dataclasses.replace(self, **sections)  # type: ignore[type-var]


@dataclass(frozen=True)
class Settings(Sections):
    """All settings of a run. Raises SettingsError at construction when they contradict each other."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    episode: EpisodeSettings = EpisodeSettings()
    model: ModelSettings = ModelSettings()
    inner: InnerLoop = InnerLoop()
    adapt: AdaptSettings = AdaptSettings()
    outer: OuterSettings = OuterSettings()
    judge: JudgeSettings = JudgeSettings()
    campaign: CampaignSettings = CampaignSettings()
    gate: GateSettings = GateSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, limits in _walk_part("adapt", self.adaptation):
            _check(key, value, limits)
        self._check_data()
        if self.judge.transductive and self.model.normalisation != "batch":
            raise SettingsError(
                "judge.transductive is on but model.normalisation is 'frozen', where queries never share "
                "statistics; set model.normalisation = 'batch' or leave judge.transductive off"
            )
        for section, loop in (("inner", self.inner), ("adapt", self.adaptation)):
            if loop.views > 1 and loop.augment == "none":
                raise SettingsError(
                    f"{section}.views is {loop.views} but {section}.augment is 'none', so the copies would be "
                    f"identical; set {section}.augment or leave {section}.views at 1"
                )
        if ":" not in self.model.network and self.model.network not in NETWORKS:
            raise SettingsError(
                f"model.network is {self.model.network!r}; it must be 'omniglot' or 'texture' (images), 'mlp' (vectors "
                "and tables) or 'module:function' naming a function that is installed at every site"
            )
        network = self.model.network
        if network in {"mlp", "texture"} and min(self.inner.batch_size, self.adaptation.batch_size) < 2:
            raise SettingsError(
                f"inner.batch-size is 1, of which {network!r} takes no statistics; it must be at least 2"
            )
        layer_step_size(self.outer.layer_step_sizes, "")

    def _check_data(self) -> None:
        data = self.data
        if data.kind == "table" and not parse_columns(data.columns):
            raise SettingsError(
                "data.kind is 'table' but data.columns is empty; name the columns that are inputs, such as "
                "data.columns = 'age, sex=0|1' ('fedreptile-site columns' proposes a line)"
            )
        if data.kind == "table" and data.label in (column.name for column in parse_columns(data.columns)):
            raise SettingsError(
                f"data.columns names {data.label!r}, which is the class (data.label); take it out of the inputs"
            )
        if data.kind == "image":
            return
        unused = {"channels": 1, "bits": 8, "white": 0.0, "invert": False}
        if idle := [name for name, default in unused.items() if getattr(data, name) != default]:
            raise SettingsError(f"data.{idle[0]} is set, which is for images, but data.kind is {data.kind!r}; leave it")
        for key, on in (
            ("data.rotated-classes", data.rotated_classes),
            ("data.beside", bool(data.beside)),
            ("inner.augment", self.inner.augment != "none"),
            ("adapt.augment", self.adaptation.augment != "none"),
        ):
            if on:
                raise SettingsError(f"{key} is set, which is for images, but data.kind is {data.kind!r}; leave it off")

    @property
    def adaptation(self) -> InnerLoop:
        """The inner loop for judging and for a site's own model: [inner], changed by [adapt]."""
        given = {key: value for key, value in vars(self.adapt).items() if value not in (-1, "")}
        return dataclasses.replace(self.inner, **given)


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return the valid key that is most like the one given."""
    return difflib.get_close_matches(key, list(valid), n=1, cutoff=0)[0]


def flatten(settings: Sections) -> dict[str, Value]:
    """Return all values under their keys: the inverse of ``Settings.from_flat``."""
    return {key: value for key, value, _ in _walk(settings)}


def meanings(settings: Sections) -> dict[str, str]:
    """Return what each setting means, by its key."""
    return {key: limits["meaning"] for key, _, limits in _walk(settings)}


def as_toml(settings: Sections, without: Collection[str] = ()) -> str:
    """Return settings as a file that ``read_toml`` takes, each with its meaning; some keys may be left out."""
    lines: list[str] = []
    for key, value, limits in _walk(settings):
        section, name = key.split(".", 1)
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"]
        if key not in without:
            # Of the values that settings can hold, JSON writes each as TOML does.
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}  # {limits['meaning']}")
    return "\n".join(lines[1:]) + "\n"


def read_toml(path: Path) -> dict[str, Value]:
    """Read a settings file into ``section.key`` values.

    Raises:
        SettingsError: if the file cannot be read or is not TOML of one level of sections.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes with ">"
        return parse_toml(content.decode("utf-16" if utf16 else "utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from error


def parse_toml(text: str, name: str) -> dict[str, Value]:
    """Parse the text of a settings file, which errors call by its name. Raises SettingsError like ``read_toml``."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"settings file {name} is not valid TOML: {error}") from error
    if loose := [key for key, value in tree.items() if not isinstance(value, dict)]:
        raise SettingsError(f"settings file {name}: {loose[0]!r} stands outside a [section]")
    values = {f"{section}.{key}": value for section, keys in tree.items() for key, value in keys.items()}
    if deep := [key for key, value in values.items() if not isinstance(value, bool | int | float | str)]:
        raise SettingsError(
            f"settings file {name}: {deep[0]!r} is a {type(values[deep[0]]).__name__}; it must be a value"
        )
    return values


def parse_assignments(assignments: Iterable[str]) -> dict[str, Value]:
    """Parse ``key=value`` words of a command line; a value that is not TOML counts as text.

    Raises:
        SettingsError: if a word has no ``=``.
    """
    values: dict[str, Value] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise SettingsError(f"{word!r} is not of the form key=value, such as inner.steps=5")
        try:
            values[key.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def layer_step_size(factors: str, name: str) -> float:
    """Return the factor of ``outer.layer-step-sizes`` for a param: the last pattern that fits wins."""
    found = 1.0
    for word in factors.split():
        pattern, equals, number = word.partition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = -1.0
        if not equals or not pattern or not 0 <= factor < float("inf"):
            raise SettingsError(f"outer.layer-step-sizes: {word!r} is not PATTERN=FACTOR with a factor of 0 or more")
        if fnmatch.fnmatchcase(name, pattern):
            found = factor
    return found


def _walk(settings: Sections) -> Iterable[tuple[str, Value, Mapping[str, Any]]]:
    for section in dataclasses.fields(settings):  # type: ignore[arg-type]
        yield from _walk_part(section.name, getattr(settings, section.name))


def _walk_part(section: str, part: Any) -> Iterable[tuple[str, Value, Mapping[str, Any]]]:
    for item in dataclasses.fields(part):
        yield f"{section}.{item.name.rstrip('_')}".replace("_", "-"), getattr(part, item.name), item.metadata


def _attribute(name: str) -> str:
    """Return the field of a setting; one that is a word of Python ends in an underscore."""
    return f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")


def _typed(key: str, value: Value, default: Value) -> Value:
    kind = type(default)
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise SettingsError(f"setting {key} is a number of {value.bit_length()} bits; it must fit into 64")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise SettingsError(f"setting {key} is {value!r}; it must be {names[kind]}")
    return value


def _check(key: str, value: Value, limits: Mapping[str, Any]) -> None:
    least, most, choices = limits["least"], limits["most"], limits["choices"]
    if choices is not None and value not in choices:
        raise SettingsError(f"setting {key} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"setting {key} is {value}; it must be a finite number")
    if least is not None and value < least:
        raise SettingsError(f"setting {key} is {value}; it must be at least {least}")
    if most is not None and value > most:
        raise SettingsError(f"setting {key} is {value}; it must be at most {most}")
