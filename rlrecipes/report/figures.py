"""Figures with axes, drawn by Matplotlib as SVG inside the page, in the page's own colours, light and dark.

scores_of({"silence": [-3.1, -2.9], "good answers": [1.2, 0.8]})    "<svg …>…</svg>"
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

INK, ACCENT, RULE, WASH = "#000001", "#000002", "#000003", "#000004"
COLOURS = {INK: "var(--muted)", ACCENT: "var(--accent)", RULE: "var(--rule)", WASH: "var(--raw)"}
"""What is drawn in the colour on the left takes the page's on the right."""
SERIES = (("o", ACCENT), ("s", "#d9722e"), ("^", "#2e9d58"), ("v", "#9b62cc"))
"""The mark and the colour of one algorithm's updates, of the next one's, and so on; they show on light and on dark."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlrecipes",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), RULE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


def scores_of(kinds: Mapping[str, Sequence[float]]) -> str:
    """The spread of the scores of each kind of answers: median, quartiles, and the 5th and 95th of a hundred."""

    def draw(axes: Any) -> None:
        names = [*kinds][::-1]
        axes.boxplot(
            [kinds[name] for name in names],
            orientation="horizontal",
            tick_labels=names,
            whis=(5, 95),
            showfliers=False,
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": WASH, "edgecolor": ACCENT},
            medianprops={"color": ACCENT, "linewidth": 2},
            whiskerprops={"color": ACCENT},
            capprops={"color": ACCENT},
        )
        axes.axvline(0, color=RULE, linewidth=1, zorder=0)
        axes.set_xlabel("score, in standard deviations")

    return _svg(draw, 0.7 + 0.32 * len(kinds))


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """How often a promised chance was kept, by bins of the chance; on the diagonal it always is."""

    def draw(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=RULE, linewidth=1)
        most = max(part["count"] for part in bins)
        for part in bins:
            kept = part["accuracy"]
            axes.plot([part["chance"]] * 2, [kept["low"], kept["high"]], color=WASH, linewidth=2)
            axes.plot(
                part["chance"], kept["value"], "o", color=ACCENT, markersize=3 + 7 * (part["count"] / most) ** 0.5
            )
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(min(0.45, *(part["accuracy"]["low"] for part in bins)), 1.03)
        axes.set_xlabel("chance by the scores that the higher one is preferred")
        axes.set_ylabel("share that is")

    return _svg(draw, 3.2)


def frontier(
    paths: Mapping[str, Sequence[tuple[float, float]]],
    points: Mapping[str, tuple[float, float]],
    words: str,
    begun: str,
) -> str:
    """The reward bought with KL: (KL, reward) of each algorithm's updates in order, and of other policies by name.

    `begun` is the policy that they began at.
    """
    several = len(paths) > 1

    def draw(axes: Any) -> None:
        for (name, path), (mark, colour) in zip(paths.items(), cycle(SERIES)):
            line = {"color": colour, "alpha": 0.4} if several else {"color": WASH}
            axes.plot(*zip(*path, strict=True), "-", linewidth=1, **line)
            axes.plot(*zip(*path, strict=True), mark, color=colour, markersize=4 if several else 3, label=name)
            if not several:
                axes.annotate(" last update", path[-1], color=ACCENT, va="top")
        if several:
            axes.legend(frameon=False, loc="lower right")
        for name, place in points.items():
            axes.plot(*place, "D", color=INK, markersize=6)
            axes.annotate(f"{name} ", place, ha="right", va="bottom")
        axes.margins(0.12)
        axes.set_xlabel(f"KL from {begun}, nats per answer")
        axes.set_ylabel("reward")

    return _svg(draw, 3.2, words)


def spread(values: Sequence[float], label: str, words: str) -> str:
    """How many prompts have which difference; what gained is drawn in another colour than what lost."""

    def draw(axes: Any) -> None:
        reach = max(map(abs, values)) or 1.0
        _, edges, bars = axes.hist(values, bins=21, range=(-reach, reach), rwidth=0.92)
        for left, right, bar in zip(edges, edges[1:], bars, strict=False):
            bar.set_facecolor(ACCENT if left > 0 else WASH if right < 0 else INK)
        axes.set_xlabel(label)
        axes.set_ylabel("prompts")

    return _svg(draw, 2.6, words)


def _svg(draw: Any, height: float, words: str = "") -> str:
    """A drawing `height` inches high, wide enough for a phone; two drawings on one page share no names of their parts.

    `words` say what it shows, for screen readers; without them the page has to.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE), io.StringIO() as file:
        figure = Figure(figsize=(5.4, height), layout="tight")
        draw(figure.add_subplot())
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        text = file.getvalue()
    text = re.sub(r' id="[a-z_A-Z0-9.]*_\d+"', "", text[text.index("<svg") :])
    text = re.sub(r'<(metadata|style).*?</\1>|<!--.*?-->| xmlns(:xlink)?="[^"]*"', "", text, flags=re.S)
    text = re.sub(
        r'<clipPath.*?</clipPath>| clip-path="[^"]*"', "", text, flags=re.S
    )  # the page refers to nothing by url
    text = text.replace("xlink:href", "href")  # as HTML has it
    if words:
        text = text.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
    for colour, own in COLOURS.items():
        text = text.replace(colour, own)
    return text.strip()
