"""Files into text, for a prompt: plain text of any usual encoding, and PDF where pypdf is installed.

A PDF is read in a process of its own, with limits on memory and time: a file from elsewhere can make any parser run
for ever. Started as `python -m edge.documents`, PDF on stdin, text on stdout.
"""

import io
import resource
import subprocess
import sys
from pathlib import Path

from edge.errors import DocumentError

MAX_FILE_BYTES = 20 << 20
PDF_TIME_S = 30
PDF_MEMORY_BYTES = 1 << 30
NO_PYPDF = 3  # exit codes of the reading process
UNREADABLE = 4
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def read_text(name: str, data: bytes) -> str:
    """The text of a file. Raises DocumentError with what to do."""
    if len(data) > MAX_FILE_BYTES:
        raise DocumentError(name, f"it has {len(data) / 1e6:.0f} MB", f"attach at most {MAX_FILE_BYTES >> 20} MB")
    text = _pdf_text(name, data) if data.startswith(b"%PDF-") else _plain_text(name, data)
    if not text.strip():
        raise DocumentError(name, "there is no text in it", "a scan needs text recognition first")
    return text.replace("\r\n", "\n").replace("\0", "")


def _plain_text(name: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    if b"\0" in data:
        raise DocumentError(name, "it is no text", "attach text, code or PDF")
    for encoding in ("utf-8-sig", "gb18030", "cp1252"):  # the last takes nearly everything
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding != "gb18030" or any("\u4e00" <= c <= "\u9fff" for c in text):
            return text
    return data.decode("latin-1")


def _pdf_text(name: str, data: bytes) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edge.documents"],
            input=data,
            capture_output=True,
            timeout=PDF_TIME_S + 5,
            cwd=PACKAGE_ROOT,  # -m puts the folder it starts in on the module path: ours, not the user's
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DocumentError(name, f"it takes longer than {PDF_TIME_S} s to read", "export it as text first") from None
    if done.returncode == NO_PYPDF:
        raise DocumentError(name, "reading PDF needs pypdf", "install it: pip install pypdf")
    if done.returncode != 0:
        raise DocumentError(name, "this PDF cannot be read", "export it as text first")
    return done.stdout.decode("utf-8", "replace")


def main() -> None:
    """PDF on stdin, its text on stdout."""
    resource.setrlimit(resource.RLIMIT_CPU, (PDF_TIME_S, PDF_TIME_S))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (PDF_MEMORY_BYTES, PDF_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        from pypdf import PdfReader
    except ImportError:
        sys.exit(NO_PYPDF)
    try:
        pages = [page.extract_text() for page in PdfReader(io.BytesIO(sys.stdin.buffer.read())).pages]
    except Exception:  # noqa: BLE001 - whatever a hostile file makes of the parser
        sys.exit(UNREADABLE)
    sys.stdout.buffer.write("\n\n".join(pages).encode("utf-8", "replace"))


if __name__ == "__main__":
    main()
