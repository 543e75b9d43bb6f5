"use strict";
/* Elements, numbers and the theme. Text becomes text nodes only: nothing here parses markup. */

/**
 * An element; `attributes` may hold `class`, `text`, `on` (listeners) and `style` (custom properties). All text of the
 * page comes through here, and control characters of documents, names and paths are made visible.
 */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "text", "clipPath"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = visible(String(value));
    else if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "style") for (const [key, setting] of Object.entries(value)) node.style.setProperty(key, setting);
    else node.setAttribute(name, value === true ? "" : visible(String(value)));
  }
  const shown = children.filter((child) => child !== null && child !== undefined);
  node.append(...shown.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

/** A section of the page with its heading and an introduction, announced in the navigation. */
function section(id, title, introduction) {
  const heading = el("h2", { id: `${id}-title`, text: title });
  const node = el("section", { id, "aria-labelledby": heading.id }, heading, introduction && el("p", { class: "lead", text: introduction }));
  document.getElementById("main").append(node);
  document.getElementById("sections").append(el("li", {}, el("a", { href: `#${id}`, text: title })));
  return node;
}

/** What stands in the place of something that was not measured. `command` adds it; where none does, nothing stands. */
function missing(what, command) {
  if (content.run?.released) return null;
  return el("p", { class: "missing" }, `${what} To add this: `, el("code", { text: command }));
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** A number for reading: `digits` decimals, a real minus sign, and a dash for what is not there. */
function number(value, digits = 3) {
  if (!isNumber(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  const text = small ? value.toExponential(1) : value.toFixed(digits);
  return text.replace(/-/g, "−");
}

function whole(value) {
  return isNumber(value) ? value.toLocaleString("en") : "–";
}

/** A share as "47 %"; a small one with a decimal. */
function percent(value, digits = Math.abs(value) < 0.1 && value !== 0 ? 1 : 0) {
  return isNumber(value) ? `${(100 * value).toFixed(digits).replace("-", "−")} %` : "–";
}

/** Two shares as "44–50". */
function percents(pair) {
  return pair.map((value) => (100 * value).toFixed(0).replace("-", "−")).join(pair[0] < 0 ? " to " : "–");
}

function interval(pair) {
  return pair ? `${number(pair[0])} … ${number(pair[1])}` : "";
}

/** "kl_below_last_token" → "KL below last token". */
function plain(name) {
  return name.replace("delta_nll", "ΔNLL").replace(/(^|_)kl(?=_|$)/, "$1KL").replace(/(^|_)(ce|mse)$/, (end) => end.toUpperCase()).replaceAll("_", " ");
}

/** Text with control characters as pictures (␛) or escapes (\u202e), so that each is seen and none acts. */
function visible(text) {
  return text
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\u007f/g, "␡")
    .replace(/[\u0080-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]/gu, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (!isNumber(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

/** About `count` round numbers within [low, high], no closer together than `least`. */
function ticks(low, high, count = 5, least = 0) {
  const rough = Math.max((high - low) / count, least) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}

/** A group of mutually exclusive choices, `[value, label]` each. */
function choice(label, options, chosen, onChange) {
  const name = `choice-${(choice.count = (choice.count || 0) + 1)}`;
  const inputs = options.map(([value, text]) =>
    el("label", {}, el("input", { type: "radio", name, value, checked: value === chosen, on: { change: () => onChange(value) } }), el("span", { text })));
  return el("fieldset", { class: "choice" }, el("legend", { text: label }), ...inputs);
}

/* The theme: the system's, until the button says otherwise. Colours are custom properties, so nothing is drawn again. */

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function watchTheme() {
  const button = document.getElementById("theme");
  const name = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}
