"""The page's settings in its address, so that a link brings them back: queries, model, verifier, its weight, what is compared, the example.

Uploads are no part of it: they are the visitor's own. A link comes from anybody, and from pages that had other models, so what cannot be
used is passed over; the page says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from qamdetr.errors import QamDetrError
from qamdetr.ui.ablations import components, table_rows
from qamdetr.ui.queries import checked_queries

MAX_LINK_CHARACTERS = 4000
"""Longest text of queries that goes into the address; browsers and proxies cut longer ones."""

_READ_CHARACTERS, _READ_FIELDS = 65536, 200
_MAX_LISTED, _MAX_TOLD = 8, 60
"""Mistakes that a warning lists, and characters that it quotes of each."""

_QUERY, _MODEL, _VERIFIER, _BETA, _OFF, _ROW, _EXAMPLE = "q", "model", "verifier", "beta", "off", "row", "example"
_NAMES = (_QUERY, _MODEL, _VERIFIER, _BETA, _OFF, _ROW, _EXAMPLE)

_WEIGHT_OF = (Path(__file__).parent / "weight.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class PageSettings:
    """What a link says; None or empty where it says nothing, or nothing that can be used.

    Attributes:
        queries: One per line.
        model: Name of an offered model.
        verifier: Name of an offered verifier.
        beta: Its weight, in [0, 1].
        off: Components to leave out.
        rows: Numbers of rows of Table 1 to compare with.
        example: Stem of the example's file.
        passed_over: What the link asks for and the page cannot do, each with what is used in its place.
    """

    queries: str = ""
    model: str | None = None
    verifier: str | None = None
    beta: float | None = None
    off: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    example: str | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """One line about all that was passed over; empty where nothing was."""
        if not self.passed_over:
            return ""
        told = "; ".join(self.passed_over[:_MAX_LISTED])
        more = len(self.passed_over) - _MAX_LISTED
        return (
            f"This link asks for what is not here: {told}{f'; and {more} more' if more > 0 else ''}. The address now says what is in use: "
            "choose something else on the page, or ask whoever sent the link for a new one."
        )


@dataclass(frozen=True)
class Offers:
    """What can be chosen on the page.

    Attributes:
        models: Name -> folder, the usual one first; see `SharedRetriever.models`.
        verifiers: The usual one first.
        examples: Stems of the examples' files.
    """

    models: Mapping[str, str]
    verifiers: Collection[str]
    examples: Collection[str]


def read_link(search: str, offers: Offers) -> PageSettings:
    """Read the settings out of an address."""
    try:
        given = parse_qs((search or "").lstrip("?")[:_READ_CHARACTERS], max_num_fields=_READ_FIELDS)
    except ValueError:
        return PageSettings(passed_over=(f"more than {_READ_FIELDS} settings (none of them is used)",))
    usual = next(iter(offers.models), "")
    model = _first_known(given, _MODEL, offers.models)
    verifier = _first_known(given, _VERIFIER, offers.verifiers)
    beta = _share(given.get(_BETA))
    example = _first_known(given, _EXAMPLE, offers.examples)
    known = [name for _, name in components(offers.models.get(model or usual, usual), verifier or "none")]
    numbers = {str(row.number): row.number for row in table_rows(offers.models)}
    off, rows = given.get(_OFF, []), given.get(_ROW, [])
    queries, mistake = _queries(given.get(_QUERY, []))
    passed_over = [
        *([f"what comes after {_READ_CHARACTERS} characters (it is not read)"] if len(search or "") > _READ_CHARACTERS else []),
        *([f"its queries ({mistake})"] if mistake else []),
        *(f"model {value} ({usual} is used)" for value in _missed(model, given, _MODEL)),
        *(f"verifier {value} (none is used)" for value in _missed(verifier, given, _VERIFIER)),
        *(f"weight {value}, which is no number from 0 to 1 (the model's own is used)" for value in _missed(beta, given, _BETA)),
        *(f"leaving out {_quoted(name)} (the model in use has no such part)" for name in dict.fromkeys(off) if name not in known),
        *(f"row {_quoted(row)} of Table 1 (it is not compared with)" for row in dict.fromkeys(rows) if row not in numbers),
        *(f"example {value} (no recording is open)" for value in _missed(example, given, _EXAMPLE)),
    ]
    return PageSettings(
        queries=queries,
        model=model,
        verifier=verifier,
        beta=beta,
        off=tuple(name for name in known if name in off),
        rows=tuple(number for text, number in numbers.items() if text in rows),
        example=example,
        passed_over=tuple(passed_over),
    )


def writing_script(first_model: str) -> str:
    """Make the browser's function that writes the settings into the address, without loading the page anew.

    It takes the queries, model, verifier, weight, components left out, rows and example. What is as on a fresh page stays out, and other
    parameters of the address (such as the theme's) stay in; so does the last weight while the box for it is empty.

    Args:
        first_model: The model that the page starts with.
    """
    return (
        """(queries, model, verifier, beta, off, rows, example) => {
  WEIGHT_OF
  const address = new URL(window.location.href);
  const names = NAMES;
  const weight = weightOf(beta, weightOf(address.searchParams.get(names[3]), null));
  for (const name of names) address.searchParams.delete(name);
  const add = (name, value) => address.searchParams.append(name, String(value));
  const text = String(queries ?? "");
  if (text.length <= LONGEST) for (const line of text.split("\\n")) if (line.trim()) add(names[0], line.trim());
  if (model && model !== FIRST) add(names[1], model);
  if (verifier && verifier !== "none") {
    add(names[2], verifier);
    if (weight !== null) add(names[3], weight.toFixed(2));
  }
  for (const name of off ?? []) add(names[4], name);
  for (const number of rows ?? []) add(names[5], number);
  if (example) add(names[6], example);
  window.history.replaceState(window.history.state, "", address);
}""".replace("WEIGHT_OF", _WEIGHT_OF)
        .replace("NAMES", json.dumps(_NAMES))
        .replace("LONGEST", str(MAX_LINK_CHARACTERS))
        .replace("FIRST", json.dumps(first_model))
    )


def weight_script() -> str:
    """Make the browser's function that says what a box for the weight shows once it is left: what the address holds, where it is empty."""
    return f"(beta) => {{ {_WEIGHT_OF} return weightOf(beta, weightOf(new URLSearchParams(window.location.search).get({_BETA!r}), 0)); }}"


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


def _queries(lines: list[str]) -> tuple[str, str]:
    """Return the queries, one per line, and what is wrong with them where they cannot be used."""
    text = "\n".join(" ".join(line.split()) for line in lines)
    if not text.strip():
        return "", ""
    if len(text) > MAX_LINK_CHARACTERS:
        return "", f"they have {len(text)} characters; a link holds {MAX_LINK_CHARACTERS}"
    try:
        return "\n".join(checked_queries(text)), ""
    except QamDetrError as error:
        return "", str(error).rstrip(".")


def _first_known(given: Mapping[str, list[str]], name: str, known: Collection[str]) -> str | None:
    values = given.get(name)
    return values[0] if values and values[0] in known else None


def _missed(used: object, given: Mapping[str, list[str]], name: str) -> list[str]:
    return [_quoted(given[name][0])] if used is None and name in given else []


def _quoted(value: str) -> str:
    text = " ".join(value.split())
    return f"“{text if len(text) <= _MAX_TOLD else text[: _MAX_TOLD - 1] + '…'}”"


def _share(values: list[str] | None) -> float | None:
    try:
        number = float(values[0]) if values else math.nan
    except ValueError:
        return None
    return round(number, 2) if 0 <= number <= 1 else None
