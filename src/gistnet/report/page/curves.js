"use strict";
/* Curves of training and validation, by stage; of one run, or of several overlaid. */

/** What each chart of a single run draws: columns of `validation` or `training`, each in a look. */
const RANGES = { "": "all offsets", "_1_8": "offsets 1–8", "_9_32": "offsets 9–32" };
const RUN_CURVES = [
  { title: "KL", unit: "nats per token", columns: [["validation", "kl", "gist"], ["validation", "kl_drop", "drop"], ["validation", "kl_last_token", "last_token"]],
    note: "The gist against dropping the span and against its last token, on the same held-out spans." },
  { title: "ΔNLL", unit: "nats per token", target: "delta_nll",
    columns: [["validation", "delta_nll", "gist"], ["validation", "delta_nll_drop", "drop"], ["validation", "delta_nll_last_token", "last_token"], ["validation", "moving_average", equal(3, "moving average")]],
    note: "How much worse the true continuation is predicted." },
  { title: "Recovered KL", unit: "share of drop", columns: Object.entries(RANGES).map(([end, label], n) => ["validation", `recovered_kl${end}`, n ? equal(n, label) : { ...look("gist"), label }]),
    note: "1 is a perfect replacement, 0 no better than dropping. Early offsets are local syntax, late ones what the span was about." },
  { title: "Training loss", unit: "nats per token", columns: [["training", "loss", { ...look("gist"), label: "loss" }], ["training", "kl", equal(1, "KL")], ["training", "delta_nll", equal(2, "ΔNLL")]] },
];
const MORE_RUN_CURVES = [
  { title: "Distances between gists", unit: "cosine distance", target: "adjacent_distance",
    columns: [["validation", "gist_diversity", { ...look("gist"), label: "diversity" }], ["validation", "adjacent_distance", equal(1, "adjacent spans")], ["validation", "contrastive_gap", equal(2, "contrastive gap")], ["validation", "gist_variance", equal(4, "variance")]],
    note: "Below 0.3 gists begin to collapse into one." },
  { title: "Substitutability rate", unit: "share of spans", target: "substitutability_rate", columns: [["validation", "substitutability_rate", "gist"]], note: "Spans whose ΔNLL is below 1.0." },
  { title: "Gist norm", unit: "length", columns: [["training", "gist_norm", { ...look("gist"), label: "training" }], ["validation", "gist_norm", equal(1, "held out")]] },
  { title: "Contrastive weight λ", unit: "weight", columns: [["training", "contrastive_weight", { ...look("gist"), label: "λ" }]] },
  { title: "Learning rate", unit: "per step", columns: [["training", "learning_rate", { ...look("gist"), label: "learning rate" }]] },
];

/** What each chart of a comparison draws: one column, in each run's look. */
const COMPARED_CURVES = [
  ["KL", "nats per token", "validation", "kl"], ["ΔNLL", "nats per token", "validation", "delta_nll"],
  ["Recovered KL", "share of drop", "validation", "recovered_kl"], ["Recovered KL, offsets 1–8", "share of drop", "validation", "recovered_kl_1_8"],
  ["Recovered KL, offsets 9–32", "share of drop", "validation", "recovered_kl_9_32"], ["Training loss", "nats per token", "training", "loss"],
];
const MORE_COMPARED_CURVES = [
  ["Diversity of gists", "cosine distance", "validation", "gist_diversity"], ["Contrastive gap", "cosine distance", "validation", "contrastive_gap"],
  ["Gist norm", "length", "training", "gist_norm"], ["Contrastive weight λ", "weight", "training", "contrastive_weight"], ["Learning rate", "per step", "training", "learning_rate"],
];

/**
 * Curves of one run, a stage at a time: a stage has its own level, horizon and texts, so that its figures are no
 * continuation of those before it.
 */
function runCurvesSection(run) {
  const node = section("curves", "Curves", "Measured on held-out spans while training. A key gives the last value of its curve in the stage, a dashed line is a target of the stage.");
  const longest = run.periods.reduce((best, period) => (period.step[1] - period.step[0] > best.step[1] - best.step[0] ? period : best));
  const shown = { period: longest, by: run.curves.validation.spans ? "spans" : "step" };
  const body = el("div");
  const draw = () => body.replaceChildren(
    el("div", { class: "grid" }, ...RUN_CURVES.map((figure) => stageCurve(run, shown, figure)).filter(Boolean)),
    moreCurves(() => [...MORE_RUN_CURVES, ...domainCurves(run)].map((figure) => stageCurve(run, shown, figure)).filter(Boolean)));
  const names = run.periods.map((period, n) => [String(n), `${n + 1} ${period.name}`]);
  const bar = el("div", { class: "choices" });
  if (names.length > 1) bar.append(choice("Stage", names, String(run.periods.indexOf(longest)), (n) => { shown.period = run.periods[n]; draw(); }));
  if (run.curves.validation.spans) bar.append(axisChoice((by) => { shown.by = by; draw(); }));
  node.append(bar, body);
  draw();
}

/** Curves of several runs overlaid: of their stages like the first, for another level or horizon has another scale. */
function comparedCurvesSection(runs) {
  const node = section("curves", "Curves", "The same measurements on held-out spans while each run trained, in its stages of the first one's level and horizon. Runs that validated on other spans are not strictly comparable.");
  const body = el("div");
  const figures = (curves, by) => curves.map((curve) => comparedCurve(runs, by, curve)).filter(Boolean);
  const draw = (by) => body.replaceChildren(el("div", { class: "grid" }, ...figures(COMPARED_CURVES, by)), moreCurves(() => figures(MORE_COMPARED_CURVES, by)));
  const bySpans = runs.every((run) => run.curves.validation.spans);
  if (bySpans) node.append(axisChoice(draw));
  node.append(body);
  draw(bySpans ? "spans" : "step");
}

/** The horizontal axis: spans seen where the log knows them, else steps; a switch where it knows both. */
function axisChoice(onChange) {
  return choice("Horizontal axis", [["spans", "spans seen"], ["step", "optimiser steps"]], "spans", onChange);
}

/** What few look at, drawn when it is unfolded. */
function moreCurves(make) {
  const grid = el("div", { class: "grid" });
  const details = el("details", { class: "more" }, el("summary", { text: "More curves: distances, learning rate, λ, gist norm" }), grid);
  details.addEventListener("toggle", () => details.open && !grid.childElementCount && grid.append(...make()));
  return details;
}

function axisTitle(by) {
  return by === "spans" ? "spans seen" : "optimiser steps";
}

function averagedNote(note, curves, columns) {
  const averaged = columns.some(([from]) => from === "training") ? curves.training.averaged : 1;
  return [note, averaged > 1 && `Each training point is the mean of ${averaged} logged steps.`].filter(Boolean).join(" ") || null;
}

/** One chart of a stage: its part of the columns, one that repeats another left out. */
function stageCurve(run, { period, by }, { title, unit, columns, note, target }) {
  const ofStage = (curves, values) => values.filter((_, n) => curves.stage[n] === period.stage);
  const targets = period.targets.filter(({ name }) => name === target).flatMap((wanted) =>
    ["above", "below"].filter((side) => isNumber(wanted[side])).map((side) => ({ y: wanted[side], label: `${side} ${wanted[side]}` })));
  const series = columns.filter(([from, name]) => run.curves[from].values[name]).map(([from, name, role]) => {
    const curves = run.curves[from];
    return { role, x: ofStage(curves, curves[by]), y: ofStage(curves, curves.values[name]) };
  });
  const distinct = series.filter(({ y }, n) => y.some(Boolean) && !series.slice(0, n).some((other) => other.y.join() === y.join()));
  return lineChart({ title, note: averagedNote(note, run.curves, columns), yTitle: unit, xTitle: axisTitle(by), counts: true, lines: targets, xRange: period[by], series: distinct });
}

/** Charts by kind of text, where training reads more than one. */
function domainCurves(run) {
  const names = Object.keys(run.curves.validation.values);
  return [["KL by kind of text", "kl/"], ["ΔNLL by kind of text", "delta_nll/"]].map(([title, start]) => ({
    title, unit: "nats per token", note: "After the gist.",
    columns: names.filter((name) => name.startsWith(start) && !/_(drop|last_token)$/.test(name))
      .map((name, n) => ["validation", name, equal(n, plain(name.slice(start.length)))]),
  }));
}

/** Numbers of the stages with the first one's level and horizon: their figures are comparable. */
function likeTheFirst({ periods }) {
  return periods.filter(({ level, horizon }) => level === periods[0].level && horizon === periods[0].horizon).map(({ stage }) => stage);
}

/** One chart of several runs against `by`. */
function comparedCurve(runs, by, [title, unit, from, name]) {
  return lineChart({
    title, yTitle: unit, xTitle: axisTitle(by), counts: true,
    series: runs.flatMap((run, n) => {
      const curves = run.curves[from];
      const stages = likeTheFirst(run);
      const ofStages = (values) => values.filter((_, at) => stages.includes(curves.stage[at]));
      return curves.values[name] ? [{ role: equal(n, run.name), x: ofStages(curves[by]), y: ofStages(curves.values[name]) }] : [];
    }),
  });
}
