"use strict";
/* The two pages, from top to bottom: the report of a run, and a comparison of several. */

function headline(title, description) {
  const heading = el("h1", { id: "top-title", dir: "auto", text: title });
  const node = el("section", { class: "top", id: "overview", "aria-labelledby": heading.id }, heading, el("p", { class: "lead", text: description }));
  document.getElementById("main").append(node);
  document.getElementById("sections").append(el("li", {}, el("a", { href: "#overview", text: "Overview" })));
  return node;
}

/* Report ----------------------------------------------------------------------------------------------------------- */

function reportPage(run) {
  const facts = Object.fromEntries(run.facts);
  const top = headline(run.name, `A network that puts one vector in the place of a span of tokens, read by ${facts.teacher ?? "a language model"}, which stays frozen.`);
  top.append(
    el("div", { class: "hero" }, recoveredFigure(run), el("dl", { class: "facts" }, ...run.facts.flatMap(([label, value]) => [el("dt", { text: label }), el("dd", { text: value })]))),
    stagesTable(run));
  if (run.events.length) top.append(el("h3", { text: "What happened" }), el("ol", { class: "events" }, ...run.events.map(({ step, text }) => el("li", {}, el("b", { text: `step ${whole(step)}` }), el("span", { text })))));
  curvesSection([run], (by) => runCurves(run, by));
  resultsSection(run);
  longContextSection(run);
  mapSection(run);
}

/** The figure that a run is judged by: the share recovered of what dropping the spans costs. */
function recoveredFigure(run) {
  const selection = run.results && firstSelection(run.results, run.positions);
  const found = run.results ? [undefined, "1,8", "9,32"].map((offsets) => pickOne(run.results, "recovered_kl", selection, offsets)).filter(Boolean) : [];
  const records = [...new Set(found)];
  const rows = records.length ? records.map((record) => recordRow(record, `offsets ${offsetsOf(record)}`)) : validatedRows(run.curves.validation.values);
  const { value, interval: around } = rows[0].marks[0];
  const source = records.length ? measuredOn(records[0]) : "The newest validation while training.";
  return el("div", { class: "headline" },
    el("p", { class: "big" }, el("b", { text: number(value) }), el("span", {}, "recovered of what dropping the spans costs in KL",
      around && el("small", { text: `95 % interval ${interval(around)}` }), el("small", { text: source }))),
    dotPlot({ rows, range: [Math.min(0, ...rows.flatMap((row) => row.marks.slice(0, 1).flatMap((mark) => [mark.value, ...(mark.interval || [])]))), 1], unit: "0: no better than dropping the span · 1: as good as its full text" }),
    ...(run.results ? [] : [missing("Intervals and the other baselines come with the evaluation.", `gistnet evaluate ${run.path}`)]));
}

/** The newest validation as rows, for a run that has not been evaluated. */
function validatedRows(values) {
  const last = (name) => values[name]?.filter(isNumber).at(-1);
  return Object.entries(RANGES).map(([end, label]) => ({
    label, marks: [{ role: "gist", value: last(`recovered_kl${end}`) }, { role: "last_token", value: 1 - last(`kl${end}_last_token`) / last(`kl${end}_drop`) }, { role: "drop", value: 0 }],
  })).filter((row, n) => n === 0 || isNumber(row.marks[0].value));
}

function stagesTable(run) {
  const settings = Object.keys(run.stages[0].settings).filter((name) => run.stages.some((stage) => stage.settings[name] !== null && stage.settings[name] !== ""));
  const ended = ({ end }) => (end ? [end.reason, isNumber(end.best_step) && `best at step ${whole(end.best_step)}`].filter(Boolean).join(", ") : "not ended");
  const rows = run.stages.map((stage, n) => [
    run.stages.length > 1 ? `${n + 1} ${stage.name}` : stage.name,
    ...settings.map((name) => (isNumber(stage.settings[name]) ? stage.settings[name].toLocaleString("en", { maximumSignificantDigits: 4 }) : stage.settings[name] ?? "–")),
    ...(run.stages.some(({ end }) => end) ? [ended(stage)] : []),
    el("ul", { class: "targets" }, ...stageTargets(run, stage).map(({ name, value, met, ...target }) =>
      el("li", {}, el("span", { text: `${plain(name)} ` }), isNumber(value) && el("b", { text: `${number(value)} ` }), verdict(target, met)))),
  ]);
  const columns = ["stage", ...settings, ...(run.stages.some(({ end }) => end) ? ["end"] : []), "targets"];
  return el("div", { class: "stages" }, el("h3", { text: run.stages.length > 1 ? "Stages and targets" : "Training and targets" }), table("Stages and targets", columns, rows, { numeric: false }));
}

/** A stage's own targets; a run without stages is held to those of its evaluation. */
function stageTargets(run, stage) {
  if (stage.targets.length || run.stages.length > 1 || !run.results) return stage.targets;
  const selection = firstSelection(run.results, run.positions);
  const names = [...new Set(run.results.filter((record) => record.target).map((record) => record.name))];
  return names.map((name) => pickOne(run.results, name, selection)).filter((record) => record?.target)
    .map(({ name, value, met, target }) => ({ name, value, met, ...target }));
}

/* Comparison ------------------------------------------------------------------------------------------------------- */

function comparisonPage({ runs, differences }) {
  const top = headline(`${runs.length} runs compared`, runs.map((run) => run.name).join(" · "));
  const evaluated = runs.filter((run) => run.results);
  const body = el("div", { class: "stack" });
  const all = evaluated.flatMap((run) => run.results);
  if (evaluated.length) {
    const selection = { now: firstSelection(all, evaluated[0].positions) };
    const show = (chosen) => {
      selection.now = chosen;
      body.replaceChildren(...compared(runs, chosen).filter(Boolean));
    };
    top.append(...[selectionBar(all, selection, show), body].filter(Boolean));
    show(selection.now);
  }
  for (const run of runs) if (!run.results) top.append(missing(`${run.name} has not been evaluated.`, "gistnet evaluate RUN"));
  curvesSection(runs, (by) => comparedCurves(runs, by));
  const settings = section("settings", "Settings that differ");
  settings.append(differences.length
    ? table("Settings that differ", ["setting", ...runs.map((run) => run.name)], differences.map(({ key, values }) => [el("code", { text: key }), ...values.map((value) => value ?? "–")]), { numeric: false })
    : el("p", { text: "None: the runs have the same configuration." }));
}

const COMPARED = ["recovered_kl", "kl", "delta_nll", "substitutability_rate", "perplexity_ratio", "kl_below_last_token", "pair_accuracy", "gist_diversity", "adjacent_distance",
  "contrastive_gap", "gist_variance", "attention_entropy", "reconstruction_accuracy", "reconstruction_ce", "reconstruction_mse", "oracle_kl", "oracle_recovered_kl", "share_of_oracle", "gist_norm"];

/** One selection of several runs: the headline, the table, and ΔNLL by offset. */
function compared(runs, selection) {
  const of = (run, name, offsets) => run.results && pickOne(run.results, name, name === "pair_accuracy" ? { ...selection, domain: "adversarial" } : selection, offsets);
  const found = runs.map((run) => of(run, "recovered_kl"));
  const samples = new Set(found.filter(Boolean).map(measuredOn));
  const rows = found.map((record, n) => record && {
    label: runs[n].name, detail: samples.size > 1 ? measuredOn(record) : null,
    marks: [{ role: equal(n, runs[n].name), value: record.value, interval: record.interval }, ...["last_token", "drop"].filter((role) => role in record.baselines).map((role) => ({ role: { ...look(role), colour: "muted" }, value: record.baselines[role] }))],
  }).filter(Boolean);
  const lines = COMPARED.flatMap((name) => [undefined, ...(name === "recovered_kl" ? ["1,8", "9,32"] : [])].map((offsets) => runs.map((run) => of(run, name, offsets)))).filter((records) => records.some(Boolean));
  const cell = (record) => record && el("span", { class: "cell" }, el("b", { text: number(record.value) }), el("small", { text: interval(record.interval) }),
    el("small", { text: ["drop", "last_token"].filter((role) => role in record.baselines).map((role) => `${plain(role)} ${number(record.baselines[role])}`).join(" · ") }));
  const titled = (records) => records.find(Boolean);
  return [
    rows.length && dotPlot({ title: "Recovered KL", note: samples.size > 1 ? null : [...samples][0], unit: "0: no better than dropping the span · 1: as good as its full text", rows }),
    table("Figures side by side", ["metric", "offsets", ...runs.map((run) => run.name)], lines.map((records) =>
      [el("span", {}, `${plain(titled(records).name)} `, el("small", { text: titled(records).unit })), offsetsOf(titled(records)), ...records.map(cell)])),
    lineChart({
      title: "ΔNLL by offset", xTitle: "tokens after the span", yTitle: "nats per token", height: 280, xName: "offset", counts: true,
      series: runs.flatMap((run, n) => {
        const records = run.results ? pick(run.results, "delta_nll_by_offset", selection).sort((a, b) => a.offsets[0] - b.offsets[0]) : [];
        return records.length ? [{ role: equal(n, run.name), x: records.map((record) => record.offsets[0]), y: records.map((record) => record.value), marks: "lines", note: "" }] : [];
      }),
    }),
  ];
}

/* Start ------------------------------------------------------------------------------------------------------------ */

const content = JSON.parse(document.getElementById("data").textContent);
watchTheme();
if (content.kind === "report") reportPage(content.run);
else comparisonPage(content);
document.getElementById("footer").append(el("p", { text: `Written by gistnet ${content.version}. This file holds everything it shows and asks nothing of the network.` }));
