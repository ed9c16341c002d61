// How evenly slots spread over experts.
function loadSection(section) {
  const every = D > 1 && D * L * E <= 8000;
  const state = {dataset: every ? -1 : 0, figure: "/load/gini"};
  const shown = () => state.dataset < 0 ? range(D) : [state.dataset];
  const usageOf = (d, l) => { const c = slots(d, l), all = sum(c); return c.map(n => n / all); };
  const name = d => d < 0 ? "all datasets together" : names[d];
  const cellWords = (d, l, e) => {
    const count = slots(d, l)[e], all = sum(slots(d, l));
    return name(d) + ", layer " + layers[l] + ", expert " + e + "\n" + whole(count) + " of " + whole(all) + " slots\nusage " + percent(count / all, 2) + " (ideal " + percent(1 / E, 2) + "), " + times(count / all * E) + " its even share";
  };
  const redraw = [];
  const controls = element(section, "div", {class: "controls"});
  choice(controls, "Dataset", (every ? [[-1, "all datasets"]] : []).concat(datasetOptions), state.dataset, v => { state.dataset = +v; redraw.forEach(f => f()); });
  const grid = element(section, "div", {class: "figures"});
  const columns = ["dataset", "layer", "expert", "count", "usage"];
  const rows = () => [].concat(...shown().map(d => [].concat(...range(L).map(l => usageOf(d, l).map((u, e) => [names[d], layers[l], e, slots(d, l)[e], u])))));

  redraw.push(figure(grid, {id: "load-map", wide: true, title: "Load of each expert, layer by layer", columns, rows,
    note: "Slots over the even share T k / E: 1 is ideal (the pale colour), 2 means twice the tokens that an even spread would bring.",
    draw: (svg, width) => {
      const ratio = (d, l) => usageOf(d, l).map(u => u * E);
      const ideal = Math.max(150, 40 + 30 * E), across = Math.max(1, Math.min(shown().length, Math.floor(width / ideal))), each = width / across;
      let y = ratioKey(svg, 4, 0, "times the even share"), lineHeight = 0;
      shown().forEach((d, i) => {
        const values = range(L).map(l => ratio(d, l));
        if (i > 0 && i % across === 0) { y += lineHeight; lineHeight = 0; }
        lineHeight = Math.max(lineHeight, heatMap(svg, each - 10, {title: names[d], rows: layers, columns: range(E), value: (l, e) => values[l][e], colour: ratioColour,
          words: (l, e) => cellWords(d, l, e)}, {x: (i % across) * each, y}) + 8);
      });
      svg.attr("data-columns", E);
      return y + lineHeight;
    }}));

  redraw.push(figure(grid, {id: "load-bars", wide: true, title: () => "Usage by expert: " + name(state.dataset), columns: ["layer", "expert", "count", "usage"],
    rows: () => [].concat(...range(L).map(l => usageOf(state.dataset, l).map((u, e) => [layers[l], e, slots(state.dataset, l)[e], u]))),
    note: "One small chart a layer, all on one scale; the dashed line is the ideal usage 1/E.",
    draw: (svg, width) => {
      const usages = range(L).map(l => usageOf(state.dataset, l)), most = Math.max(...usages.map(u => Math.max(...u)), 1 / E);
      const room = Math.max(110, Math.min(220, 20 + 9 * E)), across = Math.max(1, Math.min(L, Math.floor(width / room))), each = Math.min(260, width / across), high = 92;
      range(L).forEach(l => {
        const g = svg.append("g").attr("transform", "translate(" + (l % across) * each + "," + Math.floor(l / across) * (high + 22) + ")");
        const x = d3.scale.ordinal().domain(range(E)).rangeBands([2, each - 12], E > 24 ? 0 : 0.15), y = d3.scale.linear().domain([0, most]).range([high, 16]);
        g.append("text").attr({class: "quiet", x: 2, y: 10}).text("layer " + layers[l]);
        mark(g.selectAll("rect").data(usages[l]).enter().append("rect").attr({class: "bar", x: (u, e) => x(e), width: Math.max(0.8, x.rangeBand()), y: u => y(u), height: u => high - y(u)}), (u, e) => cellWords(state.dataset, l, e));
        g.append("line").attr({class: "reference", x1: 0, x2: each - 10, y1: y(1 / E), y2: y(1 / E)});
        if (E <= 16 && each / E >= 14) g.selectAll(".expert").data(range(E)).enter().append("text").attr({class: "expert quiet", x: e => x(e) + x.rangeBand() / 2, y: high + 12, "text-anchor": "middle"}).text(e => e);
      });
      svg.attr("data-columns", E);
      return Math.ceil(L / across) * (high + 22) + 4;
    }}));

  const byLayer = (id, shownPath, title, note, reference, controls) => figure(grid, {id, title, note, controls, columns: ["dataset", "layer", "value"],
    rows: () => [].concat(...range(D).map(d => range(L).map(l => [names[d], layers[l], valueAt(shownPath(), d, l)]))),
    draw: (svg, width) => lines(svg, width, {yLabel: table(shownPath()).path.split("/").pop().replace(/_/g, " "), reference, key: true,
      series: range(D).map(d => ({name: names[d], values: range(L).map(l => valueAt(shownPath(), d, l))})),
      words: (s, l) => s.name + ", layer " + layers[l] + "\n" + figureText(s.values[l]) + (table(shownPath()).units === "1" ? "" : " " + table(shownPath()).units)})});
  byLayer("load-cv", () => "/load/cv", "Coefficient of variation", "Population standard deviation of a layer's slots over their mean.", {value: 0, text: "even: 0"});
  byLayer("load-max", () => "/load/max_over_mean", "Busiest expert", "Its slots over the mean of the layer's experts.", {value: 1, text: "even: 1"});
  const others = ["gini", "min_over_mean", "effective_experts", "dead", "underused", "balancing_loss_per_choice", "z_loss"].map(n => "/load/" + n).filter(table).map(p => [p, table(p).name]);
  byLayer("load-other", () => state.figure, "Another figure by layer", () => table(state.figure).name, undefined,
    (parent, draw) => choice(parent, "Figure", others, state.figure, v => { state.figure = v; draw(); }));
}
