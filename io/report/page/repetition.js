// Experts chosen again by the next token.
function repetitionSection(section) {
  const shown = L <= 8 ? range(L) : [0, Math.floor((L - 1) / 2), L - 1];
  const any = K === 2 ? "First or second choice" : "Any of the " + K + " choices";
  const columns = ["dataset"].concat(shown.map(l => "first choice, layer " + layers[l]), shown.map(l => any.toLowerCase() + ", layer " + layers[l]));
  const row = d => ["/repetition/top1_share", "/repetition/any_share"].map(p => shown.map(l => valueAt(p, d, l)));
  const chance = ["/repetition/top1_null", "/repetition/any_null"].map(p => table(p).values[0]);
  const box = element(section, "div", {class: "scroll whole"});
  const t = element(box, "table", {id: "repetition-table"});
  const head = element(t, "thead"), groups = element(head, "tr"), numbers = element(head, "tr");
  element(groups, "th", {scope: "col"}, "");
  element(groups, "th", {scope: "colgroup", colspan: shown.length}, "First choice");
  element(groups, "th", {scope: "colgroup", colspan: shown.length}, any);
  element(numbers, "th", {scope: "col"}, "dataset");
  shown.concat(shown).forEach(l => element(numbers, "th", {scope: "col"}, "layer " + layers[l]));
  const body = element(t, "tbody");
  range(D).forEach(d => {
    const line = element(body, "tr");
    element(line, "th", {scope: "row"}, names[d]);
    [].concat(...row(d)).forEach(v => element(line, "td", {}, percent(v)));
  });
  const line = element(body, "tr", {class: "null"});
  element(line, "th", {scope: "row"}, "independent uniform choices");
  chance.forEach(v => shown.forEach(() => element(line, "td", {}, percent(v))));
  element(section, "p", {class: "note"}, "Share of neighbouring tokens of one window that share an expert; laid out as table 5 of the Mixtral paper (Jiang et al., 2024).");
  const grid = element(section, "div", {class: "figures"});
  [["first", "/repetition/top1_share", "The same first choice as the token before", chance[0]], ["any", "/repetition/any_share", "A common expert with the token before", chance[1]]].forEach(([id, path, title, value]) =>
    figure(grid, {id: "repetition-" + id, title, columns: id === "first" ? columns : ["dataset", "layer", "share", "null"],
      rows: () => id === "first" ? range(D).map(d => [names[d]].concat(...row(d))).concat([["independent uniform choices"].concat(...chance.map(v => shown.map(() => v)))]) : [].concat(...range(D).map(d => range(L).map(l => [names[d], layers[l], valueAt(path, d, l), value]))),
      draw: (svg, width) => lines(svg, width, {yLabel: "share of neighbours", yText: percentTick, key: true, reference: {value, text: "by chance " + percent(value)},
        series: range(D).map(d => ({name: names[d], values: range(L).map(l => valueAt(path, d, l))})), words: (s, l) => s.name + ", layer " + layers[l] + "\n" + percent(s.values[l]) + " of neighbours (by chance " + percent(value) + ")"})}));
}
