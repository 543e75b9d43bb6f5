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
  { title: "Distances between gists", unit: "cosine distance", target: "adjacent_distance",
    columns: [["validation", "gist_diversity", { ...look("gist"), label: "diversity" }], ["validation", "adjacent_distance", equal(1, "adjacent spans")], ["validation", "contrastive_gap", equal(2, "contrastive gap")], ["validation", "gist_variance", equal(4, "variance")]],
    note: "Below 0.3 gists begin to collapse into one." },
  { title: "Substitutability rate", unit: "share of spans", target: "substitutability_rate", columns: [["validation", "substitutability_rate", "gist"]], note: "Spans whose ΔNLL is below 1.0." },
  { title: "Training loss", unit: "nats per token", columns: [["training", "loss", "gist"], ["training", "kl", equal(1, "KL")], ["training", "delta_nll", equal(2, "ΔNLL")]] },
  { title: "Gist norm", unit: "length", columns: [["training", "gist_norm", { ...look("gist"), label: "training" }], ["validation", "gist_norm", equal(1, "held out")]] },
  { title: "Contrastive weight λ", unit: "weight", columns: [["training", "contrastive_weight", { ...look("gist"), label: "λ" }]] },
  { title: "Learning rate", unit: "per step", columns: [["training", "learning_rate", { ...look("gist"), label: "learning rate" }]] },
];

/** What each chart of a comparison draws: one column, in each run's look. */
const COMPARED_CURVES = [
  ["KL", "nats per token", "validation", "kl"], ["ΔNLL", "nats per token", "validation", "delta_nll"],
  ["Recovered KL", "share of drop", "validation", "recovered_kl"], ["Recovered KL, offsets 1–8", "share of drop", "validation", "recovered_kl_1_8"],
  ["Recovered KL, offsets 9–32", "share of drop", "validation", "recovered_kl_9_32"], ["Training loss", "nats per token", "training", "loss"],
  ["Diversity of gists", "cosine distance", "validation", "gist_diversity"], ["Contrastive gap", "cosine distance", "validation", "contrastive_gap"],
  ["Gist norm", "length", "training", "gist_norm"], ["Contrastive weight λ", "weight", "training", "contrastive_weight"], ["Learning rate", "per step", "training", "learning_rate"],
];

/** The horizontal axis: spans seen where the log knows them, else steps; a switch where it knows both. */
function curvesSection(runs, chartsOf) {
  const node = section("curves", "Curves", runs.length > 1
    ? "The same held-out measurements while each run trained. Runs that validated on other spans are not strictly comparable."
    : "Measured on held-out spans while training. A dotted line begins a stage, a dashed one is a target of its stage.");
  const grid = el("div", { class: "grid" });
  const draw = (by) => grid.replaceChildren(...chartsOf(by).filter(Boolean));
  const bySpans = runs.every((run) => run.curves.validation.spans);
  if (bySpans) node.append(choice("Horizontal axis", [["spans", "spans seen"], ["step", "optimiser steps"]], "spans", draw));
  node.append(grid);
  draw(bySpans ? "spans" : "step");
  return node;
}

function axisTitle(by) {
  return by === "spans" ? "spans seen" : "optimiser steps";
}

function averagedNote(note, curves, columns) {
  const averaged = columns.some(([from]) => from === "training") ? curves.training.averaged : 1;
  return [note, averaged > 1 && `Each training point is the mean of ${averaged} logged steps.`].filter(Boolean).join(" ") || null;
}

/** The charts of one run against `by`, "spans" or "step". */
function runCurves(run, by) {
  const stages = run.periods.length > 1 ? run.periods.map((period, n) => ({ x: period[by][0], label: `${n + 1} ${period.name}` })) : [];
  const figure = ({ title, unit, columns, note, target }) => {
    const targets = run.periods.flatMap((period) => period.targets.filter(({ name }) => name === target).flatMap((wanted) =>
      ["above", "below"].filter((side) => isNumber(wanted[side])).map((side) =>
        ({ y: wanted[side], from: period[by][0], to: period[by][1], label: `${side} ${wanted[side]}` }))));
    return lineChart({
      title, note: averagedNote(note, run.curves, columns), yTitle: unit, xTitle: axisTitle(by), counts: true, lines: [...stages, ...targets],
      xRange: extent(run.periods.flatMap((period) => period[by])),
      series: columns.filter(([from, name]) => run.curves[from].values[name]).map(([from, name, role]) =>
        ({ role, x: run.curves[from][by], y: run.curves[from].values[name] })),
    });
  };
  return [...RUN_CURVES.map(figure), ...domainCurves(run).map(figure)];
}

/** Charts by kind of text, where training reads more than one. */
function domainCurves(run) {
  const names = Object.keys(run.curves.validation.values);
  return [["KL by kind of text", "kl/"], ["ΔNLL by kind of text", "delta_nll/"]].map(([title, start]) => ({
    title, unit: "nats per token",
    columns: names.filter((name) => name.startsWith(start))
      .map((name, n) => ["validation", name, equal(n, plain(name.slice(start.length)))]),
  }));
}

/** The charts of several runs against `by`. */
function comparedCurves(runs, by) {
  return COMPARED_CURVES.map(([title, unit, from, name]) => lineChart({
    title, yTitle: unit, xTitle: axisTitle(by), counts: true,
    series: runs.flatMap((run, n) => run.curves[from].values[name]
      ? [{ role: equal(n, run.name), x: run.curves[from][by], y: run.curves[from].values[name] }] : []),
  }));
}
