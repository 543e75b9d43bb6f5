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
  run.results = run.results && run.results.map(completed);
  const facts = Object.fromEntries(run.facts);
  const top = headline(run.name, `A network that puts one vector, a gist, in the place of ${run.span_tokens ?? "a span of"} tokens. ${facts.teacher ?? "The language model"}, which reads it, stays frozen.`);
  const kept = keptRows(run);
  const shown = run.map && typicalSpan(run.map, kept[0].marks[0].value);
  top.append(el("div", { class: "hero" }, keptFigure(run, kept), shown && spanExample(run.map, shown)));
  mapSection(run);
  trainingSection(run);
  resultsSection(run);
  longContextSection(run);
}

/** Shares kept of what dropping the spans costs: over all offsets first, then over the near and the far. */
function keptRows(run) {
  const selection = run.results && firstSelection(run.results, run.positions);
  const records = run.results ? [...new Set([undefined, "1,8", "9,32"].map((offsets) => pickOne(run.results, "recovered_kl", selection, offsets)).filter(Boolean))] : [];
  if (!records.length) return validatedRows(run);
  return records.map((record) => {
    const { marks, ...row } = recordRow(record, `tokens ${offsetsOf(record)} after it`);
    return { ...row, measured: measuredOn(record), marks: marks.filter(({ role }) => ["gist", "last_token", "drop"].includes(role)) };
  });
}

/** The figure that a run is judged by, as a sentence, and how it falls with the distance from the span. */
function keptFigure(run, rows) {
  const [gist] = rows[0].marks;
  const last = rows[0].marks.find(({ role }) => role === "last_token")?.value;
  const around = gist.interval ? ` (95 % interval ${percents(gist.interval)})` : "";
  const beside = isNumber(last) ? `the last token alone keeps ${percent(last)}, dropping them 0 %` : "dropping them keeps 0 %";
  const low = Math.min(0, ...rows.flatMap(({ marks }) => [marks[0].value, ...(marks[0].interval || [])]));
  return el("div", { class: "headline" },
    el("p", { class: "big" }, "A gist keeps ", el("b", { text: percent(gist.value) }), ` of what its ${run.span_tokens ? `${run.span_tokens} ` : ""}tokens told the model${around}; ${beside}.`),
    el("p", { class: "small", text: `Kept: 1 − KL after the gist / KL after dropping the span, where KL compares the model's next-token predictions with those after the full text. ${rows[0].measured ?? "The newest validation while training"}.` }),
    dotPlot({ rows, range: [low, 1], unit: "share kept · 0: no better than dropping the span · 1: as good as its full text" }),
    ...(run.results ? [] : [missing("Intervals and the other baselines come with the evaluation.", `gistnet evaluate ${run.path}`)]));
}

const SURE = 0.25;

/**
 * A span whose gist keeps about as much as all do, among those after which the model is somewhat sure of the next token,
 * and expects another one without the span.
 */
function typicalSpan(map, share) {
  const kept = (span) => 1 - span.kl.gist / span.kl.drop;
  const [found] = map.documents.flatMap((one) => one.spans.map((span) => ({ one, span, kept: kept(span) })))
    .filter(({ span: { next_tokens: next } }) => next.full[0].probability > SURE && next.full[0].text !== next.drop[0].text)
    .sort((a, b) => Math.abs(a.kept - share) - Math.abs(b.kept - share));
  return found;
}

const WORDS_BEFORE = 24; // tokens of text shown in front of the example

function spanExample(map, { one, span, kept }) {
  const end = span.start + map.span_tokens;
  const text = (from, to) => one.tokens.slice(Math.max(0, from), to).join("").replace(/\s+/g, " ");
  return el("figure", { class: "example", "aria-label": "An example" },
    el("blockquote", { dir: "auto" }, `… ${text(span.start - WORDS_BEFORE, span.start).trimStart()}`, el("mark", { text: text(span.start, end) }), " ▸"),
    predictions(span, one.tokens[end]),
    el("figcaption", { class: "small" }, `What the model expects next, when the marked ${map.span_tokens} tokens stand there, when one gist does, and when nothing does. A typical span of the map: its gist keeps ${percent(kept)}. `, el("a", { href: "#map", text: "All spans" })));
}

function trainingSection(run) {
  const node = section("training", "Training");
  node.append(
    el("dl", { class: "facts" }, ...run.facts.flatMap(([label, value]) => [el("dt", { text: label }), el("dd", { text: value })])),
    stageCards(run));
  if (run.events.length) node.append(el("h3", { text: "What happened" }), el("ol", { class: "events" }, ...run.events.map(({ step, text }) => el("li", {}, el("b", { text: `step ${whole(step)}` }), el("span", { text })))));
  runCurvesSection(run);
}

/** The newest validation in stages like the first as rows, for a run that has not been evaluated. */
function validatedRows(run) {
  const { values, stage } = run.curves.validation;
  const stages = likeTheFirst(run);
  const last = (name) => values[name]?.filter((value, n) => isNumber(value) && stages.includes(stage[n])).at(-1);
  return Object.entries(RANGES).map(([end, label]) => ({
    label: end ? `${label.replace("offsets", "tokens")} after it` : label, marks: [{ role: "gist", value: last(`recovered_kl${end}`) }, { role: "last_token", value: 1 - last(`kl${end}_last_token`) / last(`kl${end}_drop`) }, { role: "drop", value: 0 }],
  })).filter((row, n) => n === 0 || isNumber(row.marks[0].value));
}

/** A card a stage: its settings, how it ended, and its targets. */
function stageCards(run) {
  const settings = Object.keys(run.stages[0].settings).filter((name) => run.stages.some((stage) => stage.settings[name] !== null && stage.settings[name] !== ""));
  const ended = ({ end }) => (end ? [end.reason, isNumber(end.best_step) && `best at step ${whole(end.best_step)}`].filter(Boolean).join(", ") : "not ended");
  const setting = (value) => (isNumber(value) ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : value ?? "–");
  const target = ({ name, value, met, ...wanted }) =>
    el("li", {}, el("span", { text: plain(name) }), " ", isNumber(value) && el("b", { text: number(value) }), " ", verdict(wanted, met));
  return el("div", {},
    el("h3", { text: run.stages.length > 1 ? "Stages and targets" : "Settings and targets" }),
    el("p", { class: "small", text: "H: tokens predicted after each span. λ: weight of the loss that keeps gists of neighbours apart. Targets are those of the configuration, on the spans of the stage's own validation." }),
    el("ul", { class: "stages" }, ...run.stages.map((stage, n) => {
      const targets = stageTargets(run, stage);
      return el("li", {}, el("h4", { text: run.stages.length > 1 ? `${n + 1} ${stage.name}` : stage.name }),
        el("dl", {}, ...settings.flatMap((name) => [el("dt", { text: name }), el("dd", { text: setting(stage.settings[name]) })]), el("dt", { text: "end" }), el("dd", { text: ended(stage) })),
        targets.length ? el("ul", { class: "targets", "aria-label": "Targets" }, ...targets.map(target)) : null);
    })));
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
  for (const run of runs) run.results = run.results && run.results.map(completed);
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
  comparedCurvesSection(runs);
  const settings = section("settings", "Settings that differ");
  settings.append(differences.length
    ? table("Settings that differ", ["setting", ...runs.map((run) => run.name)], differences.map(({ key, values }) => [el("code", { text: key }), ...values.map((value) => value ?? "–")]), { numeric: false, stacked: true })
    : el("p", { text: "None: the runs have the same configuration." }));
}

const COMPARED = ["recovered_kl", "kl", "delta_nll", "substitutability_rate", "perplexity_ratio", "kl_below_last_token", "pair_accuracy", "gist_diversity", "adjacent_distance",
  "contrastive_gap", "gist_variance", "attention_entropy", "reconstruction_accuracy", "reconstruction_ce", "reconstruction_mse", "oracle_kl", "oracle_recovered_kl", "share_of_oracle", "gist_norm"];

const SAME_COST = 0.005; // what dropping the same spans may cost more on another machine, as a share

/** One selection of several runs: the headline, the table, and ΔNLL by offset. */
function compared(runs, selection) {
  const of = (run, name, offsets) => run.results && pickOne(run.results, name, name === "pair_accuracy" ? { ...selection, domain: "adversarial" } : selection, offsets);
  const found = runs.map((run) => of(run, "recovered_kl"));
  const sizes = new Set(found.filter(Boolean).map(measuredOn));
  const costs = extent(runs.map((run) => of(run, "kl")?.baselines.drop));
  const differ = sizes.size > 1 || costs[1] > (1 + SAME_COST) * costs[0];
  const rows = found.map((record, n) => record && {
    label: runs[n].name, detail: differ ? measuredOn(record) : null,
    marks: [{ role: equal(n, runs[n].name), value: record.value, interval: record.interval }, ...["last_token", "drop"].filter((role) => role in record.baselines).map((role) => ({ role: { ...look(role), colour: "muted" }, value: record.baselines[role] }))],
  }).filter(Boolean);
  const lines = COMPARED.flatMap((name) => [undefined, ...(name === "recovered_kl" ? ["1,8", "9,32"] : [])].map((offsets) => runs.map((run) => of(run, name, offsets)))).filter((records) => records.some(Boolean));
  const cell = (record) => record && el("span", { class: "cell" }, el("b", { text: number(record.value) }), el("small", { text: interval(record.interval) }),
    el("small", { text: ["drop", "last_token"].filter((role) => role in record.baselines).map((role) => `${plain(role)} ${number(record.baselines[role])}`).join(" · ") }));
  const titled = (records) => records.find(Boolean);
  return [
    differ && el("p", { class: "warning", role: "note" }, el("b", { text: "Measured on different spans. " }),
      `Dropping them costs the model from ${number(costs[0])} to ${number(costs[1])} nats per token in KL, whatever the gists are: corpora, documents, how many are drawn, or the teacher differ. Compare each run with its own baselines, and not their figures with each other.`),
    rows.length && dotPlot({ title: "Recovered KL", note: differ ? null : [...sizes][0], unit: "0: no better than dropping the span · 1: as good as its full text", rows }),
    table("Figures side by side", ["metric", "offsets", ...runs.map((run, n) => (differ && found[n] ? `${run.name}: ${measuredOn(found[n])}` : run.name))], lines.map((records) =>
      [el("span", {}, `${plain(titled(records).name)} `, el("small", { text: titled(records).unit })), offsetsOf(titled(records)), ...records.map(cell)]), { stacked: true }),
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
