"""litepose-nas: pose networks that fit a device.

What applications need of it is here; importing it costs nothing, torch comes with the first call::

    import nas

    network = nas.load("runs/mine/emitted/ID")        # a torch network, ready to run
    people = nas.predictor("runs/mine/emitted/ID")    # people(picture).people
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supernet.base import Subnet
    from supernet.pose.predictor import PersonPredictor, PosePredictor

__all__ = ["load", "predictor"]


def load(model: str | Path) -> Subnet:
    """Return the network in an emitted folder or a file, in evaluation mode, on the CPU.

    Parameters
    ----------
    model
        A folder of ``nas emit``, a ``.safetensors``, or a research ``.pth``. Nothing is ever unpickled.

    Returns
    -------
    Subnet
        A :class:`torch.nn.Module` that takes normalised pictures (N, 3, H, W); it knows its ``arch``, its
        number of ``joints`` and the names of its outputs, ``output_names``.

    Raises
    ------
    InputError
        If there is no such model, or it is damaged or of another kind; the message names the way out.
    """
    from nas.loading import load_subnet

    return load_subnet(Path(model))


def predictor(
    model: str | Path,
    *,
    resolution: int | None = None,
    flip: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    skeleton: str | None = None,
) -> PosePredictor | PersonPredictor:
    """Return what finds the people in a picture: called with RGB uint8 (H, W, 3), it returns their joints.

    ``found = predictor(picture)`` has ``found.people``, float64 (P, J, 3): x and y in pixels of the picture
    and the heatmap's value there, best people first, and ``found.scores`` (P,). A top-down network takes the
    boxes of people as a second argument; without, it takes the whole picture for one person.

    Parameters
    ----------
    model
        As of :func:`load`; or a file of ``nas export`` (``.onnx``, ``.xml``, ``.param``, ``.tflite``), which
        its engine runs.
    resolution
        Short side of the network's input (top-down: its height), pixels; by default the model's own.
    flip
        Average with the mirrored picture: slower, and a little more accurate.
    threads
        CPU threads of the engine, for an exported file; torch's are torch's to set.
    device
        Where a torch network runs, such as ``cuda``.
    skeleton
        The joints, where the file does not tell them.

    Raises
    ------
    InputError
        As :func:`load`, or if the joints are not clear.
    UnavailableError
        If the device is not there.
    """
    from nas.loading import open_predictor

    return open_predictor(
        Path(model), resolution=resolution, flip=flip, threads=threads, device=device, skeleton=skeleton
    )
