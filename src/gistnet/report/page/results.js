"use strict";
/* The evaluation of one run: every figure beside its baselines, under one selection. */

const BASELINES = Object.keys(LOOKS);
const APART = ["delta_nll_by_offset", "delta_nll_by_kind", "kl_by_kind", "oracle_kl", "oracle_recovered_kl", "share_of_oracle", "row_kl", "row_delta_nll", "row_recovered_kl", "row_recovered_delta_nll"]; // have results of their own

function resultsSection(run) {
  const node = section("results", "Results", "Every figure beside what could be had for nothing, on the same held-out spans; intervals are 95 %, bootstrapped over documents.");
  if (!run.results) return node.append(missing("The run has not been evaluated yet.", `gistnet evaluate ${run.path}`));
  const selection = { now: firstSelection(run.results, run.positions) };
  const body = el("div", { class: "stack" });
  const show = (chosen) => {
    selection.now = chosen;
    body.replaceChildren(...shownResults(run, chosen).filter(Boolean));
  };
  const bar = selectionBar(run.results, selection, show);
  node.append(...[bar, body].filter(Boolean));
  show(selection.now);
}

function shownResults(run, selection) {
  const { results } = run;
  return [
    metricsTable(results, selection),
    el("div", { class: "grid" }, ...[byOffset(results, selection) ?? missing("ΔNLL by offset is not in results.json.", `gistnet evaluate ${run.path}`),
      run.map ? distribution(run.map, selection) : missing("The distribution over spans comes with the span map.", `gistnet evaluate ${run.path}`)].filter(Boolean)),
    el("div", { class: "grid" }, ...byKind(results, selection, run.path).filter(Boolean)),
    rows(results, selection),
    el("div", { class: "grid" }, ...[geometry(results, selection, run.path), entropy(results, selection, run.path), minimalPairs(results, selection, run.path),
      oracle(results, selection, run.path), reconstruction(results, selection, run.path)].filter(Boolean)),
  ];
}

function metricsTable(results, selection) {
  const names = [...new Set(results.map((record) => record.name))].filter((name) => !APART.includes(name));
  const rows = names.flatMap((name) => pick(results, name, selection)).filter(isWhole);
  if (!rows.length) return null;
  const used = BASELINES.filter((name) => rows.some((record) => isNumber(record.baselines[name])));
  const cells = (record) => [
    el("span", {}, `${plain(record.name)} `, el("small", { text: record.unit })), offsetsOf(record),
    el("b", { class: "gist", text: number(record.value) }), interval(record.interval),
    ...used.map((name) => isNumber(record.baselines[name]) ? number(record.baselines[name]) : ""),
    verdict(record.target, record.met),
  ];
  const columns = ["metric", "offsets", "gist", "95 % interval", ...used.map(plain), "target"];
  return el("figure", { class: "chart" }, el("figcaption", {}, el("h3", { text: "All measures" }), el("p", { text: measuredOn(rows[0]) })),
    table("All measures", columns, rows.filter(isOverHorizon).map(cells), { stacked: true }),
    rows.every(isOverHorizon) ? null : unfolding(() => [table("By range of offsets", columns, rows.filter((record) => !isOverHorizon(record)).map(cells), { stacked: true })], "Near and far offsets"));
}

function byOffset(results, selection) {
  const records = pick(results, "delta_nll_by_offset", selection).filter(isWhole).sort((a, b) => a.offsets[0] - b.offsets[0]);
  if (!records.length) return null;
  const x = records.map((record) => record.offsets[0]);
  const banded = records.every((record) => record.interval);
  const mean = (values) => number(values.reduce((sum, value) => sum + value, 0) / values.length);
  const of = (role, y, band) => ({ role, x, y, band, marks: "lines", note: mean(y) });
  const gist = of("gist", records.map((record) => record.value), banded && [0, 1].map((side) => records.map((record) => record.interval[side])));
  const others = BASELINES.filter((name) => records.every((record) => isNumber(record.baselines[name])))
    .map((name) => of(name, records.map((record) => record.baselines[name])));
  return lineChart({
    title: "ΔNLL by offset", xTitle: "tokens after the span", yTitle: "nats per token", height: 280, xName: "offset", counts: true,
    yRange: heights([gist, ...others.filter(({ role }) => role !== "mean")], []), // the mean would flatten all others
    note: `What is lost at each of the ${records[0].horizon} tokens that follow; the key gives means${banded ? ", the band is the gist's 95 % interval" : ""}.`,
    series: [gist, ...others],
  });
}

const THRESHOLD = 1.0; // nats per token: the spec calls a span below it substitutable

/** Shares of spans at or below each ΔNLL; the kinds of text together where the selection is none of them. */
function distribution(map, selection) {
  const domains = map.distribution[selection.domain] ? [selection.domain] : Object.keys(map.distribution);
  const roles = [...new Set(domains.flatMap((domain) => Object.keys(map.distribution[domain])))];
  const columns = roles.map((role) => [role, domains.flatMap((domain) => map.distribution[domain][role] ?? []).sort((a, b) => a - b)]).filter(([, values]) => values.length);
  if (!columns.length) return null;
  const quantile = (values, share) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
  const below = (values) => values.filter((value) => value < THRESHOLD).length / values.length;
  return lineChart({
    title: "Distribution over spans", xTitle: "ΔNLL of a span, nats per token", yTitle: "share of spans up to it", height: 280, xName: "ΔNLL",
    note: `${whole(columns[0][1].length)} spans, ${domains.join(", ")}, positions ${map.positions}. The key gives the share below ${THRESHOLD.toFixed(1)}; the higher a curve, the better.`,
    yRange: [0, 1.02], xRange: extent(columns.flatMap(([, values]) => [quantile(values, 0.005), quantile(values, 0.99), 1.2])),
    lines: [{ x: THRESHOLD, label: `${THRESHOLD.toFixed(1)} nats` }],
    series: columns.map(([role, values]) => {
      const every = Math.max(1, Math.floor(values.length / 300));
      const kept = values.map((value, n) => [value, (n + 1) / values.length]).filter((_, n) => n % every === 0 || n === values.length - 1);
      return { role, x: kept.map(([value]) => value), y: kept.map(([, share]) => share), marks: "lines", note: number(below(values)) };
    }),
  });
}

function byKind(results, selection, path) {
  const figure = (name, title) => {
    const records = pick(results, name, selection).filter((record) => record.kind);
    return records.length && dotPlot({ title, note: measuredOn(records[0]), unit: records[0].unit, rows: records.map((record) => recordRow(record, record.kind)) });
  };
  const found = [figure("delta_nll_by_kind", "ΔNLL by kind of token"), figure("kl_by_kind", "KL by kind of token")].filter(Boolean);
  return found.length ? found : [missing("What is lost by kind of token is not measured.", `gistnet evaluate ${path}`)];
}

/** What rows of gists recover in front of raw tails; nothing where it was not asked for. */
function rows(results, selection) {
  const figures = [["row_recovered_kl", "KL"], ["row_recovered_delta_nll", "ΔNLL"]].map(([name, loss]) => {
    const records = pick(results, name, selection, ["domain", "positions", "level"]);
    return records.length && dotPlot({
      title: `Rows of gists beside a raw tail, ${loss}`, unit: "share of what dropping the row costs", note: measuredOn({ ...records[0], horizon: null, spans_per_segment: 1 }),
      rows: records.map((record) => recordRow(record, `${record.spans_per_segment} gists, tail of ${record.offsets[0] - 1}`)),
    });
  }).filter(Boolean);
  return figures.length ? el("div", { class: "grid" }, ...figures) : null;
}

/** Distances between gists, in every kind of text. */
function geometry(results, selection, path) {
  const names = ["gist_diversity", "adjacent_distance", "contrastive_gap", "gist_variance"];
  const records = names.flatMap((name) => pick(results, name, selection, ["positions", "level", "spans_per_segment"])).filter(isWhole);
  if (!records.length) return missing("The geometry of gists is not measured.", `gistnet evaluate ${path}`);
  return dotPlot({
    title: "Diversity of gists", unit: "cosine distance, and share of squared length for variance",
    note: "How far apart gists are; the shaded part of a row is its target.",
    rows: records.map((record) => recordRow(record, plain(record.name), record.domain)),
  });
}

function entropy(results, selection, path) {
  const parts = pick(results, "attention_entropy", selection).filter((record) => record.index);
  if (!parts.length) return missing("Attention entropy is not measured.", `gistnet evaluate ${path}`);
  const slots = [...new Set(parts.map((record) => record.kind))].sort();
  const target = pickOne(results, "attention_entropy", selection)?.target;
  return lineChart({
    title: "Attention entropy", xTitle: "head", yTitle: "bits", counts: true, height: 280,
    note: "How widely each head of the two slots looks over the span: 0 is one token, 5 bits all 32 alike. The key gives means.",
    lines: target ? ["above", "below"].filter((side) => isNumber(target[side])).map((side) => ({ y: target[side], label: `${side} ${target[side]}` })) : [],
    series: slots.map((slot, n) => {
      const own = parts.filter((record) => record.kind === slot).sort((a, b) => a.index - b.index);
      const y = own.map((record) => record.value);
      return { role: n ? equal(n, slot) : { ...look("gist"), label: slot }, x: own.map((record) => record.index), y, marks: "markers", note: number(y.reduce((a, b) => a + b, 0) / y.length, 2) };
    }),
  });
}

function minimalPairs(results, selection, path) {
  const records = pick(results, "pair_accuracy", selection, ["positions", "level", "spans_per_segment"]);
  if (!records.length) return missing("Minimal pairs are not measured.", `gistnet evaluate ${path}`);
  return dotPlot({
    title: "Minimal pairs", unit: "share of pairs", range: [0, 1], references: [{ value: 0.5, label: "chance" }],
    note: "Of two spans that differ in one detail: does the model, reading the gist, prefer the continuation that fits?",
    rows: records.map((record) => recordRow(record, record.kind || "all", `${whole(record.n_spans)} spans`)),
  });
}

/** How near the gists come to the best vector that could be found for each span. */
function oracle(results, selection, path) {
  const records = ["oracle_kl", "oracle_recovered_kl"].map((name) => pickOne(results, name, selection)).filter(Boolean);
  if (!records.length) return missing("Oracle vectors, optimised for each span, are not measured.", `gistnet evaluate ${path} --oracle 8`);
  const share = pickOne(results, "share_of_oracle", selection);
  const reached = share ? ` Gists recover ${number(share.value)} of what it does${share.interval ? ` (${interval(share.interval)})` : ""}.` : "";
  return dotPlot({
    title: "Oracle vectors", unit: "KL in nats per token, recovered as share of drop",
    note: `A vector optimised for each span on continuations sampled from the teacher. ${measuredOn(records[0])}.${reached}`,
    rows: records.map((record) => ({
      label: plain(record.name.slice("oracle_".length)),
      marks: [{ role: equal(4, "oracle vector"), value: record.value, interval: record.interval }, ...Object.entries(record.baselines).map(([role, value]) => ({ role, value }))],
    })),
  });
}

function reconstruction(results, selection, path) {
  const all = pick(results, "reconstruction_accuracy", selection);
  const parts = all.filter((record) => record.index).sort((a, b) => a.index - b.index);
  if (!parts.length) return missing("How many tokens a decoder reads back from a gist is not measured.", `gistnet evaluate ${path} --reconstruction`);
  const x = parts.map((record) => record.index);
  const beside = BASELINES.filter((name) => parts.every((record) => isNumber(record.baselines[name])));
  const total = all.find(isWhole);
  return lineChart({
    title: "Reconstruction by position", xTitle: "token of the span", yTitle: "share of tokens", xName: "token", counts: true, yRange: [0, 1.02],
    note: "How often a small decoder, trained on frozen gists, names the token that stood at each place.",
    series: [{ role: "gist", x, y: parts.map((record) => record.value), note: total && number(total.value) },
      ...beside.map((role) => ({ role, x, y: parts.map((record) => record.baselines[role]) }))],
  });
}
