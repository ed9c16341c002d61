// What was predicted for a placement, and what a run with it measured.
const checkedFigures = {balancedness: "balancedness, all steps together", steps_balancedness_mean: "balancedness within steps", steps_balancedness_ratio: "the same by sums", ranks_per_token: "ranks a token",
  remote_slots_per_token: "slots of a token on other ranks", bytes_across_nodes_per_token: "bytes of a token across nodes", step_seconds: "seconds of a step's experts", straggler_seconds: "of it waiting, s"};

function checkFigures(section, grid, found) {
  const get = name => found.tables["/check/" + name];
  if (!get("figure_name")) return;
  const figures = get("figure_name").values, corpora = get("dataset_name").values, texts = get("text").values, nCorpora = corpora.length;
  const called = d => corpora[d] + ", " + texts[d];
  const overLayers = (values, f) => values.some(known) ? (get("adds_up").values[f] ? sum(values) : sum(values.filter(known)) / values.filter(known).length) : null;
  const predicted = f => get("whole_" + figures[f]).values[0], measured = (f, d) => overLayers(range(L).map(l => at("measured_", f, d, l)), f), at = (what, f, d, l) => get(what + figures[f]).values[d * L + l];
  const error = (f, d) => known(predicted(f)) && known(measured(f, d)) ? measured(f, d) - predicted(f) : null;
  // An error is told as finely as four digits of what was predicted.
  const signed = (v, f) => { const text = v.toFixed(Math.max(0, 3 - Math.floor(Math.log10(Math.abs(predicted(f)) || 1)))); return +text === 0 ? "0" : (v > 0 ? "+" : "") + text; };
  const end = (f, side) => get("whole_" + figures[f] + side) ? get("whole_" + figures[f] + side).values[0] : null;
  const predictedText = f => !known(predicted(f)) ? null : figureText(predicted(f)) + (known(end(f, "_low")) ? " (" + figureText(end(f, "_low"), 3) + " to " + figureText(end(f, "_high"), 3) + ")" : "");
  const measuredText = (f, d) => !known(measured(f, d)) ? null : figureText(measured(f, d)) + (known(error(f, d)) ? " (" + signed(error(f, d), f) + ")" : "");

  const box = element(section, "div", {id: "placement-check", class: "checked"});
  element(box, "h3", {}, "Predicted and measured");
  element(box, "p", {class: "note"}, "The placement of " + found.settings.check + " (" + (found.settings["check-plan"] ? "the plan of " + found.settings["check-plan"] : "the plan of none of these methods") + "), predicted from " + found.settings.datasets +
    " for its mean step of " + whole(get("step_tokens").values[0]) + " tokens; the error is in brackets. Means over layers; bytes and seconds are sums of all layers. A dash: not known.");
  fillTable(element(box, "div", {class: "scroll"}), ["figure", "predicted"].concat(range(nCorpora).map(called)), figures.map((name, f) => [checkedFigures[name], predictedText(f)].concat(range(nCorpora).map(d => measuredText(f, d)))), 50);
  section.insertBefore(box, grid);

  const state = {figure: 0, dataset: 0}, name = () => checkedFigures[figures[state.figure]], side = (what, l) => get("predicted_" + figures[state.figure] + what) ? get("predicted_" + figures[state.figure] + what).values[l] : null;
  figure(grid, {id: "placement-check-layers", title: () => "Predicted and measured: " + name(), note: () => "By layer, of " + called(state.dataset) + "." + (!get("predicted_" + figures[state.figure] + "_low") ? "" : get("predicted_" + figures[state.figure]).units === "s" ? " The band: the cost model's 95 % interval." : " The band: pairs of experts only bound it."),
    controls: (parent, draw) => {
      choice(parent, "Figure", figures.map((f, i) => [i, checkedFigures[f]]), 0, v => { state.figure = +v; draw(); });
      if (nCorpora > 1) choice(parent, "Measured on", range(nCorpora).map(d => [d, called(d)]), 0, v => { state.dataset = +v; draw(); });
    },
    columns: ["figure", "layer", "dataset", "text", "predicted", "predicted_low", "predicted_high", "measured", "error"],
    rows: () => [].concat(...range(nCorpora).map(d => range(L).map(l => [figures[state.figure], layers[l], corpora[d], texts[d], side("", l), side("_low", l), side("_high", l), at("measured_", state.figure, d, l), at("error_", state.figure, d, l)]))),
    draw: (svg, width) => {
      const estimate = {name: "predicted", colour: seriesColour(1), dash: "5 3", values: range(L).map(l => side("", l))};
      if (get("predicted_" + figures[state.figure] + "_low")) Object.assign(estimate, {low: range(L).map(l => side("_low", l)), high: range(L).map(l => side("_high", l))});
      const d = state.dataset, units = get("predicted_" + figures[state.figure]).units, unit = units === "1" ? "" : " " + units;
      return lines(svg, width, {yLabel: name(), fromZero: false, key: true, series: [{name: "measured", values: range(L).map(l => at("measured_", state.figure, d, l))}, estimate],
        words: (s, l) => "layer " + layers[l] + ", " + called(d) + "\n" + [["predicted", side("", l)], ["measured", at("measured_", state.figure, d, l)], ["error", at("error_", state.figure, d, l)]].filter(v => known(v[1])).map(v => v[0] + ": " + figureText(v[1]) + unit).join("\n")});
    }});
}
