"""``fedreptile-site classify | label | adapt | rollback | history | ui``: what people at the line type.

What needs torch is imported when a command runs.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.home import SiteHome
from client.line.store import Entry, Store, store_of
from common.errors import CheckpointError, SettingsError
from common.settings import Value, parse_assignments

if TYPE_CHECKING:
    from client.line.learn import Learned
    from common.learning.judge import Judgement

console = Console(soft_wrap=True)

OUT = Path("site-model.safetensors")
SHOWN = 20
"""Changed pictures that are listed."""
DECISIONS = ("use", "discard", "campaign", "later")

Home = Annotated[Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")]


def classify(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, or files of rows or arrays like the site's own.")],
    model: Annotated[
        Path | None, typer.Option(help="A model's file; otherwise the one that the site has in use.")
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say what new pictures, rows or arrays show, each with its confidence, and UNKNOWN for what is like no class."""
    from client.data.indexed import as_input
    from client.data.sites import read_new
    from client.model import read_model
    from common.learning.threads import threads

    current = None if model else _in_use(SiteHome.of(home))
    loaded = read_model(current.path if current else model or OUT)
    found: list[dict[str, Any]] = []
    for path in inputs:
        names, values = read_new(path, loaded.settings.data)
        with threads(1):
            said = loaded.predict(as_input(values, loaded.standardisation))
        for name, one in zip(names, said, strict=True):
            if not as_json:
                print(f"{name}\t{one.name}\t{one.confidence:.1%}" + "\tUNKNOWN" * one.unknown)
            number = {"model": current.number} if current else {}
            found.append(
                {"input": name, "class": one.name, "confidence": one.confidence, "unknown": one.unknown, **number}
            )
    if as_json:
        print(json.dumps(found, indent=1))


def label(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures; they stay where they are, and are copied.")],
    name: Annotated[str, typer.Option("--as", help="The class that they show.")] = "",
    new: Annotated[bool, typer.Option("--new", help="The class is one that the site does not have yet.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the pictures' labels back.")] = False,
    home: Home = None,
) -> None:
    """Put pictures into the site's data, under their class; a model learns them with 'fedreptile-site adapt'."""
    from client.line.label import label as put
    from client.line.label import unlabel
    from client.line.learn import settings_at

    if remove == bool(name):
        raise SettingsError("give --as CLASS to label pictures, or --remove to take their labels back")
    site = SiteHome.of(home)
    data, settings = Path(site.config().data), settings_at(site).data
    done = unlabel(data, pictures, settings) if remove else put(data, pictures, name, settings, new=new)
    for one in done:
        what = "is labelled" if one.added else "is labelled already"
        console.print(Text(f"{one.picture}: {'is no longer' if remove else what} {one.name!r}"))


def adapt(  # noqa: PLR0913, PLR0917 - options of a command
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="The shared model: a run's folder, its checkpoint file, or a release; otherwise the one that the "
            "site's present model comes from."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Adapt to data alone, without a site's folder: class folders, a .csv table or an .npz file; the "
            "model goes to --out."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"With --data: where to write the model; otherwise {OUT}.")] = None,
    hold_back: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Part of each class kept to judge on; otherwise data.hold-back, or 0.3."),
    ] = None,
    others: Annotated[bool, typer.Option(help="Also recognise classes of other sites, if they let them out.")] = True,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps, instead of adapt.steps.")] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Adapt with another setting: key=value, such as adapt.learning-rate=0.1.")
    ] = [],  # noqa: B006 - typer copies it
    cache: Annotated[
        str, typer.Option(help="With --data: folder that keeps decoded pictures; empty: the data home's; 'off': none.")
    ] = "",
    home: Home = None,
    use: Annotated[bool, typer.Option("--use", help="Use the new model, without asking.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Throw it away, without asking.")] = False,
    ask_campaign: Annotated[
        str,
        typer.Option(metavar="CLASS", help="Ask the federation for a campaign in which all sites learn this class."),
    ] = "",
) -> None:
    """Adapt the shared model to all that the site has, show it beside the model in use, and decide on it."""
    changes = parse_assignments(assignments)
    if steps is not None:
        changes["adapt.steps"] = steps
    if data is not None:
        if checkpoint is None or home is not None or use or discard or ask_campaign:
            raise SettingsError(
                "--data adapts a CHECKPOINT without a site's folder and writes --out; leave it out to adapt the site's "
                "own model (--home, --use, --discard, --ask-campaign)"
            )
        _adapt_alone(checkpoint, data, out or OUT, changes, 0.3 if hold_back is None else hold_back, others, cache)
        return
    if out is not None or cache:
        raise SettingsError("--out and --cache go with --data; the site's folder keeps its models itself")
    if use and discard:
        raise SettingsError("--use and --discard exclude each other; give one of them")
    _adapt_here(SiteHome.of(home), checkpoint, changes, hold_back, others, _Wanted(use, discard, ask_campaign))


def rollback(
    to: Annotated[int, typer.Option(min=0, help="The number of a kept model; otherwise the one before.")] = 0,
    home: Home = None,
) -> None:
    """Go back to the model that was in use before, or to any that is kept: at once, and without the network."""
    store = store_of(SiteHome.of(home))
    entry = store.rollback(to, "by hand")
    console.print(Text(f"model {entry.number} is in use ({entry.about.made}, of {entry.about.when})"))


def history(home: Home = None, as_json: AsJson = False) -> None:
    """Show what happened to the site's models, and which are kept and can be gone back to."""
    store = store_of(SiteHome.of(home))
    current, kept = store.current(), {entry.number: entry for entry in store.entries()}
    events = store.history()
    if as_json:
        models = [{"number": one.number, **vars(one.about)} for one in kept.values()]
        print(json.dumps({"current": current.number if current else 0, "models": models, "events": events}, indent=1))
        return
    table = Table("when", "what", "model", "why", title="History", title_justify="left")
    for event in events:
        table.add_row(str(event.get("when")), event["what"], str(event["number"]), Text(str(event.get("why", ""))))
    console.print(table)
    table = Table("model", "made", "when", "classes", "held-back right", title="Kept", title_justify="left")
    for entry in kept.values():
        mark = " in use" if current and entry.number == current.number else ""
        about, figures = entry.about, entry.about.judgement
        right = f"{figures['right-after']} of {figures['held-back']}" if figures.get("held-back") else ""
        table.add_row(f"{entry.number}{mark}", about.made, about.when, str(len(about.classes)), right)
    console.print(table)


def ui(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0: any that is free.")] = 8765,
    watch: Annotated[
        Path | None,
        typer.Option(help="The folder whose newest pictures are shown; otherwise 'watched' in the site's folder."),
    ] = None,
    home: Home = None,
) -> None:
    """Serve the line's page on this machine: live predictions, labels, learning, before and after, history, going back;
    and POST /predict, GET /model and GET /healthz for programs that know the token."""
    from client.line.api import serve

    serve(SiteHome.of(home), port, lambda text: console.print(Text(text)), watch)


class _Wanted:
    """What the command line has decided beforehand."""

    def __init__(self, use: bool, discard: bool, campaign: str) -> None:
        self.use, self.discard, self.campaign = use, discard, campaign

    @property
    def decided(self) -> bool:
        return self.use or self.discard or bool(self.campaign)


def _in_use(site: SiteHome) -> Entry:
    current = store_of(site).current()
    if current is None:
        raise CheckpointError(
            f"no model is in use at {site.path}; make one with 'fedreptile-site adapt', or give --model FILE"
        )
    return current


def _adapt_alone(
    path: Path, data: Path, out: Path, changes: Mapping[str, Value], hold_back: float, others: bool, cache: str
) -> None:
    from client.check.data import list_skipped, open_shown
    from client.data.held import apart
    from client.line.learn import read_shared
    from client.model import adapt_site
    from common.learning.threads import threads

    found = read_shared(path)
    found = replace(found, settings=found.settings.with_values(changes))
    own = open_shown(data, found.settings.data, cache, console)
    list_skipped(own, console)
    train, held = apart(own, hold_back)
    with threads(1):
        model, judgement = adapt_site(found, train, held, others=others, standardisation=own.standardisation)
    model.write(out)
    console.print(_judged(judgement) if judgement.after.total else "no input was held back, so the model is not judged")
    if judgement.after.correct < judgement.before.correct:
        console.print("adaptation made it worse here: try gentler steps (--set adapt.learning-rate=0.01), or none")
    console.print(Text(f"model of {len(model.classes)} classes: {out}"))


def _adapt_here(
    site: SiteHome,
    checkpoint: Path | None,
    changes: Mapping[str, Value],
    hold_back: float | None,
    others: bool,
    wanted: _Wanted,
) -> None:
    from client.line.learn import learn

    if console.is_terminal:
        with console.status("adapting") as shown:
            found = learn(site, checkpoint, changes, hold_back, others=others, progress=shown.update)
    else:
        found = learn(site, checkpoint, changes, hold_back, others=others)
    show_learned(found)
    if not wanted.decided and sys.stdin.isatty() and console.is_terminal:
        wanted = _asked(found)
    _decide(store_of(site), found, wanted)


def _asked(found: "Learned") -> _Wanted:
    choice = typer.prompt("Use it, discard it, ask for a campaign, or later?", type=click.Choice(DECISIONS))
    name = ""
    if choice == "campaign":
        name = typer.prompt("Which class shall all sites learn?", type=click.Choice(sorted(found.samples)))
    return _Wanted(choice == "use", choice == "discard", name)


def _decide(store: Store, found: "Learned", wanted: _Wanted) -> None:
    number = found.entry.number
    if wanted.campaign and wanted.campaign not in found.samples:
        raise SettingsError(
            f"the site has no class {wanted.campaign!r} to ask a campaign for; it has {', '.join(found.samples)}"
        )
    if wanted.use:
        store.use(number, "by hand")
        console.print(Text(f"model {number} is in use; 'fedreptile-site rollback' goes back to {found.before}"))
    elif wanted.discard:
        store.discard(number, "by hand")
        console.print(f"model {number} is discarded; {found.before} stays in use")
    else:
        console.print(f"model {number} is kept and not in use; 'fedreptile-site rollback --to {number}' uses it")
    if wanted.campaign:
        store.wish(wanted.campaign, found.samples[wanted.campaign])
        console.print(Text(f"the federation is asked for a campaign for {wanted.campaign!r} at the next introduction"))


def show_learned(found: "Learned") -> None:
    """Print the new model beside the old one."""
    from common.learning.interval import FEW, wilson

    comparison = found.comparison
    before, after = comparison.old.per_class(), comparison.new.per_class()
    table = Table("class", "held back", f"right: {found.before}", f"right: model {found.entry.number}", "taken for")
    for name, (right, total) in sorted(after.items()):
        table.add_row(Text(name), str(total), str(before[name][0]), str(right), Text(_taken(comparison.new, name)))
    table.add_section()
    table.add_row(
        "all", str(comparison.new.total), f"{comparison.old.accuracy:.1%}", f"{comparison.new.accuracy:.1%}", ""
    )
    console.print(table if comparison.new.total else "no sample was held back, so the model is not judged on any")
    for name, (right, total) in comparison.left_out.items():
        low, high = wilson(right, total)
        proof = "little" if total < FEW else "some"
        console.print(
            Text(
                f"{name!r}: {right} of {total} are recognised by models adapted without them; with {total} samples the "
                f"true rate is between {low:.0%} and {high:.0%} (95 %), so this proves {proof}"
            )
        )
    for one in comparison.changed[:SHOWN]:
        verdict = "right now" if one.after == one.true else "wrong now" if one.before == one.true else "wrong still"
        console.print(Text(f"changed: {one.source}: {one.before} -> {one.after} ({verdict})"))
    if len(comparison.changed) > SHOWN:
        console.print(f"and {len(comparison.changed) - SHOWN} more that changed")
    if comparison.new.total:
        console.print(f"called unknown: {comparison.unknown[1]} of {comparison.new.total} held-back samples")
    console.print(Text(f"model {found.entry.number} of {len(found.model.classes)} classes in {found.seconds:.1f} s"))


def _taken(tally: Any, name: str) -> str:
    wrong = {said: count for (true, said), count in tally.confusion.items() if true == name != said}
    return ", ".join(f"{said} {count}" for said, count in sorted(wrong.items(), key=lambda one: (-one[1], one[0])))


def _judged(judgement: "Judgement") -> Table:
    table = Table("class", "held back", "right before", "right after", title="held-back inputs")
    before = judgement.before.per_class()
    for name, (correct, total) in sorted(judgement.after.per_class().items()):
        table.add_row(Text(name), str(total), str(before[name][0]), str(correct))
    table.add_section()
    table.add_row(
        "all", str(judgement.after.total), f"{judgement.before.accuracy:.1%}", f"{judgement.after.accuracy:.1%}"
    )
    return table


COMMANDS: Sequence[Any] = (classify, label, adapt, rollback, history, ui)
