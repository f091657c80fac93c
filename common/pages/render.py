"""How templates become pages."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Return what renders the templates of a package, which extend 'layout.html'.

    Everything is escaped, and a name that is missing is an error.
    """
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("common.pages")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
