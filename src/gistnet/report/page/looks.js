"use strict";
/* What charts share: how each series looks, keys, numbers as tables. */

/** How each series looks: a colour of the style sheet, and a dash and a marker that tell it apart without colour; in the order of columns. */
const LOOKS = {
  drop: { label: "drop", dash: "2 3", symbol: "square", width: 1.7 },
  last_token: { label: "last token", dash: "6 3", symbol: "diamond", width: 1.7 },
  recent_tokens: { label: "recent tokens", colour: "equal-4", dash: "5 2 1 2", symbol: "diamond", width: 1.7 },
  surprisal_token: { label: "surprisal token", dash: "9 3 2 3", symbol: "triangle-up", width: 1.4 },
  mean: { label: "mean", dash: "1 3", symbol: "cross", width: 1.4 },
  shuffled: { label: "shuffled", dash: "4 2", symbol: "x", width: 1.4 },
  gists_below: { label: "gists below", dash: "7 2 2 2", symbol: "star-triangle-up", width: 1.7, colour: "equal-5" },
  full: { label: "full text", dash: "solid", symbol: "star-triangle-up", width: 1.4 },
  gist: { label: "gist", dash: "solid", symbol: "circle", width: 2.6 },
  truncated: { label: "truncated", colour: "drop", dash: "2 3", symbol: "square", width: 1.7 },
  row: { label: "gists, then recent text", colour: "equal-2", dash: "3 2", symbol: "triangle-up", width: 2 },
  retrieved: { label: "retrieved text", colour: "equal-4", dash: "5 2 1 2", symbol: "diamond", width: 1.7 },
  with_gists: { label: "retrieved text and gists", colour: "equal-5", dash: "7 2 2 2", symbol: "star-triangle-up", width: 2 },
  by_meaning: { label: "retrieved by meaning too", colour: "equal-3", dash: "12 4", symbol: "x", width: 1.7 },
  oracle: { label: "evidence opened", colour: "muted", dash: "9 3 2 3", symbol: "triangle-up", width: 1.4 },
  no_context: { label: "no context", colour: "surprisal_token", dash: "9 3 2 3", symbol: "triangle-up", width: 1.4 },
  chance: { label: "chance", colour: "muted", dash: "4 2", symbol: "diamond", width: 1.4 },
};
const RUN_DASHES = ["solid", "7 3", "2 3", "9 3 2 3", "4 2", "12 4"];
const RUN_SYMBOLS = ["circle", "diamond", "square", "triangle-up", "x", "cross"];

/** How the n-th of several equals looks: runs of a comparison, kinds of text, ranges of offsets. */
function equal(n, label) {
  const at = n % RUN_DASHES.length;
  const turn = Math.floor(n / RUN_DASHES.length); // beyond six, the same colours with the dash of the next
  return { label, colour: `equal-${at + 1}`, dash: RUN_DASHES[(at + turn) % 6], symbol: RUN_SYMBOLS[at], width: 2 };
}

/** The look of a replacement, or the one given. */
function look(role) {
  return typeof role === "string" ? { colour: role, ...LOOKS[role] } : role;
}

const SHAPES = {
  circle: "M0,-4.5A4.5,4.5 0 1 1 0,4.5A4.5,4.5 0 1 1 0,-4.5Z",
  diamond: "M0,-5L5,0L0,5L-5,0Z",
  square: "M-4,-4H4V4H-4Z",
  "triangle-up": "M0,-5L4.8,3.8H-4.8Z",
  x: "M-4.5,-2.5L-2.5,-4.5L0,-2L2.5,-4.5L4.5,-2.5L2,0L4.5,2.5L2.5,4.5L0,2L-2.5,4.5L-4.5,2.5L-2,0Z",
  cross: "M-1.5,-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
  "star-triangle-up": "M0,-6L6,4.5H-6Z",
};

/** The marker of a look, as a small picture of its own. */
function marker(style, size = 12) {
  return el("svg", { viewBox: "-6 -6 12 12", width: size, height: size, "aria-hidden": "true", class: "marker" },
    el("path", { d: SHAPES[style.symbol], style: { fill: `var(--${style.colour})` } }));
}

/** A key: line, marker, name, and what the series comes to. */
function key(entries) {
  return el("ul", { class: "key" }, ...entries.map(({ style, note, dots }) =>
    el("li", {},
      dots ? marker(style) : el("svg", { viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" },
        el("line", { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": style.width, "stroke-dasharray": style.dash === "solid" ? null : style.dash, style: { stroke: `var(--${style.colour})` } })),
      el("span", { text: style.label }), note && el("b", { text: note }))));
}

const MOST_ROWS = 200;

/** The numbers of a chart as a table, made when it is asked for. */
function numbers(title, xName, shown, xText = (at) => number(at, Number.isInteger(at) ? 0 : 3)) {
  return unfolding(() => {
    const rows = new Map();
    shown.forEach(({ x, y }, column) => x.forEach((at, n) => {
      if (!rows.has(at)) rows.set(at, []);
      rows.get(at)[column] = y[n];
    }));
    const sorted = [...rows].sort(([a], [b]) => a - b);
    const every = Math.ceil(sorted.length / MOST_ROWS);
    const kept = sorted.filter((_, n) => n % every === 0 || n === sorted.length - 1);
    return [table(title, [xName, ...shown.map(({ style }) => style.label)],
      kept.map(([at, values]) => [xText(at), ...shown.map((_, column) => number(values[column], 4))])),
      ...(every > 1 ? [el("p", { class: "small", text: `One row in ${every}.` })] : [])];
  });
}

/** A title that unfolds what `make` returns. */
function unfolding(make, title = "Numbers") {
  const details = el("details", { class: "numbers" }, el("summary", { text: title }));
  details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(...make()));
  return details;
}

/**
 * A table that scrolls in its own box; `stacked`, on a phone a list a row. Cells are text or nodes; the first column heads
 * its row.
 */
function table(caption, columns, rows, { numeric = true, stacked = false } = {}) {
  const cell = (content, n) => n === 0 ? el("th", { scope: "row" }, content)
    : el("td", { class: [numeric && "number", (content ?? "") === "" && "empty"].filter(Boolean).join(" ") || null, "data-label": stacked && columns[n] }, content ?? "");
  const box = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { class: stacked && "stacked" }, el("caption", { class: "hidden", text: caption }),
      el("thead", {}, el("tr", {}, ...columns.map((name, n) => el("th", { scope: "col", class: numeric && n > 0 && "number", text: name })))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell))))));
  const say = () => box.classList.toggle("cut", box.scrollWidth > box.clientWidth + 1 && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  new ResizeObserver(say).observe(box);
  box.addEventListener("scroll", say, { passive: true });
  return box;
}
