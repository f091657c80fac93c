"""Every message of a deployment stands in docs/troubleshooting.md as it is shown, with '…' for what varies."""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import ErrorCode

from client.door.outbound import POLICY_ERROR, SITE_ERROR
from client.relay import way
from common import errors
from common.errors import CLAUSES, FedreptileError, PolicyRefusal

ROOT = Path(__file__).resolve().parents[1]
DOC = ROOT / "docs" / "troubleshooting.md"
PLACES = (
    *("client/check", "client/door", "client/enrolment", "client/relay", "client/service", "client/worker"),
    *("client/adoption", "client/line", "common/releases", "server/releases", "common/pages", "server/pages"),
    *("common/deployment", "common/trust", "server/campaigns", "server/enrolment", "server/gateway", "server/service"),
    *("client/home.py", "common/messages.py", "server/app.py", "server/collect.py", "server/home.py"),
    *("server/reptile.py", "server/roster.py", "server/rounds.py", "server/trust.py"),
)
VARIES = "…"
CAUSE_AT = {"UpdateError": 0, "SealError": 0, "UnavailableError": 0, "PolicyRefusal": 0, "RefusedError": 1, "_need": 1}
"""What is raised under a short word, which is counted and shown first -> the place of that word."""
TEXT_AT = {"TroubleError": 1, "Broken": 2, "problem": 1, "warning": 1, "ValueError": 0, "TypeError": 0}
"""What else people read -> the place of the text; of all other errors it is the first."""
LOGGED = frozenset({"warning", "error", "critical", "exception"})
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LEAST = 6
"""Letters that a text must have to be looked for."""


def files() -> list[Path]:
    return sorted(file for place in PLACES for file in (*(ROOT / place).glob("*.py"), ROOT / place) if file.is_file())


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def kinds() -> frozenset[str]:
    """Return the names of all errors that people are meant to read."""
    found = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FedreptileError)}
    for file in files():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id in found for b in node.bases):
                found.add(node.name)
    return frozenset(found)


def texts(node: ast.expr, scope: ast.AST) -> Iterator[str]:
    """Yield what an expression may come to, with '…' for what varies; nothing for one that is no text."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else VARIES for one in values)
        case ast.BinOp(left=left, op=ast.Add()):
            yield from (f"{text}{VARIES}" for text in texts(left, scope))
        case ast.IfExp(body=body, orelse=other):
            yield from (*texts(body, scope), *texts(other, scope))
        case ast.Call(func=ast.Attribute(value=value, attr="format" | "replace")):
            yield from (re.sub(r"\{\w*\}", VARIES, text) for text in texts(value, scope))
        case ast.Name(id=name):
            for found in assigned(name, scope):
                yield from texts(found, scope)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name.startswith("_"):
            for found in returned(name):
                yield from texts(found, scope)
        case _:
            return


def assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """Yield what a function gives to one of its names."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                yield from (value for one, value in pairs if isinstance(one, ast.Name) and one.id == name)


@cache
def returned(name: str) -> tuple[ast.expr, ...]:
    """Return what the functions of a name give back."""
    functions = [node for file in files() for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef)]
    bodies = [ast.walk(node) for node in functions if node.name == name]
    return tuple(one.value for body in bodies for one in body if isinstance(one, ast.Return) and one.value)


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def said(node: ast.AST, scope: ast.AST, file: Path) -> Iterator[str]:
    """Yield the texts that a call, or a pair of cause and fix in 'check', shows to people."""
    checks = file.parent.name == "check"
    match node:
        case ast.Call(keywords=options) if called(node) == "update_run":
            yield from (text for one in options if one.arg == "reason" for text in texts(one.value, scope))
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=attr), args=[first, *_]) if attr in LOGGED:
            yield from (re.sub(r"%\.?[0-9]*[sdrfg]", VARIES, text) for text in texts(first, scope))
        case ast.Call(args=args) if called(node) in kinds() | TEXT_AT.keys() and called(node) not in CAUSE_AT:
            place = TEXT_AT.get(called(node), 0)
            if called(node) not in ("problem", "warning") or checks:
                yield from (text for one in args[place : place + 1] for text in texts(one, scope))
        case ast.Tuple(elts=elements) if checks:
            found = [text for one in elements if not isinstance(one, ast.Name) for text in texts(one, scope)]
            yield from (text for text in found[:1] if " " in text and len(elements) > 1)
        case _:
            return


def causes(node: ast.AST, scope: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and called(node) in CAUSE_AT:
        for one in node.args[CAUSE_AT[called(node)] :][:1]:
            yield from texts(one, scope)


def plain(text: str) -> str:
    """Return a text up to what follows a semicolon, which is advice, in one line."""
    cause = re.sub(r"\s+", " ", re.sub(r"\{\w*\}", VARIES, text)).partition("; ")[0].strip()
    return re.sub(f"{VARIES}+", VARIES, cause)


@cache
def messages() -> dict[str, str]:
    """Return all messages and causes -> where the first of each stands."""
    found: dict[str, str] = {}
    for file in files():
        tree = tree_of(file)
        functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
        rest = [node for node in tree.body if not isinstance(node, (*FUNCTIONS, ast.ClassDef))]
        for scope in (*functions, *rest):
            for node in ast.walk(scope):
                where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                for text in said(node, scope, file):
                    if len(re.findall("[a-z]", plain(text))) >= LEAST:
                        found.setdefault(plain(text), where)
                for cause in causes(node, scope):
                    found.setdefault(cause, where)
    return found


@cache
def page() -> str:
    return DOC.read_text(encoding="utf-8")


def spans(text: str) -> list[str]:
    """Return what stands between backticks."""
    return [re.sub(r"\s+", " ", span) for span in re.findall("`([^`]+)`", text)]


def rows() -> list[str]:
    """Return the first cells of the tables of messages."""
    tables = page()[page().index("\n## ") :]
    return [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| `")]


def test_every_message_of_the_code_is_in_the_table() -> None:
    assert len(messages()) > 300
    shown = frozenset(spans(page()))
    missing = [f"{where}: `{text}`" for text, where in messages().items() if text not in shown]
    assert not missing, "add to docs/troubleshooting.md:\n" + "\n".join(missing)


def test_every_row_of_the_table_is_about_something_that_the_code_says() -> None:
    sources = [
        file.read_text(encoding="utf-8")
        for top in ("client", "common", "server")
        for file in (ROOT / top).rglob("*.py")
    ]
    code = re.sub(r"\s+", " ", "\n".join(sources))
    for text in (span for cell in rows() for span in spans(cell)):
        parts = [part.strip() for part in text.split(VARIES)]
        assert text in messages() or all(part in code for part in parts), f"nothing says {text!r} any more"


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_clause_of_the_policy_stands_beside_what_the_operator_reads(clause: str) -> None:
    assert f"| `{clause}` | `{CLAUSES[clause]}` |" in page()


@pytest.mark.parametrize("name", sorted(kinds()))
def test_what_the_server_reads_of_an_error_of_a_site_is_there(name: str) -> None:
    kind = getattr(errors, name, None)
    if kind is None or kind in (FedreptileError, PolicyRefusal) or "public" not in vars(kind):
        assert kind is None or kind.public in spans(page()) or kind.public == PolicyRefusal.public
        return
    assert f"| `{name}` | `{kind.public}` |" in page()


@pytest.mark.parametrize(
    "kind", [httpx.ProxyError, httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
def test_every_cause_of_a_failing_network_is_there(kind: type[httpx.TransportError]) -> None:
    assert f"| `{way._unavailable(kind('x')).cause}` |" in page()


def test_every_code_of_an_error_reply_is_there() -> None:
    flower = {value for name, value in vars(ErrorCode).items() if name.isupper()}
    assert len(flower) == 9
    for code in flower | {SITE_ERROR, POLICY_ERROR}:
        assert f"\n| {code} | {'ours' if code >= SITE_ERROR else 'Flower'} |" in page()
