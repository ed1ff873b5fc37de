"""What the visitor typed: one query per line, each checked; a mistake names its line and nothing is cut silently."""

from __future__ import annotations

from qamdetr.errors import ConfigError, QamDetrError

MAX_QUERIES = 8
MAX_QUERY_CHARACTERS = 500


def checked_query(query: str) -> str:
    """Strip a query.

    Raises:
        ConfigError: Empty or too long.
    """
    query = (query or "").strip()
    if not query:
        raise ConfigError("The query is empty; say what to look for, such as “a dog barks twice”.")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ConfigError(f"The query has {len(query)} characters; the limit is {MAX_QUERY_CHARACTERS}; say it in one sentence.")
    return query


def checked_queries(text: str) -> list[str]:
    """Split what was typed into queries, one per line; empty lines are passed over, and a query that comes again counts once.

    Raises:
        ConfigError: Nothing but blanks, over `MAX_QUERIES` lines, or a line that is too long; names the line.
    """
    lines = [(number, line.strip()) for number, line in enumerate((text or "").splitlines(), start=1) if line.strip()]
    if len(lines) <= 1:
        return [checked_query(text)]
    if len(lines) > MAX_QUERIES:
        raise ConfigError(
            f"There are {len(lines)} lines, and each is a query of its own; the limit is {MAX_QUERIES}; ask the rest afterwards."
        )
    return list(dict.fromkeys(_checked_line(number, line) for number, line in lines))


def _checked_line(number: int, line: str) -> str:
    try:
        return checked_query(line)
    except QamDetrError as error:
        raise ConfigError(f"Line {number}: {error}") from error
