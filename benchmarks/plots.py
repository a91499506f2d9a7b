"""Records as pictures, by matplotlib (the extra `report`): one function a question, drawn where records answer it."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from benchmarks.record import Record
from edge.errors import EngineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")  # told apart by everybody
INK = "#767676"  # readable on white and on black
WINDOW_S = 10.0
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.alpha": 0.25, "grid.color": INK, "legend.frameon": False, "legend.fontsize": 8,
    "svg.fonttype": "none", "svg.hashsalt": "edge", "figure.constrained_layout.use": True,
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
    for name, draw in DRAWERS.items():
        with _style():
            figure = _figure((7.2, 3.4))
            axes = figure.add_subplot()
            if draw(axes, records):
                text = io.StringIO()
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
                svg = text.getvalue()
                made.append(Plot(name, axes.get_title("left"), svg[svg.index("<svg") :]))
    return made


def save(records: Sequence[Record], path: Path) -> None:
    """All pictures on one sheet, PNG or SVG by the name of the file. Raises EngineError."""
    with _style():
        trial = _figure((1, 1))
        drawers = [draw for draw in DRAWERS.values() if draw(trial.add_subplot(), records)]
        if not drawers:
            raise EngineError("these records give no picture", "measure a prompt or a generation")
        n_rows = (len(drawers) + 1) // 2
        figure = _figure((13, 3.5 * n_rows))
        for i, draw in enumerate(drawers):
            draw(figure.add_subplot(n_rows, min(2, len(drawers)), i + 1), records)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=110, facecolor="white", metadata=metadata)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def _style() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise EngineError("plots need matplotlib", "install it with: pip install 'edge-gguf[report]'") from error
    return mpl.rc_context(cast(Any, STYLE))


# ---- the pictures; each returns False where the records do not answer its question


def draw_generation(axes: "Axes", records: Sequence[Record]) -> bool:
    """Generation from an empty cache, by model and board."""
    return _bars(axes, records, "tg", "Generation", COLOURS[0])


def draw_prompt(axes: "Axes", records: Sequence[Record]) -> bool:
    """Reading a prompt into an empty cache, by model and board."""
    return _bars(axes, records, "pp", "Reading a prompt", COLOURS[1])


def _bars(axes: "Axes", records: Sequence[Record], kind: Literal["tg", "pp"], title: str, colour: str) -> bool:
    found: dict[str, Record] = {}
    for record in kernel(records):
        work = record.workload
        if work.kind == kind and not work.n_depth_tokens and work.n_streams == 1 and not work.duration_s:
            found.setdefault(series(record, records), record)
    rates = [record.tokens_per_s for record in found.values() if record.tokens_per_s]
    if not rates:
        return False
    spreads = [rate.median * rate.spread for rate in rates]
    places = range(len(rates))
    colours = [colour if record.is_valid else INK for record in found.values()]
    bars = axes.barh(places, [rate.median for rate in rates], 0.6, xerr=spreads, color=colours, ecolor=INK)
    axes.bar_label(bars, [f" {rate.median:.3g}" for rate in rates], padding=3, fontsize=8, color=INK)
    axes.set_yticks(places, [wrapped(name) for name in found])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    grey = "" if all(record.is_valid for record in found.values()) else ", grey: suspect"
    axes.set(title=title + grey, xlabel="tokens/s")
    return True


def draw_depth(axes: "Axes", records: Sequence[Record]) -> bool:
    """Generation against what the cache holds already."""
    alone = [r for r in kernel(records) if r.workload.kind == "tg" and r.workload.n_streams == 1]
    return _lines(
        axes, alone, records, lambda r: r.workload.n_depth_tokens, "Generation by depth", "tokens in the cache"
    )


def draw_streams(axes: "Axes", records: Sequence[Record]) -> bool:
    """All streams together against their number."""
    empty = [r for r in kernel(records) if r.workload.kind == "tg" and r.workload.n_depth_tokens == 0]
    return _lines(axes, empty, records, lambda r: r.workload.n_streams, "Generation by streams", "streams")


def draw_threads(axes: "Axes", records: Sequence[Record]) -> bool:
    """Generation against threads."""
    plain = [r for r in kernel(records) if r.workload.name.startswith("tg") and r.workload.n_streams == 1]
    empty = [r for r in plain if r.workload.n_depth_tokens == 0]
    return _lines(axes, empty, records, lambda r: r.n_threads or 0, "Generation by threads", "threads")


def _lines(
    axes: "Axes",
    chosen: Iterable[Record],
    records: Sequence[Record],
    of: Callable[[Record], int],
    title: str,
    label: str,
) -> bool:
    points: dict[str, dict[int, float]] = {}
    for record in chosen:
        if record.tokens_per_s and not record.workload.duration_s:
            points.setdefault(series(record, records), {}).setdefault(of(record), record.tokens_per_s.median)
    points = {name: values for name, values in points.items() if len(values) > 1}
    for i, (name, values) in enumerate(points.items()):
        xs = sorted(values)
        axes.plot(xs, [values[x] for x in xs], "o-", label=name, color=COLOURS[i % len(COLOURS)])
        axes.set_xticks(xs)
    if points:
        axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel=label, ylabel="tokens/s")
        _legend(axes)
    return bool(points)


def draw_memory(axes: "Axes", records: Sequence[Record]) -> bool:
    """Peak memory against the board's RAM."""
    largest: dict[str, Record] = {}
    for record in records:
        if record.memory:
            name = series(record, records)
            if name not in largest or record.memory.peak_rss_bytes > largest[name].memory.peak_rss_bytes:  # type: ignore[union-attr]
                largest[name] = record
    if not largest:
        return False
    memories = [record.memory for record in largest.values() if record.memory]
    places = range(len(memories))
    anon = [m.anon_bytes / 1e9 for m in memories]
    files = [m.file_bytes / 1e9 for m in memories]
    rest = [max(0.0, m.peak_rss_bytes / 1e9 - a - f) for m, a, f in zip(memories, anon, files, strict=True)]
    both = [a + f for a, f in zip(anon, files, strict=True)]
    axes.barh(places, anon, 0.6, label="weights, KV cache, buffers", color=COLOURS[0])
    axes.barh(places, files, 0.6, left=anon, label="mapped files", color=COLOURS[5])
    axes.barh(places, rest, 0.6, left=both, label="at the peak only", color=COLOURS[6])
    axes.set_yticks(places, [wrapped(name) for name in largest])
    axes.invert_yaxis()
    ram = {record.board.ram_bytes / 1e9 for record in largest.values() if record.board.ram_bytes}
    title = "Memory"
    if ram and max(ram) < 6 * max(m.peak_rss_bytes for m in memories) / 1e9:
        for n in ram:
            axes.axvline(n, color=COLOURS[1], linestyle="--", linewidth=1)
        title += ", dashed: the board's RAM"
    elif ram:
        title += f" (the board has {' or '.join(f'{n:.1f}' for n in sorted(ram))} GB)"
    axes.set(title=title, xlabel="GB")
    _legend(axes)
    return True


def draw_roofline(axes: "Axes", records: Sequence[Record]) -> bool:
    """Generation speed against bytes a token reads, under the limit of each board."""
    points = [r for r in kernel(records) if r.bytes_per_token and r.workload.n_streams == 1 and r.tokens_per_s]
    limits = {r.board.name: r.board.read_bytes_per_s for r in points if r.board.read_bytes_per_s}
    if not limits:
        return False
    sizes = [r.bytes_per_token / 1e9 for r in points if r.bytes_per_token]
    xs = [min(sizes) * 0.8 * (max(sizes) * 1.25 / (min(sizes) * 0.8)) ** (i / 40) for i in range(41)]
    for i, (name, limit) in enumerate(limits.items()):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(xs, [limit / 1e9 / x for x in xs], color=colour, label=f"limit: {limit / 1e9:.1f} GB/s, {name}")
        of_board = [r for r in points if r.board.name == name]
        axes.scatter(
            [(r.bytes_per_token or 0) / 1e9 for r in of_board],
            [r.tokens_per_s.median for r in of_board if r.tokens_per_s],
            color=colour, zorder=3, s=24,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set(title="Roofline of generation", xlabel="GB a token reads", ylabel="tokens/s")
    _legend(axes)
    return True


def draw_sustained(axes: "Axes", records: Sequence[Record]) -> bool:
    """Speed in windows of 10 s over a long run, with the temperature."""
    long = [record for record in records if record.workload.duration_s and len(record.samples) > 1]
    heat = None
    for i, record in enumerate(long):
        found = windows(record)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot([at for at, _ in found], [rate for _, rate in found], color=colour, label=series(record, records))
        warmth = [(m.at_s, m.temperature_c) for m in record.conditions.moments if m.temperature_c is not None]
        if warmth:
            heat = heat or axes.twinx()
            heat.plot(*zip(*warmth, strict=True), color=colour, linestyle=":", linewidth=1)
            heat.set_ylabel("°C, dotted")
            heat.grid(visible=False)
    if long:
        axes.set_ylim(bottom=0)
        axes.set(title="Sustained generation, windows of 10 s", xlabel="s", ylabel="tokens/s")
        _legend(axes)
    return bool(long)


def _legend(axes: "Axes") -> None:
    """Below the picture, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=2, borderaxespad=0)


def wrapped(name: str) -> str:
    """A long name in two lines."""
    return name if len(name) <= 24 else "-\n".join(name.rsplit("-", 1))


DRAWERS: dict[str, Callable[["Axes", Sequence[Record]], bool]] = {
    "generation": draw_generation,
    "prompt": draw_prompt,
    "roofline": draw_roofline,
    "depth": draw_depth,
    "streams": draw_streams,
    "threads": draw_threads,
    "memory": draw_memory,
    "sustained": draw_sustained,
}


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


def series(record: Record, records: Sequence[Record]) -> str:
    """The name of a line or bar: of model, program, board and threads what differs among all records."""
    parts = [Path(record.model.name).stem]
    if len({other.program.name for other in records}) > 1:
        parts.append(record.program.name)
    if len({other.board.name for other in records}) > 1:
        parts.append(record.board.name)
    return ", ".join(parts)
