"""Records as one HTML page that needs nothing else: pictures inside, no scripts, light and dark."""

from collections.abc import Sequence
from html import escape

from benchmarks import markdown, plots, report
from benchmarks.record import Board, Record

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #6a6a6a; --paper: #fcfcfa; --card: #fff; --line: #e3e3de;
  --good: #14713d; --bad: #b4420f; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #a2a2a2; --paper: #151515; --card: #1d1d1d;
  --line: #333; --good: #62c48c; --bad: #f0955f; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p, li { max-width: 72ch } ul { padding-left: 1.1rem } .soft, li { color: var(--soft) }
.cards, .plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)) }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); align-items: start }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 0 }
.card, li, h1, h2 { overflow-wrap: anywhere } figure { padding: .5rem; color: var(--soft) }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums }
figure svg { display: block; width: 100%; max-width: 32rem; height: auto; margin: auto }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft) } tr:last-child td { border-bottom: 0 } .number { text-align: right }
.valid { color: var(--good) } .suspect { color: var(--bad); white-space: normal; min-width: 16rem }
"""


def page(records: Sequence[Record], title: str = "Benchmark") -> str:
    """The whole page. Raises EngineError without matplotlib."""
    n_valid = sum(record.is_valid for record in records)
    days = sorted({record.started_at[:10] for record in records})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    figures = "".join(f'<figure aria-label="{escape(plot.title)}">{plot.svg}</figure>' for plot in plots.svgs(records))
    boards = "".join(_board(board, of_board) for board, of_board in report.by_board(records))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<h1>{escape(title)}</h1>
<p class="soft">{len(records)} measurements, {n_valid} valid, {len(records) - n_valid} suspect; {escape(span)}</p>
<div class="cards">{_cards(records)}</div>
<h2>Pictures</h2>
<div class="plots">{figures}</div>
{boards}
<p class="soft">{escape(markdown.NOTES)}</p>
</html>
"""


def _cards(records: Sequence[Record]) -> str:
    """The numbers one came for, of the fastest record of each kind."""
    plain = [r for r in records if r.workload.n_depth_tokens == 0 and r.workload.n_streams == 1 and r.tokens_per_s]
    cards = []
    for name, view, kind in (
        ("generation", "kernel", "tg"),
        ("prompt", "kernel", "pp"),
        ("chat, as a client sees it", "end-to-end", "pp+tg"),
    ):
        of_kind = [r for r in plain if (r.workload.view, r.workload.kind) == (view, kind)]
        if of_kind:
            best = max(of_kind, key=lambda r: (r.is_valid, r.tokens_per_s.median if r.tokens_per_s else 0))
            text = f"{report.rate(best.tokens_per_s)} <small>tokens/s</small>"
            cards.append(
                (text, f"{name}: {best.model.name} on {best.board.name}{'' if best.is_valid else ', suspect'}")
            )
    shares = [r.bytes_per_s / r.board.read_bytes_per_s for r in plain if r.bytes_per_s and r.board.read_bytes_per_s]
    if shares:
        cards.append((f"{max(shares):.0%}", "of the measured memory bandwidth reached, generating"))
    memories = [r.memory.peak_rss_bytes for r in records if r.memory]
    if memories:
        cards.append((report.megabytes(max(memories)), "peak memory"))
    return "".join(
        f'<div class="card"><b>{value}</b><span class="soft">{escape(of)}</span></div>' for value, of in cards
    )


def _board(board: Board, of_board: Sequence[Record]) -> str:
    facts = "".join(f"<li>{escape(line)}</li>" for line in markdown.describe(board, of_board))
    columns = markdown.columns(of_board)
    head = "".join(f"<th{_align(column)}>{escape(column.name)}</th>" for column in columns)
    rows = "".join(f"<tr>{''.join(_cell(column, record) for column in columns)}</tr>" for record in of_board)
    doubts = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.suspicions(of_board))
    why = f"<p>Suspect results, and why:</p><ul>{doubts}</ul>" if doubts else ""
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<h2>{escape(board.name)}</h2><ul>{facts}</ul>{table}{why}"


def _cell(column: report.Column, record: Record) -> str:
    text = escape(column.cell(record))
    if column.name == "verdict":
        return f'<td class="{"valid" if record.is_valid else "suspect"}">{text}</td>'
    return f"<td{_align(column)}>{text}</td>"


def _align(column: report.Column) -> str:
    return ' class="number"' if column.is_number else ""
