"""A phone that is a folder: an ``adb`` that maps its calls there, and a recorded benchmark program.

What the program prints is worded as LiteRT's ``benchmark_model`` words it, older and newer; the figures
come from the file that it is given. No phone was at hand: this is a simulation.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from latency_tables import Target
from latency_tables.links import AdbLink, BinaryBench
from search_spaces import Piece, layers_of
from tests.latency_tables.devices import script

TARGET = Target("test-phone", "Cortex-A76 2.8 GHz", "litert", threads=1)
BINARY = "/data/local/tmp/benchmark_model"
EMPTY_US = 4.0

_PROGRAM = r"""
echo "$*" >> "$(dirname "$0")/calls"
for word in "$@"; do case "$word" in --graph=*) graph="${word#--graph=}";; esac; done
us=$(sed -n 's/.*"us": *\([0-9.e+]*\).*/\1/p' "$graph") || exit 1
[ -n "$us" ] || { echo "ERROR: Failed to load model $graph"; exit 1; }
echo "INFO: STARTING!"
echo "INFO: Graph: [$graph]"
echo "INFO: Explicitly applied delegate, and the model graph @EXECUTED@ be executed by the delegate."
echo "INFO: Initialized session in 11.203ms."
echo "INFO: Running benchmark for at least 1 iterations and at least 0.01 seconds"
echo "INFO: count=1 curr=99000"
echo "INFO: Running benchmark for at least 2 iterations and at least 0.02 seconds"
echo "INFO: count=@COUNT@ first=99000 curr=1 min=1 max=99000 avg=@MEAN@ std=230@MORE@"
echo "INFO: Inference timings in us: Init: 11203, First inference: 99000, Warmup (avg): 99000, \
Inference (avg): @MEAN@"
"""


def true_us(piece: Piece | None) -> float:
    """What a piece takes on the phone, a call included."""
    return EMPTY_US if piece is None else EMPTY_US + sum(layer.macs for layer in layers_of(piece)) / 100


def write_model(piece: Piece | None) -> tuple[bytes, str]:
    """Write a file that only this phone's program can read."""
    return json.dumps({"us": true_us(piece)}).encode(), ".tflite"


@dataclass(frozen=True)
class Phone:
    """The simulated phone.

    Attributes
    ----------
    root
        Its ``/data/local/tmp``.
    adb
        The client, in a folder on the path.
    """

    root: Path
    adb: Path

    def install(self, *, executed: str = "will completely", newer: bool = False, count: int = 7) -> None:
        """Put a benchmark program on the phone."""
        program = (
            _PROGRAM.replace("@EXECUTED@", executed)
            .replace("@COUNT@", str(count))
            .replace("@MEAN@", "1.5e+06" if newer else "$us")
            .replace("@MORE@", " p5=1 median=$us p95=99000" if newer else "")
        )
        script(self.root / "benchmark_model", program)

    def calls(self) -> list[str]:
        """Return the command lines of the program's calls so far."""
        return (self.root / "calls").read_text().splitlines()

    def answers(self, text: str, code: int = 1) -> None:
        """From now on, ``adb`` only says this."""
        script(self.adb, f'echo "{text}" >&2\nexit {code}')

    def works(self) -> None:
        """From now on, ``adb`` does what it is asked."""
        script(
            self.adb,
            f"""[ "$1 $2" = "-s R58M" ] || {{ echo "adb: device '$2' not found" >&2; exit 1; }}
shift 2
case "$1" in
push) exec cp "$2" "{self.root}${{3#/data/local/tmp}}";;
pull) exec cp "{self.root}${{2#/data/local/tmp}}" "$3";;
shell) exec sh -c "$(printf %s "$2" | sed 's|/data/local/tmp|{self.root}|g')";;
esac""",
        )

    def bench(self, **settings: object) -> BinaryBench:
        """Return a bench on it."""
        given = {"sleep": lambda seconds: None, **settings}
        return BinaryBench(AdbLink("R58M"), TARGET, write_model, **given)  # type: ignore[arg-type]


def make_phone(folder: Path) -> Phone:
    """Return a phone without a benchmark program; its ``adb`` is in ``folder/bin``."""
    (folder / "bin").mkdir()
    (folder / "tmp").mkdir()
    phone = Phone(folder / "tmp", folder / "bin" / "adb")
    phone.works()
    script(
        folder / "bin" / "getprop",
        'case "$1" in ro.product.model) echo "Pixel 4";; ro.soc.model) echo SM8150;; *) echo 13;; esac',
    )
    assert os.access(phone.adb, os.X_OK)
    return phone
