// What a slot and an expert cost in seconds, and whether that is to be believed.
const costTerms = [{letter: "a", name: "a layer of a step", unit: "µs", scale: 1e6}, {letter: "b", name: "each slot", unit: "ns", scale: 1e9}, {letter: "c", name: "each expert with a slot", unit: "µs", scale: 1e6}];

/// A dataset's model: {terms: [{value, low, high}], rSquared}, seconds, 95 % intervals; null where there is none.
function costModel(dataset) {
  const values = rowOf("/ranks/cost_model", dataset), covariance = rowOf("/ranks/cost_model_covariance", dataset);
  if (!(timedSteps(dataset) > 0) || !values.every(known)) return null;
  const terms = values.map((value, i) => {
    const variance = covariance[4 * i], room = known(variance) ? 1.96 * Math.sqrt(Math.max(0, variance)) : null;
    return {value, told: i === 0 || variance !== 0, low: known(room) ? value - room : null, high: known(room) ? value + room : null};
  });
  return {terms, rSquared: rowOf("/ranks/cost_model_r_squared", dataset)[0]};
}
const termText = (term, i) => !term.told ? "not told apart from a" : figureText(term.value * costTerms[i].scale, 3) + " " + costTerms[i].unit +
  (known(term.low) ? " (95 % interval " + figureText(term.low * costTerms[i].scale, 3) + " to " + figureText(term.high * costTerms[i].scale, 3) + ")" : "");
function trustText(rSquared) {
  if (!known(rSquared)) return "How much of the seconds' variance it explains is not known: all took the same time.";
  return rSquared >= data.least_r_squared ? "It explains " + percent(rSquared, 0) + " of the seconds' variance." : "It explains " + percent(rSquared, 0) + " of the seconds' variance, too little to be believed: below " + data.least_r_squared + " other things than slots decide them, and placements are not judged by it.";
}

/// Adds the figures to the grid; state: {dataset}. Returns what draws them anew.
function costModelFigures(grid, state) {
  const fitted = range(D).filter(costModel);
  if (fitted.length === 0) return [];
  const model = () => costModel(state.dataset), ranks = () => timedRanks(state.dataset);
  const ofRank = (r, i) => valueAt("/ranks/cost_model_of_rank", state.dataset, r, i), fit = r => valueAt("/ranks/cost_model_of_rank_r_squared", state.dataset, r), correlation = r => valueAt("/ranks/slots_seconds_correlation", state.dataset, r);
  const missing = svg => { svg.append("text").attr({class: "quiet", x: 10, y: 24}).text("No model could be fitted to this dataset's seconds."); return 40; };

  const terms = figure(grid, {id: "ranks-cost-terms", title: "What a layer, a slot and an expert cost",
    note: () => "Seconds of a rank's experts in a layer of a step = a + b × slots + c × experts with a slot, by least squares. Dots and bars: all ranks together, with 95 % intervals; squares: each rank's own fit. " + (model() ? trustText(model().rSquared) : ""),
    columns: ["rank", "intercept_seconds", "per_slot_seconds", "per_expert_seconds", "intercept_low", "intercept_high", "per_slot_low", "per_slot_high", "per_expert_low", "per_expert_high"],
    rows: () => !model() ? [] : [["all"].concat(model().terms.map(t => t.told ? t.value : null), ...model().terms.map(t => t.told ? [t.low, t.high] : [null, null]))].concat(ranks().map(r => [r].concat(costTerms.map((t, i) => model().terms[i].told ? ofRank(r, i) : null), Array(6).fill(null)))),
    draw: (svg, width) => {
      if (!model()) return missing(svg);
      let y = 0;
      costTerms.forEach((term, i) => { y = termRow(svg, width, y, term, i, model().terms[i], ranks().map(r => ({name: "rank " + r, value: ofRank(r, i)})).filter(d => known(d.value))); });
      return y;
    }});
  const quality = figure(grid, {id: "ranks-cost-fit", title: "How well slots explain each rank's seconds", note: "R²: share of the variance that the rank's own fit explains. Correlation: Pearson's, of its seconds with its slots.",
    columns: ["rank", "r_squared", "correlation"], rows: () => !model() ? [] : [["all", model().rSquared, null]].concat(ranks().map(r => [r, fit(r), correlation(r)])),
    draw: (svg, width) => !model() ? missing(svg) : fitRows(svg, width, [{name: "all ranks", r: model().rSquared, correlation: null}].concat(ranks().map(r => ({name: "rank " + r, r: fit(r), correlation: correlation(r)}))))});
  return [terms, quality];
}

/// One term on a scale of its own, which holds 0: the estimate with its interval, and the ranks' below. Returns the next y.
function termRow(svg, width, top, term, i, all, ofRanks) {
  const left = 28, right = width - 24, x = d3.scale.linear(), middle = top + 54, g = svg.append("g");
  g.append("text").attr({x: 6, y: top + 14, "font-weight": 600}).text(term.letter + ", " + term.name);
  g.append("text").attr({x: 6, y: top + 32}).text(termText(all, i));
  if (!all.told) return top + 44;
  const values = [0, all.value, all.low, all.high].concat(ofRanks.map(d => d.value)).filter(known).map(v => v * term.scale);
  x.domain(d3.extent(values)).nice(5).range([left, right]);
  if (x.domain()[0] === x.domain()[1]) x.domain([0, 1]);
  g.append("g").attr({class: "axis", transform: "translate(0," + (top + 84) + ")"}).call(d3.svg.axis().scale(x).orient("bottom").ticks(Math.max(2, Math.floor(width / 90))).tickSize(4));
  g.append("text").attr({class: "quiet", x: right, y: top + 114, "text-anchor": "end"}).text(term.unit);
  const place = v => x(v * term.scale);
  g.append("line").attr({class: "reference", x1: x(0), x2: x(0), y1: top + 40, y2: top + 84});
  if (known(all.low)) g.append("line").attr({x1: place(all.low), x2: place(all.high), y1: middle, y2: middle, stroke: seriesColour(0), "stroke-width": 4, "stroke-opacity": 0.5});
  mark(g.append("circle").attr({cx: place(all.value), cy: middle, r: 5, fill: seriesColour(0)}), () => "all ranks\n" + term.letter + ", " + term.name + ": " + termText(all, i));
  mark(g.append("g").selectAll("rect").data(ofRanks).enter().append("rect").attr({x: d => place(d.value) - 3.5, y: middle + 13, width: 7, height: 7, fill: seriesColour(1)}), d => d.name + "\n" + term.letter + ", " + term.name + ": " + figureText(d.value * term.scale, 3) + " " + term.unit);
  return top + 126;
}

/// R² and correlation of each row on one scale.
function fitRows(svg, width, rows) {
  const left = 84, right = width - 20, high = 20, top = 8, bottom = top + rows.length * high, values = [].concat(...rows.map(d => [d.r, d.correlation])).filter(known);
  const x = d3.scale.linear().domain([Math.min(0, Math.floor(10 * d3.min(values.concat(0))) / 10), 1]).range([left, right]);
  svg.append("g").attr({class: "axis", transform: "translate(0," + bottom + ")"}).call(d3.svg.axis().scale(x).orient("bottom").ticks(Math.max(2, Math.floor(width / 90))).tickSize(-(bottom - top)));
  svg.append("line").attr({class: "reference", x1: x(data.least_r_squared), x2: x(data.least_r_squared), y1: top, y2: bottom});
  svg.append("text").attr({class: "quiet", x: x(data.least_r_squared), y: bottom + 34, "text-anchor": "middle"}).text("R² is believed from " + data.least_r_squared + " on");
  svg.append("g").selectAll("text").data(rows).enter().append("text").attr({class: "quiet", x: left - 8, y: (d, i) => top + (i + 0.5) * high + 4, "text-anchor": "end"}).text(d => d.name);
  rows.forEach((d, i) => {
    const y = top + (i + 0.5) * high;
    if (known(d.r)) mark(svg.append("circle").attr({cx: x(d.r), cy: y, r: 5, fill: seriesColour(0)}), () => d.name + "\nR² " + figureText(d.r, 3));
    if (known(d.correlation)) mark(svg.append("rect").attr({x: x(d.correlation) - 4, y: y - 4, width: 8, height: 8, fill: seriesColour(1)}), () => d.name + "\ncorrelation of seconds with slots " + figureText(d.correlation, 3));
  });
  return seriesKey(svg, width, bottom + 38, [{name: "R² (dots)", colour: seriesColour(0), dash: ""}, {name: "correlation (squares)", colour: seriesColour(1), dash: ""}]);
}
