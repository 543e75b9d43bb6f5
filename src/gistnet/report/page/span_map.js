"use strict";
/* The span map: documents as text, each span shaded by what its gist costs, with a panel for the chosen one. */

const SHADES = {
  delta_nll: { label: "ΔNLL", of: (span) => span.delta_nll.gist, low: "nothing lost", high: "much lost", unit: "ΔNLL, nats per token" },
  kl: { label: "KL", of: (span) => span.kl.gist, low: "same predictions", high: "other predictions", unit: "KL, nats per token" },
  difference: { label: "gist − last token", of: (span) => span.delta_nll.gist - span.delta_nll.last_token, low: "gist better", high: "last token better", unit: "difference of ΔNLL, nats per token" },
};

function mapSection(run) {
  const node = section("map", "Span map", "Held-out text, cut into the spans that gists stand for. The deeper the shade, the more the model loses when it reads one vector instead of the span. Choose a span, with the mouse or with the arrow keys and Enter, to see what the model expects next.");
  if (!run.map || !run.map.documents.length) return node.append(missing("There is no span map yet.", `gistnet evaluate ${run.path}`));
  new SpanMap(run.map, node);
}

class SpanMap {
  constructor(map, node) {
    this.map = map;
    this.documents = map.documents;
    this.shade = "delta_nll";
    this.document = 0;
    this.span = 0;
    this.isOpen = false;
    this.legend = el("div", { class: "legend" });
    this.overview = el("ul", { class: "overview", "aria-label": "Documents" }, ...this.documents.map((one, d) => this.overviewRow(one, d)));
    this.head = el("div", { class: "document-head" });
    this.text = el("div", { class: "text", dir: "auto", role: "group", on: { click: (event) => this.clicked(event), keydown: (event) => this.pressed(event) } });
    this.panel = el("aside", { class: "panel", "aria-label": "The chosen span", id: "panel" });
    this.status = el("p", { class: "hidden", role: "status" });
    const shades = Object.entries(SHADES).map(([name, { label }]) => [name, label]);
    this.node = el("div", { class: "map", on: { keydown: (event) => event.key === "Escape" && this.close() } },
      el("div", { class: "map-bar" }, choice("Shade", shades, this.shade, (name) => this.reshade(name)), this.legend),
      this.overview, el("div", { class: "reader" }, el("div", { class: "page" }, this.head, this.text), this.panel), this.status);
    node.append(this.node);
    this.reshade(this.shade);
    this.show(0);
    this.drawPanel();
  }

  spans() {
    return this.documents[this.document].spans;
  }

  /** One document in small: its name and a cell for each span. */
  overviewRow(one, d) {
    const cells = el("span", { class: "cells", "aria-hidden": "true" }, ...one.spans.map((_, s) => el("i", { "data-span": s })));
    cells.addEventListener("click", (event) => {
      if (event.target.dataset.span) this.open(d, Number(event.target.dataset.span));
    });
    return el("li", {}, el("button", { type: "button", on: { click: () => this.show(d) } },
      el("b", { dir: "auto", text: one.id }), el("small", { text: one.domain })), cells);
  }

  /** Colours spans and cells by a measure. The scale ends where 3 of 100 spans lie beyond it. */
  reshade(name) {
    this.shade = name;
    const { of } = SHADES[name];
    const sizes = this.documents.flatMap((one) => one.spans.map((span) => Math.abs(of(span)))).filter(isNumber).sort((a, b) => a - b);
    this.most = ticks(0, 1.25 * (sizes[Math.floor(0.97 * (sizes.length - 1))] || 1), 8).at(-1);
    this.overview.querySelectorAll(".cells").forEach((cells, d) => [...cells.children].forEach((cell, s) => this.colour(cell, this.documents[d].spans[s])));
    this.text.querySelectorAll(".span").forEach((node, s) => this.colour(node, this.spans()[s]));
    this.drawLegend();
  }

  colour(node, span) {
    const value = SHADES[this.shade].of(span);
    node.style.setProperty("--v", isNumber(value) ? Math.min(100, (100 * Math.abs(value)) / this.most).toFixed(1) : 0);
    node.classList.toggle("gain", value < 0);
  }

  drawLegend() {
    const { low, high, unit } = SHADES[this.shade];
    const from = this.shade === "kl" ? 0 : -this.most;
    const steps = Array.from({ length: 41 }, (_, n) => from + ((this.most - from) * n) / 40);
    const ramp = el("span", { class: "ramp", "aria-hidden": "true" }, ...steps.map((value) =>
      el("i", { class: value < 0 && "gain", style: { "--v": (100 * Math.abs(value)) / this.most } })));
    const marks = [from, 0, this.most].filter((value, n, all) => all.indexOf(value) === n);
    this.legend.replaceChildren(el("span", { class: "ends" }, el("span", { text: low }), el("span", { text: high })), ramp,
      el("span", { class: "ends" }, ...marks.map((value, n) => el("span", { text: (n === 0 && value < 0 ? "≤ " : n === marks.length - 1 ? "≥ " : "") + String(value).replace("-", "−") }))),
      el("span", { class: "small", text: unit }));
  }

  /** Shows a document, its text cut into spans. */
  show(d) {
    this.document = d;
    const one = this.documents[d];
    this.span = Math.min(this.span, Math.max(0, one.spans.length - 1));
    const mean = one.spans.reduce((sum, span) => sum + span.delta_nll.gist, 0) / one.spans.length;
    this.head.replaceChildren(el("h3", { dir: "auto", text: one.id }),
      el("p", { class: "small", text: `${one.source} · ${one.domain} · ${whole(one.tokens.length)} tokens · ${one.spans.length} spans · mean ΔNLL ${number(mean)}` }));
    const pieces = [];
    let at = 0;
    const between = (from, to) => from < to && pieces.push(el("span", { class: "raw", text: one.tokens.slice(from, to).join("") }));
    one.spans.forEach((span, s) => {
      between(at, span.start);
      at = span.start + this.map.span_tokens;
      const text = one.tokens.slice(span.start, at).join("");
      const node = el("span", { class: "span", role: "button", tabindex: s === this.span ? 0 : -1, "aria-controls": "panel", "data-span": s, text,
        "aria-label": `Span ${s + 1} of ${one.spans.length}, ΔNLL ${number(span.delta_nll.gist)}: ${text}` });
      this.colour(node, span);
      pieces.push(node);
    });
    between(at, one.tokens.length);
    this.text.setAttribute("aria-label", `Text of ${visible(one.id)}, ${one.spans.length} spans`);
    this.text.replaceChildren(...pieces);
    this.overview.querySelectorAll("li").forEach((row, n) => {
      row.classList.toggle("shown", n === d);
      row.querySelector("button").setAttribute("aria-pressed", n === d);
    });
    this.mark();
  }

  nodeOf(s) {
    return this.text.querySelector(`.span[data-span="${s}"]`);
  }

  /** Marks the chosen span, in the text and in the overview. */
  mark() {
    const nodes = [...this.text.querySelectorAll(".span"), ...this.overview.querySelectorAll("i")];
    for (const node of nodes) node.classList.remove("chosen");
    this.text.querySelectorAll(".span").forEach((node, s) => {
      node.tabIndex = s === this.span ? 0 : -1;
      node.setAttribute("aria-expanded", this.isOpen && s === this.span);
    });
    if (!this.isOpen) return;
    this.nodeOf(this.span)?.classList.add("chosen");
    this.overview.querySelectorAll(".cells")[this.document].children[this.span]?.classList.add("chosen");
  }

  clicked(event) {
    const node = event.target.closest(".span");
    if (node) this.open(this.document, Number(node.dataset.span));
  }

  pressed(event) {
    if (event.target.closest(".span") === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.spans().length - 1;
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -last, End: last };
    if (event.key in moves) this.move(Math.min(last, Math.max(0, this.span + moves[event.key])));
    else if (event.key === "Enter" || event.key === " ") this.open(this.document, this.span);
    else return;
    event.preventDefault();
  }

  /** Moves the focus to a span of the document; an open panel follows. */
  move(s) {
    this.span = s;
    this.mark();
    if (this.isOpen) this.drawPanel(); // first, for on a phone it covers a part of the text
    const node = this.nodeOf(s);
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  }

  open(d, s) {
    if (d !== this.document) {
      this.span = s;
      this.show(d);
    }
    this.isOpen = true;
    this.move(s);
  }

  close() {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.mark();
    this.drawPanel();
    this.status.textContent = "Closed.";
    this.nodeOf(this.span)?.focus();
  }

  drawPanel() {
    this.panel.classList.toggle("open", this.isOpen);
    this.node.classList.toggle("opened", this.isOpen);
    if (!this.isOpen) return this.panel.replaceChildren(el("p", { class: "hint", text: "Choose a span to see what the model expects next after the full text, after its gist and without it; what it loses at each offset, where the two slots look, and the spans whose gists are nearest." }));
    const one = this.documents[this.document];
    const span = one.spans[this.span];
    this.status.textContent = `Span ${this.span + 1}: ΔNLL ${number(span.delta_nll.gist)}, dropped ${number(span.delta_nll.drop)}.`;
    this.panel.replaceChildren(...spanPanel(this, one, span));
    this.panel.scrollTop = 0;
  }
}
