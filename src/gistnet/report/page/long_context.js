"use strict";
/* Long contexts at equal budgets, what is retrieved from them, and multiple-choice questions; where they were measured. */

const LONG_BASELINES = ["full", "truncated", "shuffled", "mean"];
const LONG_NAMES = ["long_context_nll", "retrieval_accuracy", "multiple_choice_accuracy"];
const SCORED_KINDS = { "": "all tokens", names: "names", repeated: "words repeated from far" };

function longContextSection(run) {
  const measured = (run.results ?? []).filter((record) => LONG_NAMES.includes(record.name));
  if (!measured.length) return;
  const node = section("long-context", "Long context", "The end of long documents, predicted from contexts of as many vectors each: gists of what is old and recent text as it is, against the most recent text alone, gists of another document, and mean embeddings. The full text is what there is to win.");
  const policies = [...new Set(measured.map((record) => record.positions))];
  const body = el("div", { class: "stack" });
  const draw = (policy) => body.replaceChildren(...longContext(run.results.filter((record) => record.positions === policy)));
  const first = policies.includes(run.positions) ? run.positions : policies[0];
  if (policies.length > 1) node.append(choice("Positions", policies.map((policy) => [policy, policy]), first, draw));
  node.append(body);
  draw(first);
}

function longContext(results) {
  const domains = [...new Set(results.filter((record) => record.name === "long_context_nll").map((record) => record.domain))];
  return [
    ...domains.map((domain) => el("div", { class: "grid" },
      ...[nllByBudget(results, domain), recoveredByBudget(results, domain), ...kindsByBudget(results, domain)].filter(Boolean))),
    el("div", { class: "grid" }, ...[retrieved(results), answered(results)].filter(Boolean)),
  ];
}

/** The records of a name and kind of token, from the largest budget to the smallest. */
function byBudget(results, name, domain, kind = "") {
  return results.filter((record) => record.name === name && record.domain === domain && record.kind === kind)
    .sort((a, b) => a.tokens_per_vector - b.tokens_per_vector);
}

/** A curve over budgets: places are powers of two, so that each halving is a step. */
function budgetCurve(role, records, value, more = {}) {
  const banded = value === ownValue && records.every((record) => record.interval);
  return {
    role, x: records.map((record) => Math.log2(record.tokens_per_vector)), y: records.map(value), marks: undefined,
    band: banded && [0, 1].map((side) => records.map((record) => record.interval[side])), ...more,
  };
}

const ownValue = (record) => record.value;
const BUDGET_AXIS = { xTitle: "vectors, as a share of the tokens", xName: "budget", counts: true, height: 280, xText: (at) => `1/${Number((2 ** at).toPrecision(3))}` };

function longContextNote(records) {
  const [record] = records;
  const widest = Math.max(...records.map(({ level }) => level));
  return `${record.domain}, the last ${record.horizon} tokens of ${whole(record.n_documents)} documents, positions ${record.positions}${widest ? `, gists up to level ${widest}` : ""}. Bands are 95 % intervals.`;
}

function besideGist(records) {
  return LONG_BASELINES.filter((name) => records.every((record) => isNumber(record.baselines[name])))
    .map((name) => budgetCurve(name, records, (record) => record.baselines[name]));
}

function nllByBudget(results, domain) {
  const records = byBudget(results, "long_context_nll", domain);
  if (!records.length) return null;
  const [gist, others] = [budgetCurve("gist", records, ownValue), besideGist(records)];
  return lineChart({
    title: "NLL by budget", yTitle: "nats per token", note: longContextNote(records), ...BUDGET_AXIS,
    yRange: heights([gist, ...others.filter(({ role }) => role !== "mean")], []), // the mean would flatten all others
    series: [gist, ...others],
  });
}

function recoveredByBudget(results, domain) {
  const records = byBudget(results, "long_context_recovered", domain);
  if (!records.length) return el("p", { class: "missing", text: "Recovered is not shown: truncating cost nothing that could be told from 0." });
  const gist = budgetCurve("gist", records, ownValue);
  return lineChart({
    title: "Recovered by budget", yTitle: "share of what truncating costs",
    note: "0: no better than the most recent text alone · 1: as good as the full text. Budgets at which truncating cost nothing that could be told from 0 are left out.",
    ...BUDGET_AXIS, yRange: heights([gist, { y: [0, 1] }], []),
    series: [gist, ...besideGist(records).filter(({ role }) => role === "shuffled" || role === "mean")], lines: [{ y: 1, label: "full text" }],
  });
}

/** How much better than truncating, on the tokens that have something to win. */
function kindsByBudget(results, domain) {
  const series = Object.entries(SCORED_KINDS).map(([kind, label], n) => {
    const records = byBudget(results, "long_context_below_truncated", domain, kind);
    return records.length && budgetCurve(n ? equal(n, label) : { ...look("gist"), label }, records, ownValue);
  }).filter(Boolean);
  return series.length ? [lineChart({
    title: "Gain over truncating, by kind of token", yTitle: "nats per token", ...BUDGET_AXIS, series,
    note: "Truncated minus gist on the same tokens; above 0 gists are better. Words repeated from far are those that only the part that truncating drops has had.",
  })] : [];
}

function retrieved(results) {
  const records = results.filter((record) => record.name === "retrieval_accuracy");
  return records.length && dotPlot({
    title: "Retrieval", unit: "share of cases", range: [0, 1],
    note: `A fact stated once, a row of a list, a passage that comes again: which of four answers is likeliest? ${whole(records[0].n_spans)} cases.`,
    rows: records.map((record) => recordRow(record, record.kind || "all", `budget 1/${record.tokens_per_vector}`)),
  });
}

function answered(results) {
  const records = results.filter((record) => record.name === "multiple_choice_accuracy");
  return records.length && dotPlot({
    title: "Multiple choice", unit: "share of questions", range: [0, 1],
    note: `${whole(records[0].n_spans)} questions about ${whole(records[0].n_documents)} articles.`,
    rows: records.map((record) => recordRow(record, `budget 1/${record.tokens_per_vector}`)),
  });
}
