"use strict";
/* Line charts as SVG. Colours are the style sheet's, so that a change of theme redraws nothing; the size is the box's. */

/**
 * A figure with a line chart: title, note, key, plot, and its numbers as a table; null where no series has a number.
 * series: [{role, x, y, band: [low, high], marks: "lines" | "markers" | undefined, note}]
 * lines: [{y, from, to, label}] for levels, [{x, label}] for places. counts: x are whole numbers. xText: how one is written.
 */
function lineChart({ title, note, series, xTitle, yTitle, lines = [], xRange, yRange, counts = false, height = 230, xName = xTitle, xText }) {
  const shown = series.filter((one) => one.y.some(isNumber)).map((one) => ({ ...one, style: look(one.role) }));
  if (!shown.length) return null;
  const last = (values) => values.filter(isNumber).at(-1);
  const summary = shown.map(({ style, y }) => `${style.label}: from ${number(y.find(isNumber))} to ${number(last(y))}`).join("; ");
  const plot = el("div", { class: "plot", role: "img", "aria-label": `${title}. ${summary}`, style: { height: `${height}px` } });
  const chart = { shown, xTitle, yTitle, lines, height, counts, xText, x: xRange ?? extent(shown.flatMap(({ x }) => x)), y: yRange ?? heights(shown, lines) };
  new ResizeObserver(() => drawChart(plot, chart)).observe(plot);
  return el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", { text: title }), note && el("p", { text: note }),
      key(shown.map(({ style, y, note: said }) => ({ style, note: said ?? number(last(y)) })))),
    plot, numbers(title, xName, shown, xText));
}

/** The vertical range that shows every value and level, with a little room. */
function heights(shown, lines) {
  const [low, high] = extent([...shown.flatMap(({ y, band }) => [...y, ...(band ? band.flat() : [])]), ...lines.map((line) => line.y)]);
  const room = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low < room ? 0 : low - room, high + room];
}

const LETTER = 0.56; // about the width of a letter of the axes, as a share of their size

function drawChart(plot, chart) {
  const width = plot.clientWidth;
  if (!width || width === chart.width) return;
  chart.width = width;
  const size = parseFloat(getComputedStyle(plot).fontSize), letter = LETTER * size;
  const xTicks = ticks(...chart.x, Math.max(2, Math.min(8, Math.floor(width / (7 * size)))), chart.counts ? 1 : 0);
  const yTicks = ticks(...chart.y, 5);
  const places = chart.lines.filter((line) => line.y === undefined);
  const left = 8 + letter * Math.max(...tickTexts(yTicks).map((text) => text.length));
  const box = { left, right: width - 8, top: places.some((line) => line.label) ? 36 : 22, bottom: chart.height - 28 - size };
  const sx = (value) => box.left + ((value - chart.x[0]) / (chart.x[1] - chart.x[0] || 1)) * (box.right - box.left);
  const sy = (value) => box.bottom - ((value - chart.y[0]) / (chart.y[1] - chart.y[0] || 1)) * (box.bottom - box.top);
  const clip = `clip-${(drawChart.count = (drawChart.count || 0) + 1)}`;
  const svg = el("svg", { width, height: chart.height, "aria-hidden": "true" },
    el("clipPath", { id: clip }, el("rect", { x: box.left - 5, y: box.top - 5, width: box.right - box.left + 10, height: box.bottom - box.top + 10 })),
    ...axes(chart, box, sx, sy, xTicks, yTicks), ...placeLines(places, box, sx, letter),
    el("g", { "clip-path": `url(#${clip})` }, ...chart.shown.toReversed().flatMap((one) => drawSeries(one, sx, sy))),
    ...levelLines(chart.lines.filter((line) => line.y !== undefined), box, sx, sy));
  plot.replaceChildren(svg);
  readout(plot, svg, chart, box, sx, sy);
}

/** Round numbers in one form: as many decimals as their step needs. */
function tickTexts(values) {
  const step = values.length > 1 ? values[1] - values[0] : Math.abs(values[0]) || 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return values.map((value) => (digits > 4 ? value.toExponential(0).replace("0e+0", "0") : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })).replace("-", "−"));
}

function axes(chart, box, sx, sy, xTicks, yTicks) {
  const text = (x, y, anchor, content, kind = "tick") => el("text", { x, y, "text-anchor": anchor, class: kind, text: content });
  const xTexts = chart.xText ? xTicks.map(chart.xText) : tickTexts(xTicks), yTexts = tickTexts(yTicks);
  return [
    ...yTicks.flatMap((value, n) => [
      el("line", { x1: box.left, x2: box.right, y1: sy(value), y2: sy(value), class: value === 0 ? "zero" : "rule" }),
      text(box.left - 6, sy(value) + 3.5, "end", yTexts[n])]),
    ...xTicks.flatMap((value, n) => [
      el("line", { x1: sx(value), x2: sx(value), y1: box.bottom, y2: box.bottom + 4, class: "rule" }),
      text(sx(value), box.bottom + 17, sx(value) > box.right - 14 ? "end" : "middle", xTexts[n])]),
    text(0, 10, "start", chart.yTitle, "title"),
    text(box.right, chart.height - 3, "end", chart.xTitle, "title"),
  ];
}

/** Vertical lines; a label that would run into the next is cut to its first word. */
function placeLines(places, box, sx, letter) {
  return places.flatMap(({ x, label = "" }, n) => {
    const room = (n + 1 < places.length ? sx(places[n + 1].x) : box.right + 8) - sx(x);
    const short = label.length * letter + 6 > room ? label.split(" ")[0] : label;
    return [el("line", { x1: sx(x), x2: sx(x), y1: box.top - 6, y2: box.bottom, class: "place" }),
      el("text", { x: sx(x) + 4, y: box.top - 2, class: "tick", text: short })];
  });
}

function levelLines(levels, box, sx, sy) {
  return levels.flatMap(({ y, from, to, label }) => {
    const [x1, x2] = [from === undefined ? box.left : sx(from), to === undefined ? box.right : sx(to)];
    return [el("line", { x1, x2, y1: sy(y), y2: sy(y), class: "level" }), el("text", { x: x2 - 2, y: sy(y) - 4, "text-anchor": "end", class: "level", text: label })];
  });
}

function drawSeries({ style, x, y, band, marks }, sx, sy) {
  const points = x.map((at, n) => [at, y[n]]).filter(([, value]) => isNumber(value)).map(([at, value]) => [sx(at).toFixed(1), sy(value).toFixed(1)]);
  const stroke = `var(--${style.colour})`;
  const joined = (pairs) => pairs.map((pair) => pair.join()).join("L");
  const side = (values) => x.map((at, n) => [sx(at).toFixed(1), sy(values[n]).toFixed(1)]);
  return [
    band && el("path", { d: `M${joined([...side(band[0]), ...side(band[1]).reverse()])}Z`, class: "band", style: { fill: stroke } }),
    marks !== "markers" && el("path", { d: `M${joined(points)}`, class: "series", "stroke-width": style.width, "stroke-dasharray": style.dash === "solid" ? null : style.dash, style: { stroke } }),
    ...(marks === "lines" || (marks === undefined && points.length > 30) ? [] : points.map((point) =>
      el("path", { d: SHAPES[style.symbol], transform: `translate(${point.join()}) scale(${marks ? 1 : 0.72})`, style: { fill: stroke } }))),
  ].filter(Boolean);
}

/** Under the pointer: a line at the nearest place that has a value, and the values there. */
function readout(plot, svg, chart, box, sx, sy) {
  const places = [...new Set(chart.shown.flatMap(({ x, y }) => x.filter((_, n) => isNumber(y[n]))))].sort((a, b) => a - b);
  const cursor = el("line", { y1: box.top, y2: box.bottom, class: "cursor", visibility: "hidden" });
  const tip = el("div", { class: "tip", "aria-hidden": "true" });
  svg.append(cursor);
  plot.append(tip);
  const hide = () => [cursor.setAttribute("visibility", "hidden"), tip.classList.remove("shown")];
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const pointer = event.clientX - svg.getBoundingClientRect().left;
    const place = places.reduce((best, at) => (Math.abs(sx(at) - pointer) < Math.abs(sx(best) - pointer) ? at : best), places[0]);
    const here = sx(place);
    if (here < box.left - 6 || here > box.right + 6) return hide();
    const rows = chart.shown.map(({ style, x, y }) => [style, y[x.indexOf(place)]]).filter(([, value]) => isNumber(value));
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", here);
    cursor.setAttribute("x2", here);
    tip.replaceChildren(el("p", { text: `${chart.xTitle}: ${chart.xText ? chart.xText(place) : tickTexts([0, places[1] - places[0] || 1, place]).at(-1)}` }),
      ...rows.map(([style, value]) => el("p", {}, marker(style, 10), ` ${style.label} `, el("b", { text: number(value, 4) }))));
    tip.classList.add("shown");
    tip.style.left = `${here > (box.left + box.right) / 2 ? here - tip.offsetWidth - 10 : here + 10}px`;
    tip.style.top = `${Math.min(box.top, sy(chart.y[1]))}px`;
  });
}
