"use strict";
/* Dot plots: one row a measurement, the gist with its interval beside its replacements, on one scale. Plain elements. */

/**
 * A figure of rows [{label, detail, marks: [{role, value, interval}], target: {above, below}}].
 * The scale fits the gist, drop, last token, full text and targets; a replacement beyond it is not drawn but named below.
 */
function dotPlot({ title, note, unit, rows, range, references = [] }) {
  rows = rows.map((row) => ({ ...row, marks: row.marks.filter((mark) => isNumber(mark.value)).map((mark) => ({ ...mark, style: look(mark.role) })) }))
    .filter((row) => row.marks.length);
  if (!rows.length) return null;
  const [low, high] = range ?? scale(rows, references);
  const styles = new Map(rows.flatMap((row) => row.marks).map((mark) => [mark.style.label, mark.style]));
  const at = (value) => `${(100 * (Math.min(Math.max(value, low), high) - low)) / (high - low)}%`;
  return el("figure", { class: "chart dots" },
    el("figcaption", {}, title && el("h3", { text: title }), note && el("p", { text: note }),
      key([...styles.values()].map((style) => ({ style, dots: true })))),
    el("ul", { class: "rows" }, ...rows.map((row) => dotRow(row, at, low, high, references))),
    el("div", { class: "axis", "aria-hidden": "true" }, el("div", {},
      ...ticks(low, high).map((value) => el("span", { style: { left: at(value) }, text: number(value, 4).replace(/\.?0+$/, "") })),
    )),
    el("p", { class: "unit", text: [unit, ...offScale(rows, low, high), ...references.map((line) => `vertical line: ${line.label}`)].join(" · ") }),
    dotNumbers(title ?? unit, rows, [...styles.keys()]));
}

/** Which replacements are off the scale of every row, or of some. */
function offScale(rows, low, high) {
  const off = rows.flatMap(({ marks }) => marks.filter(({ value }) => value < low || value > high)).map(({ style }) => style.label);
  const each = [...new Set(off)].map((label) => (off.filter((other) => other === label).length === rows.length ? label : `${label} in places`));
  return each.length ? [`off the scale, see Numbers: ${each.join(", ")}`] : [];
}

function dotNumbers(title, rows, names) {
  const of = (row, name) => number(row.marks.find((mark) => mark.style.label === name)?.value);
  return unfolding(() => [table(title, ["", ...names], rows.map((row) => [[row.label, row.detail].filter(Boolean).join(", "), ...names.map((name) => of(row, name))]))]);
}

function scale(rows, references) {
  const core = ["gist", "drop", "last_token", "full"];
  const values = rows.flatMap((row) => [
    ...row.marks.filter((mark) => typeof mark.role !== "string" || core.includes(mark.role)).flatMap((mark) => [mark.value, ...(mark.interval || [])]),
    row.target?.above, row.target?.below,
  ]);
  const [low, high] = extent([...values, ...references.map((line) => line.value)]);
  const room = (high - low) * 0.05 || 0.1;
  return [low >= 0 && low < 0.6 * high ? 0 : low - room, high + room];
}

function dotRow({ label, detail, marks, target }, at, low, high, references) {
  const first = marks[0];
  const track = el("div", { class: "track", "aria-hidden": "true" });
  for (const value of ticks(low, high)) track.append(el("i", { class: "grid", style: { left: at(value) } }));
  for (const { value } of references) track.append(el("i", { class: "reference", style: { left: at(value) } }));
  if (target) {
    const [from, to] = [target.above ?? low, target.below ?? high];
    track.append(el("i", { class: "wanted", style: { left: at(from), width: `calc(${at(to)} - ${at(from)})` } }));
  }
  for (const mark of marks.filter(({ value }) => low <= value && value <= high).reverse()) {
    if (mark.interval) track.append(el("i", { class: "interval", style: { left: at(mark.interval[0]), width: `calc(${at(mark.interval[1])} - ${at(mark.interval[0])})`, background: `var(--${mark.style.colour})` } }));
    track.append(el("span", { class: mark === first ? "dot first" : "dot", style: { left: at(mark.value) }, title: `${mark.style.label} ${number(mark.value)}` },
      marker(mark.style, mark === first ? 15 : 11)));
  }
  return el("li", {},
    el("span", { class: "label" }, label, detail && el("small", { text: detail })),
    track,
    el("span", { class: "value" }, el("b", { text: number(first.value) }), first.interval && el("small", { text: interval(first.interval) })));
}

/** A record as a row of a dot plot: the gist, or what was measured of it, and its baselines. */
function recordRow(record, label, detail) {
  return {
    label, detail, target: record.target,
    marks: [{ role: "gist", value: record.value, interval: record.interval }, ...Object.entries(record.baselines).map(([role, value]) => ({ role, value }))],
  };
}
