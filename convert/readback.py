"""A file is read again while the rest is still being written, so that little is left to wait for at the end."""

from queue import SimpleQueue
from threading import Thread

from convert.output import OutputFile

N_STEP_BYTES = 1 << 26  # how far the disk is left behind: less means more syncs, more a longer wait at the end


class ReadBack:
    """Verifies one file in a thread of its own, as far as it is said to be written."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file
        self._reached = 0
        self._places: SimpleQueue[int | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._follow, name="readback", daemon=True)
        self._thread.start()

    def reach(self, place: int) -> None:
        """Every byte before `place` has been written. Raises as `check`."""
        self.check()
        if place - self._reached >= N_STEP_BYTES:
            self._reached = place
            self._places.put(place)

    def check(self) -> None:
        """Raises the OutputError or NoSpaceError that was met so far."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Wait until what was reached is verified; the rest is left to others."""
        self._places.put(None)
        self._thread.join()

    def _follow(self) -> None:
        try:
            while (place := self._places.get()) is not None:
                self._file.sync()
                self._file.verify(place)
        except BaseException as error:  # noqa: BLE001 - raised by `reach`, in the thread that can end the conversion
            self._error = error
