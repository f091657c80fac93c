"""How pages write figures, and where their templates are."""

import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from simulations.report.recorded import folder_name


def environment() -> Environment:
    """Return what renders templates: everything is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=PackageLoader("simulations.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters |= {"percent": percent, "number": number, "size": size, "folder": folder_name}
    return made


def percent(share: float | None) -> str:
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%") if share is not None and math.isfinite(share) else "–"


def number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def size(count: float) -> str:
    """Return a number of bytes in the largest unit that fits."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{count:.0f}\N{NO-BREAK SPACE}bytes"
