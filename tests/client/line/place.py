"""A site's folder at a line: real digits, a model in use, and pictures of them."""

import json
from pathlib import Path

from client.home import SiteHome
from client.line.store import About, Entry, store_of
from client.model import SiteModel, adapt_site
from common.checkpoint import RunState, read_checkpoint, write_checkpoint
from common.learning.threads import threads
from common.plan import plan_for
from common.settings import Value
from tests.client.small import NumberedData, settings_with


def site_at(folder: Path, data: Path) -> SiteHome:
    """Return a site's folder that is in no federation."""
    home = SiteHome(folder / "site")
    home.path.mkdir(parents=True)
    home.config_file.write_text(f'name = "line-1"\ndata = {json.dumps(str(data))}\n', encoding="utf-8")
    return home


def checkpoint_in(folder: Path, **changes: Value) -> Path:
    """Return the folder of a run that has just begun."""
    settings = settings_with(**{"model__width": 16, **changes})
    plan = plan_for(settings)
    state = RunState(1, plan.initial, plan.initial_slots, {}, {})
    write_checkpoint(folder / "run" / "checkpoint.safetensors", state, settings)
    return folder / "run"


def model_of(checkpoint: Path, *names: str) -> SiteModel:
    """Return a model of classes whose pictures are grey."""
    with threads(1):
        return adapt_site(read_checkpoint(checkpoint), NumberedData(dict.fromkeys(names, 3)))[0]


def in_use(home: SiteHome, model: SiteModel, release: int = 0) -> Entry:
    store = store_of(home)
    return store.use(store.add(model, About(f"release {release}", release=release)).number)
