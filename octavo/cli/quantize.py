"""`octavo quantize`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from octavo.cli.flags import number


def add_quantize(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser(
        "quantize", help="a compressed-tensors checkpoint of a model, for this and other engines"
    )
    parser.add_argument("model", metavar="MODEL", help="Hugging Face id or a folder")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    add = parser.add_argument
    add("--scheme", required=True, metavar="NAME", help="fp8-dynamic, fp8, int8, w8a16, w4a16 (the same as int4)")
    add("--method", default="rtn", metavar="NAME", help="rtn rounds to nearest; gptq calibrates (default: rtn)")
    add(
        "--group-size", type=number, default=128, metavar="N", help="columns that share a scale in w4a16 (default: 128)"
    )
    add("--symmetric", action=argparse.BooleanOptionalAction, default=True, help="(default: on)")
    add("--asymmetric", action="store_false", dest="symmetric", help="with zero points: for w4a16 and w8a16")
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="text for gptq and fp8: .jsonl of `text` or `messages`, or .txt",
    )
    add("--samples", type=number, default=128, metavar="N", help="pieces of it at most (default: 128)")
    add("--length", type=number, default=2048, metavar="N", help="tokens of a piece (default: 2048)")
    add(
        "--act-order",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="gptq rounds the columns that matter most first (default: on)",
    )
    add("--dampening", type=float, default=0.01, metavar="X", help="of gptq (default: 0.01)")
    add("--ignore", action="append", default=[], metavar="PATTERN", help="modules that stay: names, endings, or re:…")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    add("--revision", metavar="NAME", help="of a Hugging Face id")
    add("--overwrite", action="store_true", help="OUT may have a model already")
    parser.set_defaults(action=_quantize)


def _quantize(options: argparse.Namespace) -> int:
    from octavo.core.hub import resolve_model
    from octavo.quantize.recipe import Recipe, find_scheme
    from octavo.quantize.run import quantize_folder

    recipe = Recipe(
        find_scheme(options.scheme),
        options.method,
        options.group_size,
        options.symmetric,
        options.act_order,
        options.dampening,
        options.samples,
        options.length,
        tuple(options.ignore),
    )
    report = quantize_folder(
        resolve_model(options.model, options.revision),
        Path(options.out).expanduser(),
        recipe,
        calibration=options.calibration,
        device=options.device,
        overwrite=options.overwrite,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    reasons = sorted(set(report.plain.values()))
    kept = "; ".join(f"{sum(why == reason for why in report.plain.values())}: {reason}" for reason in reasons)
    print(f"{len(report.rounded)} matrices are rounded, {len(report.plain)} stay as they are ({kept})")
    print(f"{options.out}: {report.bytes_after / 2**20:.1f} MiB of weights, {report.bytes_before / 2**20:.1f} before")
    return 0
