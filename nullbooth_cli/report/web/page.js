// Shared by all pages. Nothing of the data becomes markup: a prompt with a tag in it is shown, not run.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly reads some tags
const short = (layer) => layer.replace(/\.transformer_blocks\.\d+\.attn2$/, (end) => /\.0\.attn2$/.test(end) ? "" : end.slice(0, -6))
  .replace(/_blocks?/, "").replace(/attentions\./, "");
const number = (value, digits = 3) => value === null || value === undefined ? "" :
  value !== 0 && (Math.abs(value) < 1e-2 || Math.abs(value) >= 1e5) ? value.toExponential(digits - 1) : String(+value.toPrecision(digits));
const fill = (select, options) => options.forEach(([value, text]) => select.append(Object.assign(make("option", text), { value })));

const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const layout = (x, y, more = {}) => {
  const axis = (title, own = {}) => ({ title: { text: title }, gridcolor: style("--line"), zeroline: false, ...own });
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text") }, colorway: colours,
    margin: { l: 70, r: 20, t: 45, b: 50 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--line"), activecolor: style("--accent") }, hoverlabel: { namelength: -1 }, ...more, xaxis: axis(x, more.xaxis), yaxis: axis(y, more.yaxis) };
};
const plot = (id, traces, made) => Plotly.react(id, traces, made, { responsive: true, displaylogo: false });

const table = (id, head, rows) => {
  const line = (cells, tag) => { const row = make("tr"); row.append(...cells.map((cell) => make(tag, String(cell)))); return row; };
  const top = make("thead"), body = make("tbody");
  top.append(line(head, "th"));
  body.append(...rows.map((row) => line(row, "td")));
  at(id).append(top, body);
};

// The theme of the system, and a button for the other one; charts take their colours from it.
const withTheme = (draw) => {
  const set = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    at("theme").textContent = dark ? "Light" : "Dark";
    draw();
  };
  at("theme").onclick = () => set(document.documentElement.dataset.theme !== "dark");
  set(matchMedia("(prefers-color-scheme: dark)").matches);
};
