"""Holding a latency table while it is read, changed and saved, so that no other command's rows are lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from latency_tables.table import csv_path, file_identity, finish_save, leftover_rows
from search_spaces.errors import RunError
from search_spaces.files import locked, make_folder, remove_leftovers

__all__ = ["PATIENCE_S", "held_table", "settle_table"]

PATIENCE_S = 10.0
"""How long a command waits for another one that is writing the same table; writing takes much less."""

_ASK_EVERY_S = 0.1


@contextmanager
def held_table(
    path: str | Path,
    *,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """Hold the table at ``path`` against every other command that would write it; yield its CSV file.

    Whoever changes a table loads it, changes it and saves it within one such block::

        with held_table(path) as file:
            table = LatencyTable.load(file)
            fill_table(table, pieces).save(file)

    What was loaded before the block may be out of date in it. The block is not for measuring in, which takes
    hours: measure first, then load, add and save. It is held by a file ``.NAME.lock`` beside the table; the
    system lets go of it however the process ends. Blocks of one table do not nest. Reading needs
    none: a reader sees the table as it was before or after (:meth:`LatencyTable.save`). A save that a kill
    has cut is finished before the block begins.

    Parameters
    ----------
    path
        The table's CSV or YAML file; neither need exist, and the folder is made.
    patience_s
        Seconds to wait while somebody else holds it.
    clock, sleep
        Source of seconds, and how to wait.

    Raises
    ------
    RunError
        If somebody else holds it all that time, or the folder cannot be written to.
    """
    file = csv_path(path)
    make_folder(file.parent)
    lock = file.with_name(f".{file.stem}.lock")
    busy = f"another command is writing the latency table '{file}': wait for it, then run this one again"
    until = clock() + patience_s
    with ExitStack() as stack:
        while True:
            try:
                held = stack.enter_context(locked(lock, busy))
                if os.fstat(held.fileno()).st_nlink:
                    break
                stack.close()  # who held it until now has removed it: hold the one that others see
                continue
            except RunError as error:
                if str(error) != busy or clock() >= until:
                    raise
            sleep(_ASK_EVERY_S)
        stack.callback(lock.unlink, missing_ok=True)
        before = file_identity(file)
        finish_save(file)
        yield file
        if file_identity(file) != before:  # saved: what an earlier kill has left is of use to nobody
            for each in (file, file.with_suffix(".yaml")):
                remove_leftovers(each)


def settle_table(path: str | Path) -> None:
    """Finish the save of a table that a kill has cut; where there is none, do nothing, and wait for nobody.

    Before what was measured is thrown away because the table holds it, both of the table's files do.

    Raises
    ------
    RunError
        As :func:`held_table` does.
    """
    if leftover_rows(csv_path(path)):
        with held_table(path):
            pass
