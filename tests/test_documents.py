"""Files into text: every usual encoding, PDF in a process with limits, and a sentence for what is no text."""

import sys
from pathlib import Path

import pytest

from edge.documents import MAX_FILE_BYTES, read_text
from edge.errors import DocumentError


def pdf(text: str) -> bytes:
    """A PDF of one page, by hand."""
    content = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
    ]
    data, places = b"%PDF-1.4\n", []
    for i, body in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (i, body)
    start = len(data)
    data += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + b"trailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_text_is_read_in_its_encoding(encoding: str) -> None:
    assert read_text("a.txt", "解方程，求根。\r\n第二行".encode(encoding)) == "解方程，求根。\n第二行"


def test_western_text_is_not_taken_for_chinese() -> None:
    assert read_text("a.txt", "déjà vu, naïve café".encode("cp1252")) == "déjà vu, naïve café"


def test_the_text_of_a_pdf_is_read() -> None:
    pytest.importorskip("pypdf", reason="the pdf extra is not installed")
    assert read_text("a.pdf", pdf("What is 347 + 85?")).strip() == "What is 347 + 85?"


def test_a_pdf_without_pypdf_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DocumentError) as caught:
        read_text("a.pdf", pdf("x"))
    assert str(caught.value) == "a.pdf: reading PDF needs pypdf; install it: pip install pypdf"


@pytest.mark.parametrize("data", [b"", b"  \n", b"\x7fELF\0\0", b"%PDF-1.7", pdf("x")[:200], pdf("")])
def test_what_has_no_text_is_refused_with_one_sentence(data: bytes) -> None:
    with pytest.raises(DocumentError) as caught:
        read_text("f", data)
    assert "; " in str(caught.value)


def test_a_file_that_is_too_large_is_not_even_parsed() -> None:
    with pytest.raises(DocumentError, match="21 MB"):
        read_text("f", b"%PDF-" + b"x" * MAX_FILE_BYTES)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_a_parser_that_eats_memory_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("class PdfReader:\n    def __init__(self, file): bytearray(4 << 30)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DocumentError, match="cannot be read"):
        read_text("a.pdf", pdf("x"))
