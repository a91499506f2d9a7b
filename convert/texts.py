"""A text file that models are measured with. Knows no models."""

from pathlib import Path

from edge.errors import TextError

N_TEXT_BYTES_MAX = 64 << 20


def read_text(path: Path) -> str:
    """A text file, without the line end at its end, as llama.cpp's tools read it. Raises TextError."""
    try:
        with path.open("rb") as file:
            data = file.read(N_TEXT_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TextError(path, f"cannot be read ({reason})", "name a text file") from error
    if len(data) > N_TEXT_BYTES_MAX:
        raise TextError(path, f"has more than {N_TEXT_BYTES_MAX:,} bytes", "name a shorter text")
    try:
        return data.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(path, f"is not UTF-8 text (byte {error.start})", "name a text file") from error
