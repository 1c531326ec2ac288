"""Lists that are read page by page, as OpenAI's clients do: `after` an id, at most `limit`."""

from __future__ import annotations

from typing import Any

from octavo.core.errors import RequestError
from octavo.server.fields import decimal
from octavo.server.http import Exchange


def page(exchange: Exchange, items: list[Any], kind: Any, most: int = 100) -> Any:
    """The part of a list that the query asks for, as `kind(items, first id, last id, whether there are more)`."""
    limit, after = exchange.query.get("limit", "20" if most == 100 else str(most)), exchange.query.get("after")
    size = decimal(limit, 1, most)
    if size is None:
        raise RequestError(f"limit must be in [1, {most}].", "limit")
    if exchange.query.get("order", "desc") not in ("asc", "desc"):
        raise RequestError("order must be asc or desc.", "order")
    ids = [item["id"] if isinstance(item, dict) else item.id for item in items]
    if after is not None and after not in ids:
        raise RequestError("after must be the id of an item of the list.", "after")
    start = 0 if after is None else ids.index(after) + 1
    end = start + size
    shown = ids[start:end]
    return kind(items[start:end], shown[0] if shown else None, shown[-1] if shown else None, end < len(items))
