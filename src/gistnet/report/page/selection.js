"use strict";
/* Which of the evaluation's results are shown: kind of text, horizon, position policy, and what else varies. */

const SELECTED_BY = { domain: "text", horizon: "horizon H", positions: "positions", level: "level", spans_per_segment: "spans a segment" };

/** A record with what is not written because it is so by default. */
function completed(record) {
  return { kind: "", index: null, tokens_per_vector: null, horizon: null, offsets: null, level: 0, spans_per_segment: 1, interval: null, target: null, met: null, baselines: {}, ...record };
}

/** The values each key takes among `results`, in their order. */
function choices(results) {
  return Object.fromEntries(Object.keys(SELECTED_BY).map((key) =>
    [key, [...new Set(results.map((record) => record[key]).filter((value) => value !== null))]]));
}

/** What is shown first: the mean over kinds of text where there is one at the first horizon, read as in training. */
function firstSelection(results, positions) {
  const measured = results.filter((record) => record.name === "kl");
  const options = choices(measured);
  const isMixed = measured.some((record) => record.domain === "mixed" && record.horizon === options.horizon[0]);
  const preferred = { domain: isMixed ? "mixed" : options.domain[0], positions };
  return Object.fromEntries(Object.entries(options).map(([key, values]) =>
    [key, values.includes(preferred[key]) ? preferred[key] : values[0]]));
}

/** A row of menus, one for each key with a choice; `onChange` gets the new selection. */
function selectionBar(results, selection, onChange) {
  const options = choices(results.filter((record) => record.name === "kl"));
  const menus = Object.entries(options).filter(([, values]) => values.length > 1).map(([key, values]) => {
    const menu = el("select", { on: { change: () => onChange({ ...selection.now, [key]: values[menu.selectedIndex] }) } },
      ...values.map((value) => el("option", { text: String(value), selected: value === selection.now[key] })));
    return el("label", {}, el("span", { text: SELECTED_BY[key] }), menu);
  });
  return menus.length ? el("div", { class: "menus", role: "group", "aria-label": "What is shown" }, ...menus) : null;
}

/**
 * The records of `name` for a selection. What a measurement does not depend on is not asked of it: a record without
 * horizon fits any, and one measured under a single policy is shown under all, with its own policy in the caption.
 */
function pick(results, name, selection, keys = Object.keys(SELECTED_BY)) {
  let found = results.filter((record) => record.name === name);
  for (const key of keys) {
    const several = new Set(found.map((record) => record[key])).size > 1;
    if (key === "domain" || several) found = found.filter((record) => record[key] === null || record[key] === selection[key]);
  }
  return found;
}

/** A measure over everything: of no sub-group, no single head or token, and no budget. */
function isWhole(record) {
  return record.kind === "" && record.index === null && record.tokens_per_vector === null;
}

/** A measure of all offsets, or of none. */
function isOverHorizon(record) {
  return record.offsets === null || (record.offsets[0] === 1 && record.offsets[1] === record.horizon) || record.name.startsWith("row_");
}

/** One record of a selection: the whole over a range of offsets, all unless given. */
function pickOne(results, name, selection, offsets) {
  return pick(results, name, selection).find((record) => isWhole(record) &&
    (offsets && record.offsets ? record.offsets.join() === offsets : isOverHorizon(record)));
}

/** What a record was measured on, in words. */
function measuredOn(record) {
  return [record.domain, record.horizon && `H = ${record.horizon}`, `positions ${record.positions}`,
    record.level ? `level ${record.level}` : null, record.spans_per_segment > 1 ? `${record.spans_per_segment} spans a segment` : null,
    `${whole(record.n_spans)} spans of ${whole(record.n_documents)} documents`].filter(Boolean).join(" · ");
}

function offsetsOf(record) {
  if (!record.offsets) return "";
  return record.offsets[0] === record.offsets[1] ? String(record.offsets[0]) : `${record.offsets[0]}–${record.offsets[1]}`;
}

function targetText(target) {
  return [isNumber(target.above) && `above ${target.above}`, isNumber(target.below) && `below ${target.below}`].filter(Boolean).join(", ");
}

/** A target with its verdict, in words and with a mark. */
function verdict(target, met) {
  if (!target) return "";
  const said = met === true ? "met" : met === false ? "not met" : "open";
  return el("span", { class: `verdict ${said.replace(" ", "-")}` }, targetText(target), el("b", { text: said }));
}
