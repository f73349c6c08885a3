// Shared by all pages. Nothing of the data becomes markup: a prompt with a tag in it is shown, not run.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly reads some tags
const number = (value, digits = 3) => value === null || value === undefined ? "" :
  value !== 0 && (Math.abs(value) < 1e-2 || Math.abs(value) >= 1e5) ? value.toExponential(digits - 1).replace(/\.?0+e/, "e") : String(+value.toPrecision(digits));
// A long name may break after a dot, a slash or an underscore.
const breakable = (element, text) => { element.append(...text.split(/(?<=[./_])/).flatMap((part, i) => i ? [make("wbr"), part] : [part])); return element; };
const fill = (select, options) => options.forEach(([value, text]) => select.append(Object.assign(make("option", text), { value })));

// What the page answers first
const answers = (given) => {
  const box = make("div", "", "answers");
  box.append(...given.map((answer) => {
    const panel = make("div", "", answer.is_good === null ? "answer" : answer.is_good ? "answer good" : "answer poor");
    panel.append(make("span", answer.question, "dim"), make("b", answer.value));
    if (answer.word) panel.append(make("strong", answer.word));
    panel.append(make("p", answer.detail, "dim"));
    if (answer.advice) panel.append(make("p", answer.advice, "advice"));
    return panel;
  }));
  return box;
};

// Charts: no tools beside them, and where a finger scrolls the page it does not zoom.
const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNarrow = () => document.documentElement.clientWidth < 600;
const log = (values) => {
  const shown = values.filter((value) => value > 0), decades = Math.log10(Math.max(...shown) / Math.min(...shown));
  return { type: "log", exponentformat: "power", ...(decades < 2 ? { dtick: "D2", tickformat: "~g" } : { dtick: 1 }) };
};
const layout = (x, y, more = {}) => {
  const axis = (title, own = {}) => ({ title: { text: title, standoff: 12 }, gridcolor: style("--line"), zeroline: false, automargin: true, ...own });
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: isNarrow() ? 10 : 12 },
    colorway: colours, margin: isNarrow() ? { l: 45, r: 8, t: 30, b: 40 } : { l: 70, r: 20, t: 40, b: 50 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", hoverlabel: { namelength: -1 },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" }, ...more, xaxis: axis(x, more.xaxis), yaxis: axis(y, more.yaxis) };
};
const plot = (id, traces, made) => Plotly.react(id, traces, made, { responsive: true, displayModeBar: false, displaylogo: false });
const folded = (name) => isNarrow() ? escaped(name).replace(/(.{16,}?[. ])(?=.{6})/g, "$1<br>") : escaped(name);
// A row for each name, the first on top; each series has a value for each of them.
const dots = (id, names, series, axis) => {
  const place = names.map((_, i) => i), line = 8 + 12 * Math.max(...names.map((name) => folded(name).split("<br>").length));
  at(id).style.height = `${130 + line * names.length}px`;
  plot(id, series.map(({ values, name, ...more }) => ({ x: values, y: place, text: names.map(escaped), name: escaped(name), mode: "markers", showlegend: true,
    hovertemplate: "%{text}<br>%{x:.3e}<extra></extra>", ...more })),
  layout(axis.title, "", { xaxis: { ...axis, title: { text: axis.title } }, yaxis: { tickvals: place, ticktext: names.map(folded), range: [names.length - 0.5, -0.5] } }));
};

const cells = (row, tag, texts) => row.append(...texts.map((text) => make(tag, String(text))));
const table = (id, head, lines) => {
  const top = make("thead"), body = make("tbody"), line = make("tr");
  line.append(...head.map((text) => breakable(make("th"), text)));
  top.append(line);
  body.append(...lines.map((texts) => { const row = make("tr"); cells(row, "td", texts); return row; }));
  at(id).append(top, body);
  return [...body.rows];
};
// Columns of numbers, counted from 0.
const numbers = (id, from) => [...at(id).rows].forEach((row) => [...row.cells].slice(from).forEach((cell) => cell.classList.add("number")));

// The theme of the system, and a button for the other one; charts take their colours from it, and their sizes from the window.
const withTheme = (draw) => {
  const set = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    at("theme").textContent = dark ? "Light" : "Dark";
    draw();
  };
  at("theme").onclick = () => set(document.documentElement.dataset.theme !== "dark");
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  set(matchMedia("(prefers-color-scheme: dark)").matches);
};
