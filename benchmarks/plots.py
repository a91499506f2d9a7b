"""Records as pictures, by matplotlib (the extra `report`): one function a question, drawn where records answer it.

A picture is as wide as a phone and as high as its names need: a name stands above its bar, or on a line of the legend
below, never beside the axes.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from benchmarks.record import Board, Record
from edge.errors import EngineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by everybody
GREY = "#7F7F7F"
INK = "#555555"  # on white; inside a page the text takes the page's colour
MARKERS = "osD^v"  # as many as are coprime to the colours: 30 lines before two look the same
WINDOW_S = 10.0
WIDTH_IN = 4.0
PLOT_IN, AXIS_IN, LINE_IN, BAR_IN = 2.7, 0.85, 0.16, 0.17  # axes with all; title and axis alone; a line of text; a bar
TEXT_PT = (WIDTH_IN - 0.35) * 72
WHOLE = {"clip_on": False, "in_layout": False}  # a point on an axis is drawn whole and takes no room
KEY_PT = 30  # the mark before a name in a legend
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.alpha": 0.25, "grid.color": GREY, "legend.frameon": False, "legend.fontsize": 8, "lines.markersize": 5,
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "edge", "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.08,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One picture as SVG text, to stand inside a page."""

    name: str
    title: str
    svg: str


def svgs(records: Sequence[Record]) -> list[Plot]:
    """Every picture that these records give. Raises EngineError without matplotlib."""
    made = []
    with _style():
        for name, figure in pictures(records).items():
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            _, svg, rest = text.getvalue().replace(INK, "currentColor").partition("<svg")
            made.append(Plot(name, figure.axes[0].get_title("left"), svg + rest))
    return made


def save(records: Sequence[Record], path: Path) -> None:
    """All pictures on one sheet, PNG or SVG by the name of the file. Raises EngineError."""
    with _style():
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        sheet(records).savefig(path, dpi=160, facecolor="white", metadata=metadata)


def pictures(records: Sequence[Record]) -> "dict[str, Figure]":
    """A figure for each question that the records answer, as high as it needs."""
    made = {}
    with _style():
        from matplotlib.figure import Figure

        for name, draw in DRAWERS.items():
            figure = Figure(figsize=(WIDTH_IN, 1))
            if height_in := draw(figure.add_subplot(), records):
                figure.set_figheight(height_in)
                made[name] = figure
    return made


def sheet(records: Sequence[Record]) -> "Figure":
    """All pictures in one figure, two to a row. Raises EngineError where there is none."""
    with _style():
        from matplotlib.figure import Figure

        heights_in = {name: picture.get_figheight() for name, picture in pictures(records).items()}
        if not heights_in:
            raise EngineError("these records give no picture", "measure a prompt or a generation")
        names = list(heights_in)
        rows = [names[i : i + 2] for i in range(0, len(names), 2)]
        rows_in = [max(heights_in[name] for name in row) for row in rows]
        figure = Figure(figsize=(len(rows[0]) * WIDTH_IN, sum(rows_in)))
        parts = figure.subfigures(len(rows), len(rows[0]), height_ratios=rows_in, squeeze=False)
        for row, of_row in zip(rows, parts, strict=True):
            for name, part in zip(row, of_row, strict=False):
                DRAWERS[name](part.add_subplot(), records)
        return figure


def _style() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise EngineError("plots need matplotlib", "install it with: pip install 'edge-gguf[report]'") from error
    return mpl.rc_context(cast(Any, STYLE))


# ---- the pictures; each returns the inches it needs in height, 0 where the records do not answer its question


def draw_generation(axes: "Axes", records: Sequence[Record]) -> float:
    """From an empty cache, by model and board."""
    return _rates(axes, records, "tg", "Generation", COLOURS[0])


def draw_prompt(axes: "Axes", records: Sequence[Record]) -> float:
    """Reading a prompt into an empty cache, by model and board."""
    return _rates(axes, records, "pp", "Reading a prompt", COLOURS[1])


def _rates(axes: "Axes", records: Sequence[Record], kind: Literal["tg", "pp"], title: str, colour: str) -> float:
    found: dict[str, Record] = {}
    name_of = namer(records)
    for record in kernel(records):
        work = record.workload
        if work.kind == kind and not work.n_depth_tokens and work.n_streams == 1 and not work.duration_s:
            found.setdefault(name_of(record), record)
    rates = [record.tokens_per_s for record in found.values() if record.tokens_per_s]
    if not rates:
        return 0.0
    colours = [colour if record.is_valid else GREY for record in found.values()]
    style = {"color": colours, "xerr": [rate.median * rate.spread for rate in rates], "ecolor": INK}
    texts = [f"{short(rate.median)} ±{rate.spread:.0%}" for rate in rates]
    axes.set(title=title + (", grey: suspect" if GREY in colours else ""), xlabel="tokens/s")
    return _bars(axes, list(found), [([rate.median for rate in rates], style)], texts)


def draw_memory(axes: "Axes", records: Sequence[Record]) -> float:
    """Peak memory, and its share of the board's RAM."""
    largest: dict[str, Record] = {}
    name_of = namer(records)
    for record in records:
        name = name_of(record)
        if record.memory and _peak_bytes(record) > (_peak_bytes(largest[name]) if name in largest else 0):
            largest[name] = record
    if not largest:
        return 0.0
    memories = [record.memory for record in largest.values() if record.memory]
    parts = [
        ("weights, KV cache, buffers", COLOURS[0], [m.anon_bytes / 1e9 for m in memories]),
        ("mapped files", COLOURS[5], [m.file_bytes / 1e9 for m in memories]),
        ("at the peak only", GREY, [max(0, m.peak_rss_bytes - m.anon_bytes - m.file_bytes) / 1e9 for m in memories]),
    ]
    sizes = [(_peak_bytes(record), record.board.ram_bytes) for record in largest.values()]
    texts = [f"{peak / 1e9:.2f} GB" + (f", {peak / ram:.1%} of RAM" if ram else "") for peak, ram in sizes]
    axes.set(title="Peak memory", xlabel="GB")
    layers = [(values, {"color": colour, "label": label}) for label, colour, values in parts if any(values)]
    return _bars(axes, list(largest), layers, texts) + _legend(axes)


def _peak_bytes(record: Record) -> int:
    return record.memory.peak_rss_bytes if record.memory else 0


def _bars(
    axes: "Axes", names: Sequence[str], layers: Sequence[tuple[Sequence[float], dict[str, Any]]], texts: Sequence[str]
) -> float:
    """A bar a name, of layers one after the other: its name above it, its text at its end."""
    labels = wrapped(names, TEXT_PT)
    slot_in = BAR_IN + 0.12 + LINE_IN * max(label.count("\n") + 1 for label in labels)
    thick = BAR_IN / slot_in
    ends = [0.0] * len(names)
    for values, style in layers:
        bars = axes.barh(range(len(names)), values, thick, left=ends, **style)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    axes.bar_label(bars, texts, padding=4, fontsize=8, color=INK)
    for place, label in enumerate(labels):
        made = axes.annotate(
            label, (0, place - thick / 2), (1, 2), ("axes fraction", "data"), "offset points", va="bottom", fontsize=8
        )
        made.set_in_layout(False)  # it lies over the axes and must not make them narrower
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_ylim(len(names) - 1 + thick, thick - 1)
    room = (max(map(_width_pt, texts)) + 12) / TEXT_PT
    axes.set_xlim(0, axes.dataLim.x1 / (1 - room))
    return AXIS_IN + slot_in * len(names)


def draw_depth(axes: "Axes", records: Sequence[Record]) -> float:
    """Generation against what the cache holds already."""
    alone = [r for r in kernel(records) if r.workload.kind == "tg" and r.workload.n_streams == 1]
    axes.set(title="Generation by depth", xlabel="tokens in the cache")
    return _lines(axes, alone, records, lambda r: r.workload.n_depth_tokens)


def draw_streams(axes: "Axes", records: Sequence[Record]) -> float:
    """All streams together against their number."""
    empty = [r for r in kernel(records) if r.workload.kind == "tg" and r.workload.n_depth_tokens == 0]
    axes.set(title="Generation by streams", xlabel="streams")
    return _lines(axes, empty, records, lambda r: r.workload.n_streams)


def draw_threads(axes: "Axes", records: Sequence[Record]) -> float:
    """Generation against threads."""
    alone = [r for r in kernel(records) if r.workload.kind == "tg" and r.workload.n_streams == 1 and r.n_threads]
    empty = [r for r in alone if r.workload.n_depth_tokens == 0]
    axes.set(title="Generation by threads", xlabel="threads")
    return _lines(axes, empty, records, lambda r: r.n_threads or 0)


def _lines(axes: "Axes", chosen: Iterable[Record], records: Sequence[Record], of: Callable[[Record], int]) -> float:
    from matplotlib.ticker import MaxNLocator

    name_of = namer(records)
    points: dict[str, dict[int, Record]] = {name: {} for name in map(name_of, records)}  # a colour a name, everywhere
    for record in chosen:
        if not record.workload.duration_s:
            points[name_of(record)].setdefault(of(record), record)
    drawn = []
    for i, (name, at) in enumerate(points.items()):
        if len(at) < 2:
            continue
        xs = sorted(at)
        ys = [rate.median for x in xs if (rate := at[x].tokens_per_s)]
        look = _look(i) | WHOLE
        valid = [k for k, x in enumerate(xs) if at[x].is_valid]
        axes.plot(xs, ys, **look, label=name, markevery=valid)
        suspect = [k for k, x in enumerate(xs) if not at[x].is_valid]
        axes.plot([xs[k] for k in suspect], [ys[k] for k in suspect], **look, linestyle="", fillstyle="none")
        drawn += list(at.values())
    if not drawn:
        return 0.0
    if not all(record.is_valid for record in drawn):
        axes.set_title(axes.get_title("left") + ", hollow: suspect")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlim=(0, axes.dataLim.x1), ylim=(0, 1.08 * axes.dataLim.y1), ylabel="tokens/s")
    return PLOT_IN + _legend(axes)


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def draw_roofline(axes: "Axes", records: Sequence[Record]) -> float:
    """Generation speed against bytes a token reads, under the limit of each board whose memory was measured."""
    points = [r for r in kernel(records) if r.bytes_per_token and r.workload.n_streams == 1]
    name_of = board_namer(records)
    limits: dict[str, float] = dict.fromkeys(map(name_of, [r.board for r in points]), 0.0)
    for record in points:  # measured anew for every run: the fastest is the board's
        name = name_of(record.board)
        limits[name] = max(limits[name], record.board.read_bytes_per_s or 0.0)
    if not any(limits.values()):
        return 0.0
    sizes = [r.bytes_per_token / 1e9 for r in points if r.bytes_per_token]
    low, high = min(sizes) * 0.8, max(sizes) * 1.25
    xs = [low * (high / low) ** (i / 40) for i in range(41)]
    for i, (name, limit) in enumerate(limits.items()):
        look = _look(i)
        if limit:
            roof = [limit / 1e9 / x for x in xs]
            axes.plot(xs, roof, **look, markevery=[], label=f"{name}, reads {limit / 1e9:.1f} GB/s")
        of_board = [r for r in points if name_of(r.board) == name]
        axes.plot(
            [(r.bytes_per_token or 0) / 1e9 for r in of_board],
            [r.tokens_per_s.median for r in of_board if r.tokens_per_s],
            **look, linestyle="", label=None if limit else f"{name}, limit not measured",
        )  # fmt: skip
    axes.set(title="Roofline of generation", xlabel="GB a token reads", ylabel="tokens/s")
    if high > 10 * low:  # models of very different size: a limit is a straight line where both axes are logarithmic
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
    else:
        axes.set(xlim=(0, None), ylim=(0, None))
    return PLOT_IN + _legend(axes)


def draw_sustained(axes: "Axes", records: Sequence[Record]) -> float:
    """Speed in windows of 10 s over a long run, with the temperature."""
    long = [record for record in records if record.workload.duration_s and len(windows(record)) > 1]
    if not long:
        return 0.0
    name_of, heat = namer(records), None
    names = list(dict.fromkeys(map(name_of, records)))
    for record in long:
        colour = COLOURS[names.index(name_of(record)) % len(COLOURS)]
        axes.plot(*zip(*windows(record), strict=True), color=colour, label=name_of(record))
        warmth = [(m.at_s, m.temperature_c) for m in record.conditions.moments if m.temperature_c is not None]
        if warmth:
            heat = heat or axes.twinx()
            heat.plot(*zip(*warmth, strict=True), color=colour, linestyle=":", linewidth=1)
            heat.set(ylabel="°C, dotted", ylim=(0, None))
            heat.grid(visible=False)
    axes.set(title="Sustained generation, windows of 10 s", xlabel="s", ylabel="tokens/s")
    axes.set(xlim=(0, None), ylim=(0, None))
    return PLOT_IN + _legend(axes)


def _legend(axes: "Axes") -> float:
    """Below the picture, where it hides nothing, a name a line; returns its inches."""
    handles, labels = axes.get_legend_handles_labels()
    names = wrapped(labels, TEXT_PT - KEY_PT)
    axes.figure.legend(handles, names, loc="outside lower left", handlelength=1.6, labelspacing=0.3)
    return 0.1 + sum(LINE_IN * (name.count("\n") + 1) + 0.03 for name in names)


DRAWERS: dict[str, Callable[["Axes", Sequence[Record]], float]] = {
    "generation": draw_generation,
    "prompt": draw_prompt,
    "roofline": draw_roofline,
    "depth": draw_depth,
    "streams": draw_streams,
    "threads": draw_threads,
    "memory": draw_memory,
    "sustained": draw_sustained,
}


def wrapped(names: Sequence[str], width_pt: float) -> list[str]:
    """Each name on a line; where one does not fit all are broken at their commas, and what is still too long is cut."""
    fits = all(_width_pt(name) <= width_pt for name in names)
    return list(names) if fits else ["\n".join(cut(part, width_pt) for part in name.split(", ")) for name in names]


def cut(text: str, width_pt: float) -> str:
    """What fits of it: its begin and its end, which tells the quantisation."""
    shown, n = text, len(text)
    while _width_pt(shown) > width_pt and n > 2:
        n -= 1
        shown = f"{text[: n // 2]}…{text[n // 2 - n :]}"
    return shown


@cache
def _width_pt(text: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=8), ismath=False)[0])


def short(value: float) -> str:
    """Three digits, and thousands in full."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def namer(records: Sequence[Record]) -> Callable[[Record], str]:
    """What names a line or bar: the model, and of program and board what differs among these records."""
    board_name = board_namer(records)
    tells_program = len({record.program.name for record in records}) > 1
    tells_board = len({board_name(record.board) for record in records}) > 1

    def name_of(record: Record) -> str:
        parts = [Path(record.model.name).stem]
        parts += [record.program.name] if tells_program else []
        parts += [board_name(record.board)] if tells_board else []
        return _one_line(", ".join(parts))

    return name_of


def board_namer(records: Sequence[Record]) -> Callable[[Board], str]:
    """A board's name, with its RAM where another board of these records has the same name."""
    sizes: dict[str, set[int]] = {}
    for record in records:
        sizes.setdefault(record.board.name, set()).add(record.board.ram_bytes)

    def name_of(board: Board) -> str:
        return _one_line(board.name + (f" {board.ram_bytes / 2**30:.1f} GiB" if len(sizes[board.name]) > 1 else ""))

    return name_of


def _one_line(name: str) -> str:
    return " ".join(name.split()).lstrip("_") or "?"  # a legend leaves out what begins with _


def windows(record: Record, length_s: float = WINDOW_S) -> list[tuple[float, float]]:
    """(end of the window in s, tokens/s in it) over a run's repetitions, one after the other."""
    found = []
    at_s = since_s = 0.0
    n_tokens = 0
    for sample in record.samples:
        at_s += sample.elapsed_ns / 1e9
        n_tokens += record.workload.n_tokens
        if at_s - since_s >= length_s:
            found.append((at_s, n_tokens / (at_s - since_s)))
            since_s, n_tokens = at_s, 0
    return found


def kernel(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.workload.view == "kernel" and record.rates]
