"""The page's settings in its address, so that a link brings them back: queries, model, verifier, its weight, what is compared, the example.

Uploads are no part of it: they are the visitor's own. A link comes from anybody, so a value that the page could not have written is passed
over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import parse_qs

from qamdetr.errors import QamDetrError
from qamdetr.ui.ablations import TABLE_ROWS, components
from qamdetr.ui.queries import checked_queries

MAX_LINK_CHARACTERS = 4000
"""Longest text of queries that goes into the address; browsers and proxies cut longer ones."""

_READ_CHARACTERS, _READ_FIELDS = 65536, 200

_QUERY, _MODEL, _VERIFIER, _BETA, _OFF, _ROW, _EXAMPLE = "q", "model", "verifier", "beta", "off", "row", "example"
_NAMES = (_QUERY, _MODEL, _VERIFIER, _BETA, _OFF, _ROW, _EXAMPLE)


@dataclass(frozen=True)
class PageSettings:
    """What a link says; None or empty where it says nothing, or nothing that can be used.

    Attributes:
        queries: One per line.
        model: Name or folder of an offered model.
        verifier: Name of an offered verifier.
        beta: Its weight, in [0, 1].
        off: Components to leave out.
        rows: Numbers of rows of Table 1 to compare with.
        example: Stem of the example's file.
    """

    queries: str = ""
    model: str | None = None
    verifier: str | None = None
    beta: float | None = None
    off: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    example: str | None = None


@dataclass(frozen=True)
class Offers:
    """What can be chosen on the page: models (the usual one first), verifiers (likewise), and stems of the examples' files."""

    models: Collection[str]
    verifiers: Collection[str]
    examples: Collection[str]


def read_link(search: str, offers: Offers) -> PageSettings:
    """Read the settings out of an address.

    Args:
        search: The address from its question mark on.
        offers: What can be chosen.
    """
    try:
        given = parse_qs((search or "").lstrip("?")[:_READ_CHARACTERS], max_num_fields=_READ_FIELDS)
    except ValueError:
        return PageSettings()
    model = _one_of(given.get(_MODEL), offers.models)
    verifier = _one_of(given.get(_VERIFIER), offers.verifiers)
    known = components(model or next(iter(offers.models), ""), verifier or "none")
    off = given.get(_OFF, [])
    rows = given.get(_ROW, [])
    return PageSettings(
        queries=_queries(given.get(_QUERY, [])),
        model=model,
        verifier=verifier,
        beta=_share(given.get(_BETA)),
        off=tuple(name for _, name in known if name in off),
        rows=tuple(row.number for row in TABLE_ROWS if str(row.number) in rows),
        example=_one_of(given.get(_EXAMPLE), offers.examples),
    )


def writing_script(first_model: str) -> str:
    """Make the browser's function that writes the settings into the address, without loading the page anew.

    It takes the queries, model, verifier, weight, components left out, rows and example. What is as on a fresh page stays out, and other
    parameters of the address (such as the theme's) stay in.

    Args:
        first_model: The model that the page starts with.
    """
    return (
        """(queries, model, verifier, beta, off, rows, example) => {
  const address = new URL(window.location.href);
  const names = NAMES;
  for (const name of names) address.searchParams.delete(name);
  const add = (name, value) => address.searchParams.append(name, String(value));
  const text = String(queries ?? "");
  if (text.length <= LONGEST) for (const line of text.split("\\n")) if (line.trim()) add(names[0], line.trim());
  if (model && model !== FIRST) add(names[1], model);
  if (verifier && verifier !== "none") {
    add(names[2], verifier);
    add(names[3], Number(beta).toFixed(2));
  }
  for (const name of off ?? []) add(names[4], name);
  for (const number of rows ?? []) add(names[5], number);
  if (example) add(names[6], example);
  window.history.replaceState(window.history.state, "", address);
}""".replace("NAMES", json.dumps(_NAMES))
        .replace("LONGEST", str(MAX_LINK_CHARACTERS))
        .replace("FIRST", json.dumps(first_model))
    )


COPY_SCRIPT = """async () => {
  const text = window.location.href;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers without a secure address, or inside a frame, have no clipboard of that kind.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (!copied) return "Copy it from the address bar";
  }
  return "Link copied";
}"""
"""Copies the page's address; returns what the button then says."""


def pause_script(label: str, seconds: float = 2.0) -> str:
    """Make the browser's function that gives the button its `label` back after a while."""
    return f"() => new Promise((done) => setTimeout(() => done({json.dumps(label)}), {round(1000 * seconds)}))"


def _queries(lines: list[str]) -> str:
    text = "\n".join(" ".join(line.split()) for line in lines)
    try:
        return "\n".join(checked_queries(text)) if len(text) <= MAX_LINK_CHARACTERS else ""
    except QamDetrError:
        return ""


def _one_of(values: list[str] | None, known: Collection[str]) -> str | None:
    return values[0] if values and values[0] in known else None


def _share(values: list[str] | None) -> float | None:
    try:
        number = float(values[0]) if values else math.nan
    except ValueError:
        return None
    return round(number, 2) if 0 <= number <= 1 else None
