// Where the ranks' time went in each layer, and what waiting for the slowest cost.
const timeParts = [["dispatch", "dispatch", "#0072b2"], ["waiting in dispatch", "dispatch_wait", "#56b4e9"], ["experts", "expert", "#009e73"], ["combine", "combine", "#d55e00"], ["waiting in combine", "combine_wait", "#cc79a7"]]
  .map(([name, of, colour]) => ({name, colour, path: "/ranks/layer_" + of + "_seconds"}));
const timedSteps = d => table("/ranks/timed_steps") ? rowOf("/ranks/timed_steps", d)[0] : 0;
/// Ranks that a dataset was timed on: others of the same file may have had more.
function timedRanks(d) {
  const measurements = "/ranks/cost_sums";  // the first of a rank's sums is their number
  return timedSteps(d) > 0 ? range(table(measurements).shape[1]).filter(r => valueAt(measurements, d, r, 0) > 0) : [];
}
const notTimed = svg => { svg.append("text").attr({class: "quiet", x: 10, y: 24}).text("Times by layer were not recorded of this dataset."); return 40; };

/// Adds the figures to the grid; state: {dataset}. Returns what draws them anew.
function rankTimeFigures(grid, state) {
  const redraw = [], timed = range(D).filter(d => timedSteps(d) > 0);
  if (timed.length === 0) return redraw;
  if (table(timeParts[0].path)) redraw.push(partsFigure(grid, state, timed));
  if (timed.some(d => timedRanks(d).length > 1)) redraw.push(...stragglerFigures(grid, state));
  return redraw;
}

function partsFigure(grid, state, timed) {
  let rank = -1;
  const R = table(timeParts[0].path).shape[2], ranks = () => timedRanks(state.dataset), of = r => r < 0 ? "all ranks" : "rank " + r;
  const seconds = (part, l, r) => r < 0 ? sum(ranks().map(q => valueAt(part.path, state.dataset, l, q))) : valueAt(part.path, state.dataset, l, r);
  return figure(grid, {id: "ranks-parts", title: () => "Time by layer and part: " + of(rank),
    note: "Seconds over all timed steps. Waiting is for the last rank to come to the exchange, measured without a barrier on one clock; recording and shared experts are left out.",
    controls: (parent, draw) => { if (R > 1) choice(parent, "Rank", [[-1, "all ranks together"]].concat(range(R).map(r => [r, "rank " + r])), rank, v => { rank = +v; draw(); }); },
    columns: ["layer", "rank"].concat(timeParts.map(p => p.name.replace(/ /g, "_") + "_seconds")),
    rows: () => [].concat(...range(L).map(l => ranks().map(r => [layers[l], r].concat(timeParts.map(p => seconds(p, l, r)))))),
    draw: (svg, width) => ranks().length === 0 || (rank >= 0 && !ranks().includes(rank)) ? notTimed(svg) : stackedBars(svg, width, {yLabel: "seconds", key: true,
      series: timeParts.map(p => ({name: p.name, colour: p.colour, values: range(L).map(l => seconds(p, l, rank))})),
      words: (s, l, all) => "layer " + layers[l] + ", " + of(rank) + "\n" + s.name + ": " + figureText(s.values[l]) + " s, " + percent(s.values[l] / all) + " of the layer's " + figureText(all) + " s"})});
}

function stragglerFigures(grid, state) {
  const redraw = [], ranks = () => timedRanks(state.dataset), layerRow = path => rowOf(path, state.dataset);
  const cost = l => layerRow("/ranks/layer_straggler_seconds")[l], all = () => sum(layerRow("/ranks/layer_straggler_seconds"));
  const byExpert = (l, e) => valueAt("/ranks/straggler_by_expert", state.dataset, l, e);
  const experts = l => range(E).map(e => ({l, e, seconds: byExpert(l, e)})).filter(c => c.seconds > 0).sort((a, b) => b.seconds - a.seconds);
  const share = (part, whole) => whole > 0 ? percent(part / whole) : "nothing";
  const none = () => ranks().length === 0;

  redraw.push(figure(grid, {id: "ranks-stragglers", title: "Cost of stragglers by layer",
    note: () => {
      if (none()) return "";
      const worst = range(L).reduce((a, b) => cost(b) > cost(a) ? b : a);
      return "Seconds of the slowest less the mean rank's experts, summed over " + whole(timedSteps(state.dataset)) + " timed steps: " + figureText(all(), 3) + " s in all" + (all() > 0 ? "; layer " + layers[worst] + " cost most, " + percent(cost(worst) / all()) + " of it" : "") + ".";
    },
    columns: ["layer", "straggler_seconds"], rows: () => none() ? [] : range(L).map(l => [layers[l], cost(l)]),
    draw: (svg, width) => none() ? notTimed(svg) : stackedBars(svg, width, {yLabel: "seconds", series: [{name: "slowest less mean rank", values: range(L).map(cost), colour: css("--half")}],
      words: (s, l) => "layer " + layers[l] + "\n" + figureText(cost(l)) + " s, " + share(cost(l), all()) + " of all" + (table("/ranks/straggler_by_expert") ? experts(l).slice(0, 3).map(c => "\nexpert " + c.e + ": " + share(c.seconds, cost(l)) + " of it").join("") : "")})}));

  if (table("/ranks/straggler_by_rank")) redraw.push(figure(grid, {id: "ranks-straggler-ranks", title: "Cost of stragglers by the rank that was slowest", note: "The same seconds, by layer and the rank that the others waited for.",
    columns: ["layer", "rank", "straggler_seconds", "slowest_steps"],
    rows: () => [].concat(...range(L).map(l => ranks().map(r => [layers[l], r, valueAt("/ranks/straggler_by_rank", state.dataset, l, r), valueAt("/ranks/slowest_steps", state.dataset, l, r)]))),
    draw: (svg, width) => {
      if (none()) return notTimed(svg);
      const at = (l, r) => valueAt("/ranks/straggler_by_rank", state.dataset, l, r), steps = (l, r) => valueAt("/ranks/slowest_steps", state.dataset, l, r);
      const most = Math.max(...range(L).map(l => Math.max(...ranks().map(r => at(l, r))))), y = amountKey(svg, 4, 0, most, v => figureText(v, 3) + " s", "seconds; rows: layers, columns: ranks");
      return y + heatMap(svg, width, {rows: layers, columns: ranks(), most: 60, value: (l, j) => at(l, ranks()[j]), colour: amountColour(most),
        words: (l, j) => "layer " + layers[l] + ", rank " + ranks()[j] + "\n" + figureText(at(l, ranks()[j])) + " s, " + share(at(l, ranks()[j]), cost(l)) + " of the layer's\nslowest in " + whole(steps(l, ranks()[j])) + " of " + whole(timedSteps(state.dataset)) + " steps"}, {x: 0, y: y + 4});
    }}));

  const ranked = () => [].concat(...range(L).map(experts)).sort((a, b) => b.seconds - a.seconds), called = c => "layer " + layers[c.l] + ", expert " + c.e;
  if (table("/ranks/straggler_by_expert")) redraw.push(figure(grid, {id: "ranks-straggler-experts", title: "Experts that the ranks waited for",
    note: () => none() || ranked().length === 0 ? "" : "The same seconds, shared among the slowest rank's experts by their slots. Most costly: " + ranked().slice(0, 3).map(c => "expert " + c.e + " of layer " + layers[c.l] + " (" + percent(c.seconds / all()) + ")").join(", ") + ".",
    columns: ["layer", "expert", "straggler_seconds"], rows: () => none() ? [] : [].concat(...range(L).map(l => range(E).map(e => [layers[l], e, byExpert(l, e)]))),
    draw: (svg, width) => none() ? notTimed(svg) : rankedBars(svg, width, ranked().slice(0, 15).map(c => ({text: called(c), value: c.seconds, words: called(c) + "\n" + figureText(c.seconds) + " s, " + share(c.seconds, all()) + " of all that stragglers cost"})), v => figureText(v, 3) + " s", "No rank was slower than another.")}));
  return redraw;
}
