"""`octavo plan` and `octavo doctor`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from octavo.cli.flags import add_flags, add_foreign, number, read_flags
from octavo.core import foreign
from octavo.core.config import EngineConfig


def add_advice(commands: Any) -> None:
    """Registers both commands."""
    plan = commands.add_parser("plan", help="memory, context and speed of a model on a GPU, without either")
    plan.add_argument("model", nargs="?", metavar="MODEL", help="Hugging Face id, folder or shape (llama-3-8b)")
    group = plan.add_argument_group("plan")
    group.add_argument("--gpu", metavar="NAME", help="h200, a100 80gb, rtx 4090 … (default: the one here)")
    group.add_argument("--memory", type=float, metavar="GIB", help="of a GPU that is not known")
    group.add_argument("--device-bandwidth", type=float, metavar="X", help="bytes a second of a copy")
    group.add_argument("--device-flops", type=float, metavar="X", help="16-bit operations a second")
    group.add_argument("--input-len", type=number, default=512, metavar="N", help="tokens of a prompt (default: 512)")
    group.add_argument("--output-len", type=number, default=256, metavar="N", help="of an answer (default: 256)")
    group.add_argument("--json", action="store_true", help="as JSON")
    add_flags(plan, EngineConfig, "engine", skip=("model",))
    add_foreign(plan, foreign.ENGINE)
    plan.set_defaults(action=_plan)

    doctor = commands.add_parser("doctor", help="what is installed, what would run, and what to mend")
    doctor.add_argument(
        "model", nargs="?", metavar="MODEL", help="Hugging Face id or a folder (default: the demo model)"
    )
    doctor.add_argument("--port", type=number, default=8000, metavar="N", help="of the server (default: 8000)")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    add_flags(doctor, EngineConfig, "engine", skip=("model",))
    add_foreign(doctor, foreign.ENGINE)
    doctor.set_defaults(action=_doctor)


def _plan(options: argparse.Namespace) -> int:
    from octavo.advise.plan import find_device, lines, plan
    from octavo.bench.shapes import SHAPES, write_shape
    from octavo.core.hub import config_folder

    config = read_flags(EngineConfig, options)
    device = find_device(options.gpu, options.memory, options.device_bandwidth, options.device_flops)
    with tempfile.TemporaryDirectory() as place:
        if config.model in SHAPES and not Path(config.model).exists():
            folder = write_shape(config.model, Path(place))
        else:
            folder = config_folder(config)
        found = plan(config, folder, device, options.input_len, options.output_len)
    print(json.dumps(found.record(), indent=1) if options.json else "\n".join(lines(found)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """1 if something needs mending."""
    from octavo.advise.doctor import examine, lines, record

    findings = list(examine(read_flags(EngineConfig, options), options.port))
    print(json.dumps(record(findings), indent=1) if options.json else "\n".join(lines(findings)))
    return int(any(finding.mend for finding in findings))
