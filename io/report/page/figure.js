// What every figure has: a title, a drawing that follows the page's width, hover and arrow keys, CSV, SVG, a table.
const figures = {};
const tip = document.getElementById("tip");

function element(parent, tag, attributes, text) {
  const node = document.createElement(tag);
  for (const name in attributes || {}) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

function showTip(text, box) {
  tip.textContent = text;
  tip.hidden = false;
  const left = Math.min(box.right + 10, window.innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 8 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = (below ? box.bottom + 8 : Math.max(4, box.top - tip.offsetHeight - 8)) + "px";
}
const hideTip = () => { tip.hidden = true; };

/// Gives each shape of a selection its words: shown on hover, read out when arrow keys reach it.
function mark(selection, words) {
  selection.classed("mark", true).each(function (d, i) { this.words = () => words(d, i); });
}

const csvField = value => !known(value) ? "" : /[",\n]/.test(String(value)) ? '"' + String(value).replace(/"/g, '""') + '"' : String(value);
const asCsv = (columns, rows) => [columns].concat(rows).map(row => row.map(csvField).join(",")).join("\n") + "\n";

function download(name, type, text) {
  const link = element(null, "a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/// The drawing with its colours and fonts written into it, so that it stands alone.
function asSvg(svg) {
  const copy = svg.cloneNode(true);
  const from = [svg].concat(Array.from(svg.querySelectorAll("*"))), to = [copy].concat(Array.from(copy.querySelectorAll("*")));
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "opacity", "font-size", "font-family", "text-anchor"])
      to[i].setAttribute(name, style.getPropertyValue(name));
    to[i].removeAttribute("class");
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return '<?xml version="1.0" encoding="UTF-8"?>\n' + new XMLSerializer().serializeToString(copy);
}

function fillTable(parent, columns, rows, most) {
  parent.textContent = "";
  const t = element(parent, "table");
  const head = element(element(t, "thead"), "tr");
  columns.forEach(c => element(head, "th", {scope: "col"}, c));
  const body = element(t, "tbody");
  rows.slice(0, most).forEach(row => {
    const line = element(body, "tr");
    row.forEach((v, i) => element(line, i === 0 ? "th" : "td", i === 0 ? {scope: "row"} : {}, known(v) ? (typeof v === "number" && !Number.isInteger(v) ? figureText(v) : String(v)) : "–"));
  });
  if (rows.length > most) element(parent, "p", {class: "note"}, "The first " + whole(most) + " of " + whole(rows.length) + " rows; CSV has them all.");
}

/// spec: {id, title, note, wide, columns, rows: () => [[...]], draw: (svg, width) => height, controls: (parent, draw) => ...}.
/// title and note may be functions; controls adds choices of this figure alone. Returns a function that draws anew.
function figure(parent, spec) {
  const text = value => typeof value === "function" ? value() : value;
  const root = element(parent, "figure", {id: spec.id, tabindex: "0", "aria-label": text(spec.title), class: spec.wide ? "wide" : ""});
  const caption = element(root, "figcaption");
  const title = element(caption, "h3"), note = element(caption, "p", {class: "note"});
  const controls = spec.controls && element(root, "div", {class: "controls"});
  const canvas = element(root, "div", {class: "canvas"});
  const svg = d3.select(canvas).append("svg").attr("role", "img");
  const readout = element(root, "p", {class: "readout", "aria-live": "polite"});
  const tools = element(root, "div", {class: "tools"});
  const tableBox = element(root, "div", {class: "scroll", hidden: ""});
  const button = (label, what, act) => element(tools, "button", {type: "button", title: what}, label).addEventListener("click", act);
  const csv = () => asCsv(spec.columns, spec.rows());
  button("CSV", "Download the numbers", () => download(spec.id + ".csv", "text/csv", csv()));
  button("SVG", "Download the drawing", () => download(spec.id + ".svg", "image/svg+xml", asSvg(svg.node())));
  button("Table", "Show the numbers as a table", event => {
    tableBox.hidden = !tableBox.hidden;
    event.target.setAttribute("aria-expanded", String(!tableBox.hidden));
    if (!tableBox.hidden) fillTable(tableBox, spec.columns, spec.rows(), 500);
  });

  let width = 0;
  function draw() {
    width = canvas.clientWidth;
    title.textContent = text(spec.title);
    note.textContent = text(spec.note) || "";
    root.setAttribute("aria-label", title.textContent);
    svg.attr("aria-label", title.textContent + ". Arrow keys read the values.").attr("width", width);
    svg.selectAll("*").remove();
    svg.attr("data-columns", null);
    const height = spec.draw(svg, width);
    const across = Math.max(width, +svg.attr("data-width") || 0);
    svg.attr({width: across, height, viewBox: "0 0 " + across + " " + height});
    if (!tableBox.hidden) fillTable(tableBox, spec.columns, spec.rows(), 500);
  }
  new ResizeObserver(() => { if (canvas.clientWidth > 0 && Math.abs(canvas.clientWidth - width) > 1) draw(); }).observe(canvas);

  let current = -1;
  const pointAt = (shape, box) => showTip(shape.words(), box || shape.getBoundingClientRect());
  svg.node().addEventListener("pointermove", event => {
    if (event.target.words) pointAt(event.target, {right: event.clientX, top: event.clientY - 6, bottom: event.clientY + 6});
    else hideTip();
  });
  svg.node().addEventListener("pointerleave", hideTip);
  root.addEventListener("blur", () => { hideTip(); svg.selectAll(".current").classed("current", false); });
  root.addEventListener("keydown", event => {
    if (event.target !== root) return;
    const columns = +svg.attr("data-columns") || 1;
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (event.key === "Escape") hideTip();
    if (!step) return;
    const shapes = svg.node().querySelectorAll(".mark");
    if (shapes.length === 0) return;
    event.preventDefault();
    current = current < 0 ? 0 : Math.max(0, Math.min(shapes.length - 1, current + step));
    svg.selectAll(".current").classed("current", false);
    shapes[current].classList.add("current");
    shapes[current].scrollIntoView({block: "nearest", inline: "nearest"});
    pointAt(shapes[current]);
    readout.textContent = shapes[current].words();
  });

  figures[spec.id] = {csv, svg: () => asSvg(svg.node()), rows: spec.rows, draw};
  if (spec.controls) spec.controls(controls, draw);
  draw();
  return draw;
}

/// A choice with a label. options: [[value, text]]. Calls changed(value) when another one is taken.
function choice(parent, label, options, value, changed) {
  const box = element(element(parent, "label", {}, label), "select");
  options.forEach(([v, t]) => element(box, "option", {value: v}, t));
  box.value = value;
  box.addEventListener("change", () => changed(box.value));
  return box;
}
const layerOptions = range(L).map(l => [l, "layer " + layers[l]]);
const datasetOptions = names.map((n, d) => [d, n]);
