"use strict";
/* What is inside one span: its losses, its tokens with the slots' attention, ΔNLL by offset, its neighbours. */

function spanPanel(map, one, span) {
  const tokens = one.tokens.slice(span.start, span.start + map.map.span_tokens);
  const roles = ["gist", "last_token", "drop"].filter((role) => role in span.delta_nll);
  return [
    el("div", { class: "panel-head" },
      el("h3", { text: `Span ${map.span + 1}` }),
      el("p", { class: "small", dir: "auto", text: `tokens ${span.start}–${span.start + tokens.length - 1} of ${one.id}` }),
      el("button", { type: "button", class: "quiet", "aria-label": "Close the panel", text: "Close", on: { click: () => map.close() } })),
    el("h4", { text: "What the model expects next" }),
    predictions(span, one.tokens[span.start + map.map.span_tokens]),
    table("Losses of the span", ["nats per token", ...roles.map(plain)], [
      ["ΔNLL", ...roles.map((role) => number(span.delta_nll[role]))],
      ["KL", ...roles.map((role) => number(span.kl[role]))],
    ]),
    el("h4", { text: "Tokens, and where the slots look" }),
    slotTokens(tokens, span.attention),
    offsetChart(span, map.map.horizon, roles),
    el("h4", { text: "Nearest gists" }),
    neighbours(map, span),
    el("p", { class: "small", text: `Length of the gist: ${number(span.gist_norm, 2)}.` }),
  ];
}

const CONTEXTS = { full: "full text", gist: "gist", drop: "dropped" };

/** The likeliest next tokens after each replacement, with the one that stands in the text marked. */
function predictions(span, actual) {
  const line = ({ text, probability }) => el("li", { class: text === actual && "actual" },
    el("span", { class: "token", dir: "auto", text: tokenText(text) }), el("i", { "aria-hidden": "true", style: { "--p": `${100 * probability}%` } }), el("b", { text: percent(probability) }));
  return el("div", { class: "predictions" }, ...Object.entries(CONTEXTS).map(([name, label]) =>
    el("div", { class: name }, el("h4", { text: label }), el("ol", {}, ...span.next_tokens[name].map(line)))),
    actual ? el("p", { class: "small" }, "The text goes on with ", el("span", { class: "token", dir: "auto", text: tokenText(actual) }), ".") : null);
}

/** Whitespace of a token made visible. */
function tokenText(token) {
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}

/** Each token under two bars: the shares of attention that the slots give it, on one scale. */
function slotTokens(tokens, attention) {
  const most = Math.max(...attention.flat(), 1e-9);
  const looks = [{ ...look("gist"), label: "slot 1", symbol: "square" }, { ...equal(1, "slot 2"), symbol: "square" }];
  const bar = (slot, n) => el("i", { class: `slot-${slot + 1}`, style: { height: `${(100 * attention[slot][n]) / most}%` } });
  const list = el("ol", { class: "tokens", "aria-hidden": "true" }, ...tokens.map((token, n) =>
    el("li", { title: `slot 1 ${number(attention[0][n])}, slot 2 ${number(attention[1][n])}` }, el("span", { class: "bars" }, bar(0, n), bar(1, n)), el("span", { class: "token", dir: "auto", text: tokenText(token) }))));
  const details = el("details", { class: "numbers" }, el("summary", { text: "Numbers" }),
    table("Attention of the slots", ["token", "slot 1", "slot 2"], tokens.map((token, n) =>
      [el("span", { dir: "auto", text: tokenText(token) }), number(attention[0][n]), number(attention[1][n])])));
  return el("div", { class: "attention" }, key(looks.map((style, slot) => ({ style, dots: true, note: `at most ${number(Math.max(...attention[slot]), 2)}` }))), list, details);
}

function offsetChart(span, horizon, roles) {
  const x = Array.from({ length: horizon }, (_, n) => n + 1);
  return lineChart({
    title: "ΔNLL by offset", xTitle: "tokens after the span", yTitle: "nats", height: 210, xName: "offset", counts: true,
    series: roles.map((role) => ({ role, x, y: span.delta_nll_by_offset[role] ?? [], marks: "lines", note: number(span.delta_nll[role]) })),
  });
}

function neighbours(map, span) {
  const rows = span.nearest.map(({ document, span: s, cosine }) => {
    const one = map.documents[document];
    const near = one?.spans[s];
    if (!near) return null;
    const text = one.tokens.slice(near.start, near.start + map.map.span_tokens).join("").replace(/\s+/g, " ").trim();
    return el("li", {}, el("button", { type: "button", on: { click: () => map.open(document, s) } },
      el("span", { class: "cosine", title: "cosine similarity", text: number(cosine, 2) }),
      el("span", {}, el("span", { class: "snippet", dir: "auto", text }), el("small", { dir: "auto", text: `span ${s + 1} of ${one.id}` }))));
  }).filter(Boolean);
  return rows.length ? el("ol", { class: "nearest" }, ...rows) : el("p", { class: "small", text: "None in this map." });
}
