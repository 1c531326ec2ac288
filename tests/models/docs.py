"""Writes the tables of docs/models.md from the registry and from what the tests are run with.

    python -m tests.models.docs

What is outside of the markers is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from octavo.models.registry import ARCHITECTURES, POOLING
from tests.builders import FAMILIES
from tests.engine import conftest as parity
from tests.engine import test_families as engine
from tests.models.cases import CASES, FUSED, HALVES, OLD_CONFIGS, SCALINGS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- the table is written by tests/models/docs.py -->\n", "<!-- end of the table -->\n"
HEAD = (
    "| `architectures` in config.json | models | differs from Llama in | logits equal | and |\n|---|---|---|---|---|\n"
)
POOLING_BEGIN = "<!-- and so is this one -->\n"
POOLING_END = "<!-- end of it -->\n"
POOLING_HEAD = "| `architectures` in config.json | models | differs from BERT in, or has on top |\n|---|---|---|\n"
# Tested as another architecture, in a config that gives this name.
RENAMED = {
    changes["architectures"][0]: case for case, (*_, changes) in OLD_CONFIGS.items() if "architectures" in changes
}
WAYS = {
    "engine": {*parity.FAMILIES, *engine.FAMILIES},
    "kernels": {CASES[case][0] for case in FUSED},
    "bf16": set(HALVES),
    "old configs": set(OLD_CONFIGS) - set(RENAMED.values()),
}


def tested(architecture: str) -> str:
    """The table's last two columns."""
    if architecture in RENAMED:
        return f"`{RENAMED[architecture]}`, renamed |"
    families = {family for family, (_, model) in FAMILIES.items() if model == architecture}
    scalings = {f"llama-{name}" for name in SCALINGS}
    cases = [case for case, (family, _) in CASES.items() if family in families]
    assert cases, f"no case of tests/models/cases.py is of {architecture}"
    named = ", ".join(f"`{case}`" for case in cases if case not in scalings)
    scaled = f", {len(scalings)} RoPE scalings" if scalings & set(cases) else ""
    return f"{named}{scaled} | {', '.join(way for way, having in WAYS.items() if families & having)}"


def table() -> str:
    rows = sorted(ARCHITECTURES.items(), key=lambda item: item[0].lower())
    return HEAD + "".join(f"| `{name}` | {a.models} | {a.differs} | {tested(name)} |\n" for name, a in rows)


def pooling_table() -> str:
    rows = sorted(POOLING.items(), key=lambda item: item[0].lower())
    return POOLING_HEAD + "".join(f"| `{name}` | {a.models} | {a.differs} |\n" for name, a in rows)


def page(text: str) -> str:
    """The text of docs/models.md with the tables that it should have."""
    for begin, end, found in ((BEGIN, END, table()), (POOLING_BEGIN, POOLING_END, pooling_table())):
        before, rest = text.split(begin)
        text = f"{before}{begin}{found}{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
