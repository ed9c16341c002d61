// Ways of tokens through the layers: first choices.
function pathsSection(section) {
  const flow = data.flow;
  if (!flow) {
    element(section, "p", {class: "intro"}, "A path needs two MoE layers.");
    return;
  }
  const most = Math.min(L, E <= 16 ? 6 : 3);
  const state = {scope: 0, first: 0, dataset: 0};
  const grid = element(section, "div", {class: "figures"});
  const edges = l => { const of = flow.edges[state.scope * (L - 1) + l]; return range(of.length / 2).map(i => ({from: Math.floor(of[2 * i] / E), to: of[2 * i] % E, count: of[2 * i + 1]})); };
  const first = l => flow.first.slice((state.scope * L + l) * E, (state.scope * L + l + 1) * E);
  const shown = () => range(most).map(i => state.first + i);
  const coverage = l => sum(edges(l).map(e => e.count)) / sum(first(l));
  figure(grid, {id: "paths-flow", wide: true, title: () => "Flow of first choices, layers " + layers[state.first] + " to " + layers[state.first + most - 1] + ": " + scopes[state.scope],
    note: () => "A box is an expert, as high as the tokens that chose it first; a ribbon, the tokens that go from one to the next." + (coverage(state.first) < 0.9999 ? " The largest " + flow.kept + " ribbons between two layers are in this page, at least " + percent(Math.min(...shown().slice(0, -1).map(coverage)), 0) + " of the tokens." : ""),
    controls: (parent, draw) => {
      if (D > 1) choice(parent, "Dataset", scopes.map((s, i) => [i, s]), 0, v => { state.scope = +v; draw(); });
      if (L > most) choice(parent, "From", range(L - most + 1).map(l => [l, "layer " + layers[l]]), 0, v => { state.first = +v; draw(); });
    },
    columns: ["layer", "expert", "next_layer", "next_expert", "tokens"], rows: () => [].concat(...range(L - 1).map(l => edges(l).map(e => [layers[l], e.from, layers[l + 1], e.to, e.count]))),
    draw: (svg, width) => {
      const top = 24, gap = E <= 16 ? 6 : 2, height = Math.max(320, 8 * E), box = 26, step = (width - box - 4) / Math.max(1, most - 1);
      const all = sum(first(state.first)), scale = (height - gap * (E - 1)) / all;
      const tops = shown().map(l => { let y = top; return first(l).map(n => { const at = y; y += n * scale + gap; return at; }); });
      shown().slice(0, -1).forEach((l, i) => {
        const out = tops[i].slice(), into = tops[i + 1].slice();
        const here = edges(l).sort((a, b) => a.from - b.from || a.to - b.to);
        here.forEach(e => { e.y0 = out[e.from]; out[e.from] += e.count * scale; });
        here.slice().sort((a, b) => a.to - b.to || a.from - b.from).forEach(e => { e.y1 = into[e.to]; into[e.to] += e.count * scale; });
        const x0 = i * step + box, x1 = (i + 1) * step, middle = (x0 + x1) / 2;
        mark(svg.append("g").selectAll("path").data(here).enter().append("path").attr({class: "ribbon", fill: e => E <= 8 ? seriesColour(e.from) : css("--half"), d: e => {
          const h = Math.max(0.5, e.count * scale);
          return "M" + x0 + "," + e.y0 + "C" + middle + "," + e.y0 + " " + middle + "," + e.y1 + " " + x1 + "," + e.y1 + "v" + h + "C" + middle + "," + (e.y1 + h) + " " + middle + "," + (e.y0 + h) + " " + x0 + "," + (e.y0 + h) + "Z";
        }}), e => "layer " + layers[l] + ", expert " + e.from + " to layer " + layers[l + 1] + ", expert " + e.to + "\n" + whole(e.count) + " tokens, " + percent(e.count / first(l)[e.from]) + " of those of expert " + e.from);
      });
      shown().forEach((l, i) => {
        const g = svg.append("g").attr("transform", "translate(" + i * step + ",0)"), counts = first(l);
        g.append("text").attr({class: "quiet", x: box / 2, y: 14, "text-anchor": i === 0 ? "start" : i === most - 1 ? "end" : "middle"}).text("layer " + layers[l]);
        mark(g.selectAll("rect").data(counts).enter().append("rect").attr({y: (n, e) => tops[i][e], height: n => Math.max(0.5, n * scale), width: box, fill: (n, e) => E <= 8 ? seriesColour(e) : css("--full"), rx: 2}),
          (n, e) => "layer " + layers[l] + ", expert " + e + "\nfirst choice of " + whole(n) + " tokens, " + percent(n / all));
        g.selectAll(".expert").data(range(E).filter(e => counts[e] * scale > 12)).enter().append("text").attr({class: "expert", x: box / 2, y: e => tops[i][e] + counts[e] * scale / 2 + 4, "text-anchor": "middle"}).style("fill", "#fff").text(e => e);
      });
      return top + height + 10;
    }});

  const paths = () => data.paths[state.dataset];
  // Through many layers, few lines can be told apart.
  const drawn = () => Math.min(paths().path.length, L > 16 ? 15 : 40);
  const tokens = () => data.datasets[state.dataset].tokens;
  figure(grid, {id: "paths-frequent", wide: true, title: () => "Most frequent paths of first choices through all MoE layers: " + names[state.dataset],
    note: () => "The " + drawn() + " most frequent, thicker for more tokens: " + percent(sum(paths().count.slice(0, drawn())) / tokens()) + " of all tokens" + (paths().undercount > 0 ? ". Counts are at most " + whole(paths().undercount) + " too low (sketch)." : "; counts are exact."),
    controls: D > 1 ? (parent, draw) => choice(parent, "Dataset", datasetOptions, 0, v => { state.dataset = +v; draw(); }) : undefined,
    columns: ["rank", "tokens", "share", "path"], rows: () => paths().path.map((p, i) => [i + 1, paths().count[i], paths().count[i] / tokens(), p.join(" ")]),
    draw: (svg, width) => {
      const left = 58, right = 16, top = 12, height = Math.max(220, Math.min(620, 22 * E));
      const x = d3.scale.linear().domain([0, Math.max(1, L - 1)]).range([left, width - right]), y = d3.scale.linear().domain([0, E - 1]).range([top, top + height]);
      const every = Math.ceil(15 / (height / E));
      svg.append("g").attr({class: "axis", transform: "translate(" + left + ",0)"}).call(d3.svg.axis().scale(y).orient("left").tickValues(range(E).filter(e => e % every === 0)).tickFormat(e => "expert " + e).tickSize(-(width - left - right)));
      svg.append("g").attr({class: "axis", transform: "translate(0," + (top + height + 6) + ")"}).call(d3.svg.axis().scale(x).orient("bottom").tickValues(layerTicks(width)).tickFormat(l => layers[l]));
      svg.append("text").attr({class: "quiet", x: (left + width) / 2, y: top + height + 40, "text-anchor": "middle"}).text("MoE layer");
      const most = paths().count[0] || 1, spread = Math.min(5, height / E / 3), n = drawn();
      // Each path is a little beside the experts' lines, so that those that share a stretch stay apart.
      mark(svg.append("g").selectAll("path").data(range(n)).enter().append("path").attr({class: "path", stroke: i => seriesColour(paths().path[i][0]), "stroke-width": i => 1 + 5 * paths().count[i] / most,
        d: i => d3.svg.line().x((e, l) => x(l)).y(e => y(e) + ((i / Math.max(1, n - 1)) - 0.5) * 2 * spread).interpolate("monotone")(paths().path[i])}),
        i => "number " + (i + 1) + ": experts " + paths().path[i].join(" → ") + "\n" + whole(paths().count[i]) + " tokens, " + percent(paths().count[i] / tokens(), 2));
      return top + height + 48;
    }});
  if (table("/flow/mutual_information"))
    figure(grid, {id: "paths-information", title: "What a first choice says of the next layer's", columns: ["dataset", "layer", "next_layer", "information_nats", "bias_nats"], note: "Mutual information in nats, less the correction of Miller and Madow.",
      rows: () => [].concat(...range(D).map(d => range(L - 1).map(l => [names[d], layers[l], layers[l + 1], valueAt("/flow/mutual_information", d, l), valueAt("/flow/mutual_information_bias", d, l)]))),
      draw: (svg, width) => lines(svg, width, {at: range(L - 1), yLabel: "nats", key: true, xLabel: "MoE layer and the next", xFormat: l => Number.isInteger(l) ? layers[l] + "–" + layers[l + 1] : "",
        series: range(D).map(d => ({name: names[d], values: range(L - 1).map(l => { const v = valueAt("/flow/mutual_information", d, l); return known(v) ? v - valueAt("/flow/mutual_information_bias", d, l) : null; })})),
        words: (s, l) => s.name + ", layers " + layers[l] + " and " + layers[l + 1] + "\n" + figureText(s.values[l]) + " nats"})});
}
