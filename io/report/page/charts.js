// Drawings that several sections share. Each fills an svg and returns its height.
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Okabe and Ito's colours for colour-blind readers, without the yellow that white paper swallows; dashes go on where they end.
const seriesColours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b88700", "#56b4e9", "#7a6fd0", "#8a8a8a"];
const seriesColour = i => seriesColours[i % seriesColours.length];
const seriesDash = i => ["", "6 3", "2 3"][Math.floor(i / seriesColours.length) % 3];

/// From low over middle to high for a ratio to the ideal: its logarithm, clipped at a quarter and four times.
function ratioColour(ratio) {
  if (!known(ratio)) return css("--missing");
  const scale = d3.scale.linear().domain([-2, 0, 2]).range([css("--low"), css("--middle"), css("--high")]).interpolate(d3.interpolateLab).clamp(true);
  return scale(ratio <= 0 ? -2 : Math.log2(ratio));
}
/// Darker (on a dark page: lighter) for more, on [0, most].
function amountColour(most) {
  const scale = d3.scale.linear().domain([0, most / 2 || 0.5, most || 1]).range([css("--empty"), css("--half"), css("--full")]).interpolate(d3.interpolateLab).clamp(true);
  return value => known(value) ? scale(value) : css("--missing");
}

/// A bar of colours with its ends in words, at (x, y). Returns the height taken.
function colourKey(svg, x, y, width, colours, labels, title) {
  const bar = svg.append("g").attr("transform", "translate(" + x + "," + y + ")");
  bar.append("text").attr({class: "quiet", y: 10}).text(title);
  const step = width / colours.length;
  bar.selectAll("rect").data(colours).enter().append("rect").attr({x: (c, i) => i * step, y: 16, width: step + 0.5, height: 9, fill: c => c});
  bar.selectAll(".end").data(labels).enter().append("text").attr({class: "end quiet", x: (t, i) => i * width / Math.max(1, labels.length - 1), y: 37,
    "text-anchor": (t, i) => i === 0 ? "start" : i === labels.length - 1 ? "end" : "middle"}).text(t => t);
  return 44;
}
const ratioKey = (svg, x, y, title) => colourKey(svg, x, y, 180, range(25).map(i => ratioColour(Math.pow(2, (i - 12) / 6))), ["¼", "½", "1", "2", "4 ×"], title);
const amountKey = (svg, x, y, most, text, title) => colourKey(svg, x, y, 180, range(25).map(i => amountColour(most)(most * i / 24)), ["0", text(most)], title);

/// A grid of cells. grid: {rows, columns (labels), value(r, c), colour(v), words(r, c), rowName, columnName, most: largest cell in pixels}.
function heatMap(svg, width, grid, at) {
  const {x: left0, y: top0} = at || {x: 0, y: 0};
  const longest = Math.max(...grid.rows.map(r => String(r).length), 2);
  const left = left0 + Math.min(130, 18 + 6.6 * longest), top = top0 + (grid.title ? 36 : 18);
  const cell = Math.max(4, Math.min(grid.most || 30, Math.floor((width - (left - left0) - 4) / grid.columns.length)));
  const high = Math.max(4, Math.min(cell, grid.high || 24));
  if (grid.title) svg.append("text").attr({x: left0, y: top0 + 12, "font-weight": 600}).text(grid.title);
  const everyColumn = Math.ceil(22 / cell), everyRow = Math.ceil(13 / high);
  const labels = svg.append("g");
  const each = (n, every) => range(n).filter(i => i % every === 0);
  labels.selectAll(".column").data(each(grid.columns.length, everyColumn)).enter().append("text").attr({class: "column quiet", "text-anchor": "middle", y: top - 5, x: j => left + (j + 0.5) * cell}).text(j => grid.columns[j]);
  labels.selectAll(".row").data(each(grid.rows.length, everyRow)).enter().append("text").attr({class: "row quiet", "text-anchor": "end", x: left - 6, y: i => top + (i + 0.5) * high + 4})
    .text(i => String(grid.rows[i]).length > 17 ? String(grid.rows[i]).slice(0, 16) + "…" : grid.rows[i]);
  const cells = [];
  grid.rows.forEach((r, i) => grid.columns.forEach((c, j) => cells.push([i, j])));
  const gap = cell > 9 ? 1 : 0;
  const marks = svg.append("g").selectAll("rect").data(cells).enter().append("rect").attr({
    x: d => left + d[1] * cell, y: d => top + d[0] * high, width: cell - gap, height: high - (high > 9 ? 1 : 0), fill: d => grid.colour(grid.value(d[0], d[1]))});
  mark(marks, d => grid.words(d[0], d[1]));
  svg.attr("data-columns", grid.columns.length);
  svg.attr("data-width", Math.max(+svg.attr("data-width") || 0, left + grid.columns.length * cell + 4));
  return top - top0 + grid.rows.length * high + 8;
}

/// Axes of a plot; returns its scales and frame.
function plot(svg, width, options) {
  const left = 58, right = 12, top = 14, bottom = 40, height = options.height || 230;
  const x = d3.scale.linear().domain(options.x).range([left, width - right]);
  const y = d3.scale.linear().domain(options.y).nice(5).range([height - bottom, top]);
  const xAxis = d3.svg.axis().scale(x).orient("bottom").tickSize(4);
  if (options.xTicks) xAxis.tickValues(options.xTicks).tickFormat(options.xText);
  else xAxis.ticks(Math.max(2, Math.floor(width / 90)));
  if (options.xFormat) xAxis.tickFormat(options.xFormat);
  svg.append("g").attr({class: "axis", transform: "translate(0," + (height - bottom) + ")"}).call(xAxis);
  svg.append("g").attr({class: "axis", transform: "translate(" + left + ",0)"}).call(d3.svg.axis().scale(y).orient("left").ticks(5).tickSize(-(width - left - right)).tickFormat(options.yText || (v => figureText(v, 3))));
  svg.append("text").attr({class: "quiet", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle"}).text(options.xLabel);
  svg.append("text").attr({class: "quiet", transform: "translate(13," + (top + (height - bottom - top) / 2) + ") rotate(-90)", "text-anchor": "middle"}).text(options.yLabel);
  return {x, y, left, right: width - right, top, bottom: height - bottom, height};
}
const layerTicks = width => { const every = Math.max(1, Math.ceil(L / Math.max(2, Math.floor(width / 45)))); return range(L).filter(l => l % every === 0); };

/// Swatches with names, wrapped to the width. Returns the y below them.
function seriesKey(svg, width, y, series) {
  let x = 58, line = y + 12;
  series.forEach((s, i) => {
    const item = svg.append("g");
    item.append("line").attr({x1: 0, x2: 18, y1: -4, y2: -4, stroke: s.colour || seriesColour(i), "stroke-width": 3, "stroke-dasharray": s.dash === undefined ? seriesDash(i) : s.dash});
    const text = item.append("text").attr("x", 23).text(s.name);
    const needed = 40 + text.node().getComputedTextLength();
    if (x + needed > width && x > 58) { x = 58; line += 18; }
    item.attr("transform", "translate(" + x + "," + line + ")");
    x += needed;
  });
  return line + 8;
}

/// Lines over layers (or options.at). series: [{name, values, low, high}]; reference: {value, text}; words(series, i).
function lines(svg, width, options) {
  const all = [].concat(...options.series.map(s => s.values.concat(s.low || [], s.high || []))).filter(known);
  if (all.length === 0) {
    svg.append("text").attr({class: "quiet", x: 10, y: 24}).text(nothing);
    return 40;
  }
  if (options.reference) all.push(options.reference.value);
  const low = options.fromZero === false ? d3.min(all) : Math.min(0, d3.min(all)), high = d3.max(all);
  const at = options.at || range(L);
  const last = at.length - 1;
  const frame = plot(svg, width, {x: [at[0], last > 0 ? at[last] : at[0] + 1], y: [low, high === low ? low + 1 : high], yLabel: options.yLabel, yText: options.yText,
    xLabel: options.xLabel || "MoE layer", xTicks: options.at ? null : layerTicks(width), xText: l => layers[l], xFormat: options.xFormat});
  const place = i => frame.x(at[i]);
  if (options.reference) {
    svg.append("line").attr({class: "reference", x1: frame.left, x2: frame.right, y1: frame.y(options.reference.value), y2: frame.y(options.reference.value)});
    svg.append("text").attr({class: "quiet", x: frame.right - 4, y: frame.y(options.reference.value) - 5, "text-anchor": "end"}).text(options.reference.text);
  }
  options.series.forEach((s, i) => {
    const colour = s.colour || seriesColour(i), dash = s.dash === undefined ? seriesDash(i) : s.dash;
    const here = range(at.length).filter(j => known(s.values[j]));
    if (s.low) svg.append("path").datum(here.filter(j => known(s.low[j]))).attr({class: "band", fill: colour, d: d3.svg.area().x(place).y0(j => frame.y(s.low[j])).y1(j => frame.y(s.high[j]))});
    svg.append("path").datum(here).attr({class: "line", stroke: colour, "stroke-dasharray": dash, d: d3.svg.line().x(place).y(j => frame.y(s.values[j]))});
    mark(svg.append("g").selectAll("circle").data(here).enter().append("circle").attr({cx: place, cy: j => frame.y(s.values[j]), r: at.length > 30 ? 2 : 3.5, fill: colour}), j => options.words(s, j, i));
  });
  svg.attr("data-columns", 1);
  return options.series.length > 1 || options.key ? seriesKey(svg, width, frame.height, options.series) : frame.height;
}

/// A bar for each layer, made of parts on top of one another. options: {yLabel, key, series: [{name, values, colour}], words(series, layer, all)}.
function stackedBars(svg, width, options) {
  const totals = range(L).map(l => sum(options.series.map(s => s.values[l])));
  const frame = plot(svg, width, {x: [-0.5, L - 0.5], y: [0, d3.max(totals) || 1], yLabel: options.yLabel, xLabel: "MoE layer", xTicks: layerTicks(width), xText: l => layers[l]});
  const room = frame.x(1) - frame.x(0), wide = Math.min(60, room * 0.8), parts = svg.append("g");
  range(L).forEach(l => {
    let below = 0;
    options.series.forEach(s => {
      const high = Math.max(0, s.values[l]), gap = options.series.length > 1 && room > 6 ? 0.5 : 0;
      mark(parts.append("rect").attr({x: frame.x(l) - wide / 2, width: wide, y: frame.y(below + high), height: Math.max(0, frame.y(below) - frame.y(below + high) - gap), fill: s.colour}), () => options.words(s, l, totals[l]));
      below += high;
    });
  });
  svg.attr("data-columns", options.series.length);
  return options.key ? seriesKey(svg, width, frame.height, options.series.map(s => ({name: s.name, colour: s.colour, dash: ""}))) : frame.height;
}

/// A histogram of equal bins on [low, high] with lines at a mean and a median.
function histogram(svg, width, options) {
  const n = options.counts.length, total = sum(options.counts);
  const frame = plot(svg, width, {x: [options.low, options.high], y: [0, (d3.max(options.counts) || 1) / (total || 1)], xLabel: options.xLabel, yLabel: "share of tokens", yText: percentTick});
  const edge = i => options.low + (options.high - options.low) * i / n;
  mark(svg.append("g").selectAll("rect").data(options.counts).enter().append("rect").attr({class: "bar", x: (c, i) => frame.x(edge(i)) + 0.5, width: Math.max(1, frame.x(edge(1)) - frame.x(edge(0)) - 1),
    y: c => frame.y(c / (total || 1)), height: c => frame.bottom - frame.y(c / (total || 1))}),
    (c, i) => figureText(edge(i), 3) + " to " + figureText(edge(i + 1), 3) + (options.unit ? " " + options.unit : "") + "\n" + whole(c) + " tokens, " + percent(c / (total || 1), 2));
  [["mean", options.mean, "0"], ["median", options.median, "5 3"]].filter(m => known(m[1])).forEach(([name, value, dash], i) => {
    svg.append("line").attr({x1: frame.x(value), x2: frame.x(value), y1: frame.top, y2: frame.bottom, stroke: css("--high"), "stroke-width": 2, "stroke-dasharray": dash});
    const toRight = frame.x(value) < (frame.left + frame.right) / 2;
    svg.append("text").attr({class: "halo", x: frame.x(value) + (toRight ? 5 : -5), y: frame.top + 11 + 15 * i, "text-anchor": toRight ? "start" : "end"}).text(name + " " + figureText(value));
  });
  svg.attr("data-columns", 1);
  return frame.height;
}

/// Horizontal bars with a text before each. items: [{text, value, words}]; without any, the text `none`.
function rankedBars(svg, width, items, valueText, none) {
  if (items.length === 0) {
    svg.append("text").attr({class: "quiet", x: 10, y: 24}).text(none || "No token was seen often enough.");
    return 40;
  }
  const left = Math.min(176, 14 + 9 * Math.max(...items.map(i => i.text.length))), high = 19, room = 74;
  const x = d3.scale.linear().domain([0, d3.max(items, i => i.value)]).range([0, width - left - room]);
  svg.append("g").selectAll("text").data(items).enter().append("text").attr({class: "piece", x: left - 6, y: (d, i) => i * high + 14, "text-anchor": "end"}).text(d => d.text.length > 18 ? d.text.slice(0, 17) + "…" : d.text);
  mark(svg.append("g").selectAll("rect").data(items).enter().append("rect").attr({class: "bar", x: left, y: (d, i) => i * high + 3, height: high - 5, width: d => Math.max(1, x(d.value))}), d => d.words);
  svg.append("g").selectAll("text").data(items).enter().append("text").attr({class: "quiet", x: d => left + x(d.value) + 5, y: (d, i) => i * high + 14}).text(d => valueText(d.value));
  return items.length * high + 6;
}
